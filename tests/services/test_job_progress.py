"""How far a job says it is, and when it dares to say how long it takes."""

import time
from pathlib import Path

import pytest

from zimage_studio.records.job import JobRecord
from zimage_studio.services.job_process import JobProgress
from zimage_studio.services.job_table import JobTable

PARTS = {"note.hashing": (0.0, 0.05), "note.calibrating": (0.05, 0.3), "note.scoring": (0.3, 1.0)}


@pytest.fixture
def progress(tmp_path: Path) -> JobProgress:
    job = JobRecord(id="0" * 16, kind="plan", state="running", request={"model": "tiny"})
    return JobProgress(JobTable(tmp_path / "jobs.sqlite"), job)


def test_the_time_left_is_told_by_the_pace_of_the_part_that_is_most_of_the_work(progress: JobProgress):
    progress.parts(PARTS)
    for done in (1, 2):
        time.sleep(0.05)
        progress(done, 2, "note.calibrating")
    assert progress.snapshot()["progress"] == pytest.approx(0.3)
    assert progress.snapshot()["eta_s"] is None
    progress(0, 100, "note.scoring")
    assert progress.snapshot()["eta_s"] is None
    progress(50, 100, "note.scoring")
    eta_s = progress.snapshot()["eta_s"]
    assert isinstance(eta_s, float)
    assert eta_s < 0.05  # half was done in no time, so the other half takes none, whatever the prompts took
    progress(0, 9, "note.loading")
    assert progress.snapshot()["progress"] == pytest.approx(0.65)
