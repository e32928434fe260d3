"""The memory commands keep their contract: one JSON object, the truth of the live pipeline, sentences for refusals."""

import json
from pathlib import Path

import pytest

from zimage_studio.cli import main
from zimage_studio.records.memory import EXACT, PHASES, PRESETS, MemoryProfile

SMALL = ["--size", "64x64"]


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    return ["--data", str(tmp_path / "data"), "--offline"]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["memory", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_show_tells_every_switch_as_the_pipeline_answers(capsys, data):
    shown = answer(capsys, "show", "--profile", "tiled", *SMALL, *data)
    assert shown["profile"]["name"] == "tiled"
    switches = {switch["name"]: switch for switch in shown["switches"]}
    assert list(switches) == list(EXACT.switches)
    assert all(set(switch) == {"name", "requested", "state", "reason"} for switch in shown["switches"])
    assert {switch["state"] for switch in shown["switches"]} <= {"applied", "no_effect", "refused"}
    assert switches["feed_forward_chunks"]["state"] == "applied"
    assert switches["vae_tile_px"]["state"] == "no_effect", "64 px fit into one tile"
    assert "64×64" in switches["vae_tile_px"]["reason"]
    assert switches["transformer_precision"]["reason"] == "Computes in float32."
    assert shown["devices"][-1]["kind"] == "ram"
    assert shown["devices"][-1]["ram_total_bytes"] > 0


def test_plan_names_a_profile_its_reason_and_the_peaks(capsys, data):
    plan = answer(capsys, "plan", *SMALL, "--free-gib", "64", *data)
    assert (plan["profile"]["name"], plan["fits"]) == ("exact", True)
    assert [part["phase"] for part in plan["predicted"]] == list(PHASES)
    assert all(part["peak_bytes"] > 0 for part in plan["predicted"])
    assert plan["reason"].startswith("exact fits")
    tight = answer(capsys, "plan", *SMALL, "--free-gib", "0.001", "--lang", "zh", *data)
    assert not tight["fits"] and tight["headroom_bytes"] < 0
    assert "GiB" in tight["reason"] and "Nothing" not in tight["reason"]


def test_measure_has_a_row_for_each_profile_and_a_file(capsys, data, tmp_path):
    rows = answer(
        capsys,
        "measure",
        "--profiles",
        "exact,int4",
        *SMALL,
        "--steps",
        "1",
        "--out",
        str(tmp_path / "rows.csv"),
        *data,
    )["rows"]
    assert [row["profile"] for row in rows] == ["exact", "int4"]
    for row in rows:
        assert list(row["phase_peak_bytes"]) == list(PHASES)
        assert row["seconds"] > 0
    assert rows[0]["psnr_db_to_exact"] is None and rows[0]["identical"] is True
    assert rows[1]["psnr_db_to_exact"] > 5
    lines = (tmp_path / "rows.csv").read_text("utf-8").splitlines()
    assert len(lines) == 3 and lines[0].startswith("profile,seconds,psnr_db_to_exact")


def test_the_profile_in_use_holds_for_images_that_name_none(capsys, data, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(MemoryProfile(name="mine", feed_forward_chunks=2).to_json(), encoding="utf-8")
    place = data[:2]
    assert answer(capsys, "use", str(file), *place)["profile"]["feed_forward_chunks"] == 2
    listed = answer(capsys, "profiles", *place)
    assert listed["profile"]["name"] == "mine"
    assert [profile["name"] for profile in listed["profiles"]] == list(PRESETS)
    made = []
    for extra in ([], ["--profile", "exact"]):
        assert main(["generate", "a red circle", *SMALL, "--steps", "1", "--seed", "3", "--json", *extra, *data]) == 0
        made += json.loads(capsys.readouterr().out)["images"]
    assert [image["recipe"]["numerics"]["memory"] for image in made] == [{"feed_forward_chunks": 2}, {}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "--size", "big"], ["big", "1024x1024"]),
        (["plan", "--size", "100x64"], ["width", "100", "96", "112"]),
        (["plan", "--free-gib", "lots"], ["free memory in GiB", "lots", "4096"]),
        (["plan", "--device", "tpu"], ["device", "tpu", "cuda"]),
        (["measure", "--profiles", "magic"], ["memory profile", "magic", "exact"]),
        (["measure", "--profiles", ",".join(["exact"] * 13)], ["number of profiles", "13", "12"]),
        (["measure"], ["profiles"]),
        (["show", "--profile", "magic"], ["memory profile", "magic", "exact"]),
        (["show", "--size", "10x64"], ["width", "10", "64", "4096"]),
        (["use", "magic"], ["memory profile", "magic", "exact"]),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(capsys, data, arguments, words):
    place = data[:2] if arguments[0] == "use" else data
    assert main(["memory", *arguments, *place]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    for word in words:
        assert word in shown.err
