"""The way to a smaller model from the command line: plan, prune, recover, evaluate, each a job; and what is refused."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from zimage_studio.cli import main
from zimage_studio.records.plan import RUNTIMES, PrunePlan

UNTIL_S = 240.0
QUICK = {"batch": 2, "held_out": 2, "samples": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compress") / "data"


def run(capsys: pytest.CaptureFixture[str], data: Path, *arguments: str) -> tuple[int, Any, str]:
    status = main([*arguments, "--data", str(data), "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, err


def test_from_a_plan_to_a_report_card(capsys, data):
    out = data.parent / "plan.json"
    status, plan, _ = run(
        capsys, data, "plan", "--kind", "ffn", "--criterion", "l1", "--ratio", "0.5", "--out", str(out), "--offline"
    )
    assert status == 0
    assert plan["plan"] == str(out)
    assert plan["parameters_after"] < plan["parameters_before"]
    assert set(plan["loads_in"]) == set(RUNTIMES)
    assert plan["predicted_speedup"] > 1
    assert PrunePlan.from_json(out.read_text()).parameters_after == plan["parameters_after"]

    status, made, err = run(capsys, data, "prune", str(out), "--offline")
    assert status == 0
    assert made["model"] == "tiny-ffn50-l1"
    assert (made["parameters"], made["bytes"]) == (plan["parameters_after"], plan["bytes_after"])
    assert made["peak_memory_bytes"] > 0
    assert "%" in err  # progress goes to stderr

    config = data.parent / "recovery.json"
    config.write_text(json.dumps({"schema": 1, "minutes": 60, **QUICK}))
    status, trained, _ = run(
        capsys, data, "recover", made["model"], "--data-set", "drawn", "--steps", "3", "--config", str(config)
    )
    assert status == 0
    assert trained["model"] == "tiny-ffn50-l1-recovered"
    assert trained["steps"] == 3
    assert trained["loss_first"] > 0
    assert trained["seconds"] > 0

    status, card, _ = run(
        capsys, data, "evaluate", trained["model"], "--count", "2", "--repeats", "3", "--steps", "2", "--offline"
    )
    assert status == 0
    metrics = {metric["name"]: metric for metric in card["metrics"]}
    assert {"judge_accuracy", "clip_score", "psnr_db", "ssim", "bytes", "parameters", "flops", "seconds_per_image",
            "peak_bytes"} <= set(metrics)  # fmt: skip
    assert all({"value", "parent", "unit", "better", "interval"} <= set(metric) for metric in metrics.values())
    assert metrics["bytes"]["value"] < metrics["bytes"]["parent"]
    assert card["against"] == "tiny"  # the uncut model, not the cut one that it was trained from
    assert Path(card["card"]).with_suffix(".html").is_file()

    status, listed, _ = run(capsys, data, "jobs")
    assert status == 0
    assert [job["kind"] for job in listed["jobs"]] == ["evaluate", "recover", "prune", "plan"]
    assert {"id", "kind", "state", "progress", "started", "ended", "reason"} <= set(listed["jobs"][0])
    assert {(job["state"], job["progress"], job["reason"]) for job in listed["jobs"]} == {("done", 1.0, "")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "--kind", "ffn", "--ratio", "0"], "The ratio is 0"),
        (["plan", "--kind", "ffn", "--ratio", "1"], "The ratio is 1"),
        (["plan", "--kind", "ffn", "--ratio", "nan"], "The ratio is nan"),
        (["plan", "--kind", "ffn"], "exactly one target"),
        (["plan", "--kind", "everything", "--ratio", "0.5"], "kinds of cut"),
        (["plan", "--kind", "ffn", "--criterion", "guess", "--ratio", "0.5"], "criterion"),
        (["plan", "--kind", "ffn", "--ratio", "0.5", "--model", "nobody"], "nobody"),
        (["plan", "--kind", "ffn", "--ratio", "0.5", "--name", "../x"], "no two dots together"),
        (["plan", "--kind", "ffn", "--ratio", "0.5", "--out", __file__], "test_compress_cli.py already"),
        (["recover", "tiny", "--steps", "1", "--processes", "0"], "from 1 to 64, or auto"),
        (["prune", "nothing"], "There is no plan called nothing"),
        (["recover", "tiny", "--steps", "0"], "steps"),
        (["recover", "tiny", "--data-set", "/no/such/folder", "--steps", "1"], "/no/such/folder"),
        (["recover", "tiny", "--resume"], "no recovery of"),
        (["evaluate", "tiny"], "names no parent"),
        (["evaluate", "nobody"], "nobody"),
        (["evaluate", "tiny", "--prompts", "/no/such/file"], "/no/such/file"),
        (["jobs", "show", "0000000000000000"], "There is no such job."),
        (["jobs", "stop", "..%2f"], "There is no such job."),
        (["jobs", "log", "x" * 10_000], "There is no such job."),
        (["job", "../../etc/passwd"], "There is no such job."),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_any_job(capsys, tmp_path, arguments, words):
    assert main([*arguments, "--data", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert words in err.splitlines()[-1]
    assert out == ""
    assert main(["jobs", "--data", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": []}


def test_a_plan_for_other_weights_and_one_that_drops_all_layers_write_nothing(capsys, data, tmp_path):
    path = next((data / "plans").glob("*.json"))
    plan = json.loads(path.read_text())
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps({**plan, "model_sha256": "0" * 64}))
    empty = tmp_path / "empty.json"
    cuts = [{**cut, "kept": cut["stack"] != "layers"} for cut in plan["cuts"]]
    empty.write_text(json.dumps({**plan, "cuts": cuts}))
    before = sorted(path.name for path in (data / "models").iterdir())
    for file, words in ((foreign, "was made for"), (empty, "drops all")):
        assert main(["prune", str(file), "--name", "never", "--data", str(data)]) == 2
        assert words in capsys.readouterr().err
    assert main(["prune", str(path), "--name", before[0], "--data", str(data)]) == 2
    assert "already" in capsys.readouterr().err
    assert sorted(path.name for path in (data / "models").iterdir()) == before


def test_ctrl_c_stops_the_job_and_resume_finishes_it(data):
    command = [sys.executable, "-m", "zimage_studio"]
    config = data.parent / "longer.json"
    config.write_text(json.dumps({"schema": 1, "steps": 12, **QUICK}))
    asked = ["recover", "tiny-ffn50-l1", "--config", str(config), "--name", "stopped-once", "--offline"]
    process = subprocess.Popen([*command, *asked, "--data", str(data)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = wait_for_training(data)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=UNTIL_S)
    assert process.returncode == 130, err
    assert not (data / "models" / "stopped-once").exists()
    before = len(log.read_text().splitlines())
    done = subprocess.run(
        [*command, "recover", "tiny-ffn50-l1", "--resume", "--data", str(data), "--json"], cwd=ROOT,
        capture_output=True, text=True, timeout=UNTIL_S * 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 12
    assert (data / "models" / "stopped-once" / "manifest.json").is_file()
    assert before < len(log.read_text().splitlines())


def wait_for_training(data: Path) -> Path:
    """Until the newest recovery has written a line of its log."""
    deadline = time.monotonic() + UNTIL_S
    known = {path for path in (data / "jobs").glob("*/log.jsonl") if path.stat().st_size}
    while time.monotonic() < deadline:
        found = {path for path in (data / "jobs").glob("*/log.jsonl") if path.stat().st_size} - known
        if found:
            return found.pop()
        time.sleep(0.1)
    raise TimeoutError("no recovery began")
