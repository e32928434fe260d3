"""Compression through the public API: a plan as a job, the jobs, and refusals in a sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from tests.ui.conftest import Served

SMALL = {"prompt": "a fish", "width": 64, "height": 64, "steps": 2, "guidance": 0.0, "seed": "3"}


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url, verbose=False)


@pytest.fixture(scope="module")
def planned(client: Client, served: Served) -> dict[str, Any]:
    return client.predict(
        model=served.model, kinds=["ffn"], criterion="l1", ratio=0.5, name="half", api_name="/compress_plan"
    )


def test_a_plan_is_a_job_and_foretells(planned: dict[str, Any], client: Client, served: Served):
    assert (planned["kind"], planned["state"], planned["progress"], planned["reason"]) == ("plan", "done", 1.0, "")
    result = planned["result"]
    assert result["id"] == "half"
    assert result["parameters_after"] < result["parameters_before"]
    assert {block["stack"] for block in result["blocks"]} == {"layers", "noise_refiner", "context_refiner"}
    [listed] = client.predict(api_name="/compress_jobs")
    assert listed["id"] == planned["id"]
    assert "request" not in listed
    shown = client.predict(job=planned["id"], api_name="/compress_job")
    assert shown["result"] == result
    assert "done" in client.predict(job=planned["id"], api_name="/compress_job_log")
    assert client.predict(job=planned["id"], api_name="/compress_job_stop")["state"] == "done"
    assert served.model in {member["key"] for member in client.predict(api_name="/compress_family")}


@pytest.mark.parametrize(
    ("endpoint", "values", "words"),
    [
        ("plan", {"kinds": ["ffn"], "ratio": 1}, "The ratio is 1"),
        ("plan", {"kinds": [], "ratio": 0.5}, "kinds of cut"),
        ("plan", {"kinds": ["ffn"], "ratio": 0.5, "model": "/etc"}, "There is no model"),
        ("plan", {"kinds": ["ffn"], "ratio": 0.5, "name": "half"}, "There is a plan called half already"),
        ("plan", {"kinds": ["ffn"], "ratio": 0.5, "name": "half", "overwrite": "yes"}, "overwrite"),
        ("knock_out", {"parts": []}, "Nothing is knocked out"),
        ("knock_out", {"parts": "layers.0"}, "must be a list"),
        ("knock_out", {"parts": ["layers.0"] * 5000}, "at most 4096"),
        ("knock_out", {"parts": ["attic.0"]}, "attic"),
        ("knock_out", {"parts": [{"stack": "layers", "index": 0, "colour": 1}]}, "colour"),
        ("knock_out", {"parts": ["layers.0"], **SMALL, "steps": 0}, "steps"),
        ("knock_out", {"parts": ["layers.99"], **SMALL}, "layers.99"),
        ("knock_out", {"parts": ["layers.0.head.99"], **SMALL}, "head is 99"),
        ("recover", {"model": "tiny", "settings": {"processes": 0}}, "from 1 to 64, or auto"),
        ("prune", {"plan": "../half"}, "There is no plan called"),
        ("prune", {"plan": "half", "name": "a/../b"}, "no two dots together"),
        ("recover", {"model": "tiny", "data_set": "/etc"}, "data set"),
        ("recover", {"model": "tiny", "settings": {"colour": 1}}, "colour"),
        ("recover", {"model": "tiny", "method": "distil"}, "names no parent"),
        ("evaluate", {"model": "tiny"}, "names no parent"),
        ("evaluate", {"model": "tiny", "settings": {"clip": "/etc"}}, "ORGANISATION/NAME"),
        ("job", {"job": "0" * 16}, "There is no such job."),
        ("job_stop", {"job": "half"}, "There is no such job."),
        ("job_resume", {"job": ""}, "There is no such job."),
        ("job_log", {"job": "../jobs"}, "There is no such job."),
        ("jobs", {"count": 0}, "1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(planned, client: Client, served: Served, endpoint, values, words):
    if endpoint in ("plan", "knock_out"):
        values = {"model": served.model, **values}
    with pytest.raises(AppError) as refusal:
        client.predict(**values, api_name=f"/compress_{endpoint}")
    assert words in str(refusal.value)
    assert len(served.studio.jobs.list()) == 1


def test_a_knock_out_gives_both_pictures_and_their_distance(client: Client, served: Served):
    asked = {"parts": ["layers.1.feed_forward", "layers.0.head.1"], **SMALL, "model": served.model}
    whole, without, facts = client.predict(**asked, api_name="/compress_knock_out")
    assert Path(whole).read_bytes() != Path(without).read_bytes()
    assert (facts["parts"], facts["seed"], facts["model"]) == (asked["parts"], "3", served.model)
    assert facts["max_difference"] > 0
    files, _ = client.predict(**{**SMALL, "model": served.model}, api_name="/generate_image")
    drawn, kept = (np.asarray(Image.open(path).convert("RGB")) for path in (files[0], whole))
    assert np.array_equal(drawn, kept)  # what was knocked out is back
