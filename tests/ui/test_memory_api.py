"""Memory through the public API: the truth, a plan, a measurement, and the profile of the whole machine."""

from collections.abc import Iterator
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.ui.conftest import Served
from zimage_studio.records.memory import EXACT, PHASES, PRESETS

SMALL = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url, verbose=False)


@pytest.fixture(autouse=True)
def exact_again(served: Served) -> Iterator[None]:
    yield
    served.studio.memory.choose(EXACT)


def image(client: Client, served: Served) -> dict[str, Any]:
    _, facts = client.predict(
        "a fish", **SMALL, steps=1, guidance=0.0, seed="3", model=served.model, api_name="/generate_image"
    )
    return facts[0]


def test_status_tells_what_the_live_pipeline_answers(client: Client, served: Served):
    image(client, served)
    status = client.predict(**SMALL, api_name="/memory_status")
    assert [switch["name"] for switch in status["switches"]] == list(EXACT.switches)
    assert {switch["state"] for switch in status["switches"]} <= {"applied", "no_effect", "refused"}
    assert all(switch["reason"] for switch in status["switches"])
    assert (status["pending"], status["note"]) == (False, "")
    assert status["devices"]["ram_total_bytes"] > 0
    assert status["profiles"] == list(PRESETS)


def test_a_plan_names_a_profile_and_its_peaks(client: Client, served: Served):
    plan = client.predict(**SMALL, free_gib=64, model=served.model, api_name="/memory_plan")
    assert (plan["profile"]["name"], plan["fits"]) == ("exact", True)
    assert [part["phase"] for part in plan["predicted"]] == list(PHASES)
    assert plan["reason"].startswith("exact fits")


def test_a_measurement_has_a_row_for_each_profile(client: Client, served: Served):
    rows = client.predict(
        profiles=["exact", "int4"], **SMALL, steps=1, guidance=0.0, model=served.model, api_name="/memory_measure"
    )
    assert [row["profile"] for row in rows] == ["exact", "int4"]
    assert rows[0]["identical"] and rows[1]["psnr_db_to_exact"] > 5
    assert all(list(row["phase_peak_bytes"]) == list(PHASES) for row in rows)


def test_a_profile_that_was_set_holds_from_the_next_image_on(client: Client, served: Served):
    chosen = client.predict(profile="chunked", switches={"embedding_cache": 3}, api_name="/set_memory_profile")
    assert (chosen["feed_forward_chunks"], chosen["embedding_cache"], chosen["name"]) == (4, 3, "")
    assert client.predict(api_name="/memory_status")["pending"] is True
    assert image(client, served)["recipe"]["numerics"]["memory"] == {"feed_forward_chunks": 4}
    assert client.predict(api_name="/memory_status")["pending"] is False


@pytest.mark.parametrize(
    ("endpoint", "values", "words"),
    [
        ("/set_memory_profile", {}, ["memory profile", "exact"]),
        ("/set_memory_profile", {"profile": "/etc/passwd"}, ["/etc/passwd", "exact"]),
        ("/set_memory_profile", {"switches": {"warp": 1}}, ["warp", "vae_tile_px"]),
        ("/set_memory_profile", {"switches": {"vae_tile_px": 100}}, ["VAE tile", "100", "96", "128"]),
        ("/set_memory_profile", {"switches": {"group_offload_disk": True}}, ["group offload to disk", "needs"]),
        ("/memory_plan", {"width": 64}, ["height"]),
        ("/memory_plan", {"width": 100, "height": 64}, ["width", "100", "112"]),
        ("/memory_plan", {"free_gib": -1}, ["free memory", "-1"]),
        ("/memory_measure", {"profiles": ["magic"]}, ["magic", "exact"]),
        ("/memory_measure", {"profiles": ["exact"] * 13}, ["number of profiles", "13", "12"]),
        ("/memory_measure", {"model": "../x"}, ["no model called"]),
        ("/memory_status", {"width": 1, "height": 64}, ["width", "64", "4096"]),
    ],
)
def test_bad_input_is_one_sentence(client: Client, endpoint: str, values: dict[str, Any], words: list[str]):
    with pytest.raises(AppError) as refused:
        client.predict(**values, api_name=endpoint)
    for word in words:
        assert word in str(refused.value)
