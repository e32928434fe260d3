"""A recovery in two processes, as a real job: whatever ends it leaves no process behind and loses only time."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.services.test_jobs import processes_of, until
from zimage_studio.core.recovery.folder import RECOVERY
from zimage_studio.core.recovery.log import read_log
from zimage_studio.records.job import JobRecord
from zimage_studio.records.progress import silent
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings

UNTIL_S, GONE_S = 240.0, 15.0
STEPS = 100
SETTINGS = {
    "steps": STEPS, "batch": 2, "size": 64, "held_out": 2, "samples": 1, "processes": 2, "checkpoint_every_s": 1,
    "sample_every_s": 3600, "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture
def waiting(settings: Settings, two_models: Path) -> Iterator[Studio]:
    """Nothing is loaded: only its jobs are used."""
    studio = build_studio(replace(settings, models=(two_models,), model="two"))
    yield studio
    studio.jobs.close(10)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 200, 90)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a colour, number {number}", encoding="utf-8")
    return folder


def workers_of(job: JobRecord) -> dict[str, int]:
    """The training processes by their rank."""
    found: dict[str, int] = {}
    for process in processes_of(job):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            environment = Path(f"/proc/{process}/environ").read_text()
            found |= {pair[5:]: process for pair in environment.split("\0") if pair.startswith("RANK=")}
    return found


def leader_of(job: JobRecord) -> int:
    """The process of the job itself."""
    [found] = [p for p in processes_of(job) if b"--held" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return found


def steps_of(studio: Studio, job: JobRecord) -> int:
    log = studio.jobs.folder(job.id) / "log.jsonl"
    return max((line.step for line in read_log(log)), default=0) if log.exists() else 0


def started(studio: Studio, job: JobRecord) -> dict[str, int]:
    """Its processes, once it trains further than before."""
    checkpoint = studio.jobs.folder(job.id) / "checkpoint"
    before = steps_of(studio, job)
    until(lambda: steps_of(studio, job) > before or studio.jobs.get(job.id).finished, UNTIL_S)
    until(lambda: any(checkpoint.glob("*.safetensors")) or studio.jobs.get(job.id).finished, UNTIL_S)
    assert not studio.jobs.get(job.id).finished, studio.jobs.log(job.id)
    return workers_of(job)


def gone(job: JobRecord) -> None:
    until(lambda: not processes_of(job), GONE_S)


def test_two_processes_are_stopped_killed_and_resumed_and_leave_nothing_behind(waiting: Studio, pictures: Path) -> None:
    jobs = waiting.jobs
    asked = {**SETTINGS, "data_set": str(pictures)}
    job = waiting.compression.recover("two", asked, "together", allow_paths=True)
    assert started(waiting, job).keys() == {"0", "1"}
    jobs.stop(job.id)
    assert jobs.wait(job.id, UNTIL_S).state == "stopped"
    gone(job)

    before = steps_of(waiting, job)
    jobs.resume(job.id)
    started(waiting, job)
    os.kill(leader_of(job), signal.SIGKILL)
    assert jobs.wait(job.id, GONE_S).state == "interrupted"
    gone(job)

    jobs.resume(job.id)
    done = jobs.wait(job.id, UNTIL_S)
    assert done.state == "done", jobs.log(job.id)
    assert 0 < before < STEPS == done.result["steps"]
    assert (done.result["model"], done.result["processes"], done.attempt) == ("together", 2, 3)
    run = json.loads((waiting.settings.data / "models" / "together" / RECOVERY).read_text())
    assert run["processes"] == 2
    assert waiting.models.get("together").parent == waiting.models.identity(waiting.models.get("two"), silent).sha256
    assert "loss" in jobs.log(job.id)  # what training says is in the log of the job
    assert list((jobs.folder(job.id) / "samples").rglob("*.png"))
    gone(job)


def test_a_training_process_that_is_killed_or_refuses_is_a_sentence(waiting: Studio, pictures: Path) -> None:
    asked = {**SETTINGS, "data_set": str(pictures)}
    job = waiting.compression.recover("two", asked, "never", allow_paths=True)
    until(lambda: "1" in workers_of(job), UNTIL_S)
    os.kill(workers_of(job)["1"], signal.SIGKILL)  # as when memory runs out
    ended = waiting.jobs.wait(job.id, UNTIL_S)
    assert (ended.state, ended.reason) == ("failed", "recover_process")
    assert "One of the 2 training processes ended" in str(ended.problem)
    gone(job)

    (pictures / "2.png").write_bytes(b"no picture")
    waiting.jobs.resume(job.id)
    ended = waiting.jobs.wait(job.id, UNTIL_S)
    assert (ended.state, ended.reason) == ("failed", "data_corrupt")
    assert "2.png" in str(ended.problem)
    gone(job)
    assert not (waiting.settings.data / "models" / "never").exists()
