"""Compression through the public API: a plan as a job, the jobs, and refusals in a sentence."""

from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.ui.conftest import Served


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
    with pytest.raises(AppError) as refusal:
        client.predict(**values, api_name=f"/compress_{endpoint}")
    assert words in str(refusal.value)
    assert len(served.studio.jobs.list()) == 1
