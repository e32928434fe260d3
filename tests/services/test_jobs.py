"""Jobs with real processes: one at a time, stopped, killed, their application killed, resumed; nothing is lost."""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.services.counting_job import PROGRAM
from zimage_studio.errors import BusyError, InvalidInputError, StorageError, UserError
from zimage_studio.records.job import JobRecord
from zimage_studio.services.job_table import JobTable
from zimage_studio.services.jobs import JobService

LONG = 100_000
UNTIL_S = 90.0


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[JobService]:
    service = JobService(tmp_path, program=PROGRAM)
    yield service
    service.close(10)


def until(what: Callable[[], object], seconds: float = UNTIL_S) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def counted(service: JobService, job: JobRecord) -> int:
    path = service.folder(job.id) / "numbers"
    return len(path.read_text().split()) if path.exists() else 0


def processes_of(job: JobRecord) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and job.id.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_job_runs_in_a_process_of_its_own_and_leaves_result_log_and_times(jobs: JobService) -> None:
    job = jobs.submit("evaluate", {"to": 3, "model": "tiny"})
    assert (job.state, job.progress, job.model) == ("queued", 0.0, "tiny")
    done = jobs.wait(job.id, UNTIL_S)
    assert (done.state, done.progress, done.result["from"], done.problem) == ("done", 1.0, 0, None)
    assert job.created <= done.started <= done.ended
    assert jobs.list() == (done,)
    assert JobRecord.from_json(done.to_json()) == done


def test_a_stop_ends_at_the_checkpoint_and_resuming_gives_what_an_unbroken_run_gives(jobs: JobService) -> None:
    whole = jobs.wait(jobs.submit("evaluate", {"to": 60}).id, UNTIL_S)
    job = jobs.submit("evaluate", {"to": 60})
    until(lambda: counted(jobs, job) > 5)
    assert os.getpriority(os.PRIO_PROCESS, processes_of(job)[0]) >= 10
    assert os.getpgid(processes_of(job)[0]) != os.getpgid(0)
    jobs.stop(job.id)
    stopped = jobs.wait(job.id, UNTIL_S)
    assert (stopped.state, stopped.reason) == ("stopped", "")
    with pytest.raises(UserError, match="only one that was stopped"):
        jobs.resume(whole.id)
    assert jobs.resume(job.id).attempt == 2
    done = jobs.wait(job.id, UNTIL_S)
    assert done.result["sha256"] == whole.result["sha256"]
    assert done.result["from"] != 0


def test_sigterm_to_the_process_is_a_stop(jobs: JobService) -> None:
    job = jobs.submit("evaluate", {"to": LONG})
    until(lambda: counted(jobs, job) > 2)
    os.kill(processes_of(job)[0], signal.SIGTERM)
    assert jobs.wait(job.id, UNTIL_S).state == "stopped"


def test_a_killed_process_is_interrupted_and_can_be_resumed(jobs: JobService) -> None:
    job = jobs.submit("evaluate", {"to": 40})
    until(lambda: counted(jobs, job) > 5)
    os.kill(processes_of(job)[0], signal.SIGKILL)
    ended = jobs.wait(job.id, 5)
    assert (ended.state, ended.reason) == ("interrupted", "job_killed")
    jobs.resume(job.id)
    done = jobs.wait(job.id, UNTIL_S)
    assert done.state == "done"
    assert done.result["from"] != 0


def test_when_the_application_is_killed_its_jobs_die_and_the_next_one_resumes_them(tmp_path: Path) -> None:
    command = [*PROGRAM, "app", str(tmp_path), "80"]
    root = str(Path(__file__).parents[2])
    app = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root})
    assert app.stdout is not None
    first, second = app.stdout.readline().split()
    here = JobService(tmp_path, program=PROGRAM)
    until(lambda: counted(here, here.get(first)) > 5)
    assert [here.get(i).state for i in (first, second)] == ["running", "queued"]
    [process] = processes_of(here.get(first))
    app.kill()
    app.wait()
    until(lambda: not Path(f"/proc/{process}").exists(), 5)
    again = JobService(tmp_path, program=PROGRAM)  # its start sweeps
    assert [again.get(i).state for i in (first, second)] == ["interrupted", "interrupted"]
    for job_id in (second, first):
        again.resume(job_id)
    results = [again.wait(job_id, UNTIL_S).result for job_id in (first, second)]
    assert results[0]["sha256"] == results[1]["sha256"]
    assert results[0]["from"] != 0
    again.close(10)


def test_one_job_at_a_time_in_order_whichever_process_queued_them(jobs: JobService, tmp_path: Path) -> None:
    other = JobService(tmp_path, program=PROGRAM)
    queued = [(jobs, other)[i % 2].submit("evaluate", {"to": 12}) for i in range(4)]
    seen: set[int] = set()
    while any(not jobs.get(job.id).finished for job in queued):
        seen.add(sum(job.state == "running" for job in jobs.list()))
        time.sleep(0.01)
    ended = [jobs.get(job.id) for job in queued]
    assert [job.state for job in ended] == ["done"] * 4
    assert max(seen) == 1
    for before, after in itertools.pairwise(ended):
        assert before.ended <= after.started
    other.close(10)


def test_a_waiting_job_is_stopped_at_once_from_any_process(jobs: JobService, tmp_path: Path) -> None:
    first, second = (jobs.submit("evaluate", {"to": LONG}) for _ in range(2))
    until(lambda: jobs.get(first.id).state == "running")
    assert jobs.ahead(second.id) == 1
    stranger = JobService(tmp_path, program=PROGRAM)
    assert stranger.stop(second.id).state == "stopped"
    assert stranger.stop(first.id).state == "stopping"
    assert jobs.wait(first.id, UNTIL_S).state == "stopped"
    assert counted(jobs, second) == 0


def test_closing_the_application_interrupts_what_runs_and_what_waits(tmp_path: Path) -> None:
    service = JobService(tmp_path, program=PROGRAM)
    ids = [service.submit("evaluate", {"to": LONG}).id for _ in range(2)]
    until(lambda: service.get(ids[0]).state == "running")
    service.close(10)
    ended = [service.get(job_id) for job_id in ids]
    assert [(job.state, job.reason) for job in ended] == [("interrupted", "job_app_ended")] * 2
    with pytest.raises(BusyError):
        service.submit("evaluate", {"to": 1})


def test_what_goes_wrong_is_said_in_its_own_words_and_the_queue_goes_on(jobs: JobService) -> None:
    refused, broken, good = (
        jobs.submit("evaluate", request) for request in ({"refuse": True}, {"break": True}, {"to": 1})
    )
    assert jobs.wait(good.id, UNTIL_S).state == "done"
    problem = jobs.get(refused.id).problem
    assert problem is not None
    assert (problem.key, problem.values["known"]) == ("unknown_model", "y")
    assert "ZeroDivisionError: broken" in str(jobs.get(broken.id).problem)
    assert "Traceback" in jobs.log(broken.id)
    assert len(jobs.log(broken.id, 1).splitlines()) == 1


def test_a_job_is_deleted_with_its_folder_but_not_while_it_runs(jobs: JobService) -> None:
    job = jobs.submit("evaluate", {"to": LONG})
    until(lambda: jobs.get(job.id).state == "running")
    with pytest.raises(UserError, match="stop it first"):
        jobs.delete(job.id)
    jobs.stop(job.id)
    jobs.wait(job.id, UNTIL_S)
    jobs.delete(job.id)
    assert not jobs.folder(job.id).exists()
    assert jobs.list() == ()


@pytest.mark.parametrize("job_id", ["0" * 16, "", "..", "../jobs", "A" * 16, "x" * 1_000_000, None, 7, ["a"], "0" * 15])
def test_every_id_that_is_none_gets_the_same_words(jobs: JobService, job_id: object) -> None:
    for ask in (jobs.get, jobs.stop, jobs.resume, jobs.delete, jobs.log):
        with pytest.raises(UserError) as refusal:
            ask(job_id)
        assert str(refusal.value) == "There is no such job."


@pytest.mark.parametrize("count", [0, -1, 1001, "x", None, 1.5])
def test_odd_counts_are_refused_by_name(jobs: JobService, count: object) -> None:
    with pytest.raises(InvalidInputError):
        jobs.list(count)


def test_a_full_disk_refuses_before_anything_is_written(tmp_path: Path) -> None:
    service = JobService(tmp_path, program=PROGRAM)
    with pytest.raises(StorageError, match="MB are needed"):
        service.submit("prune", {}, needs_bytes=10**16)
    assert service.list() == ()
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_row_without_a_living_process_is_interrupted_at_the_next_start(tmp_path: Path) -> None:
    job = JobRecord(id="a" * 16, kind="recover", state="running", heartbeat="2020-01-01T00:00:00+00:00")
    JobTable(tmp_path / "jobs.sqlite").insert(job, settings={}, needs_bytes=0)
    service = JobService(tmp_path, program=PROGRAM)
    assert (service.get(job.id).state, service.get(job.id).reason) == ("interrupted", "job_process_gone")


class Borrowed:
    """Writes down when it is lent."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def lend(self, job: JobRecord) -> None:
        self.events.append(job.kind)

    def take_back(self) -> None:
        self.events.append("back")


def test_the_device_is_lent_for_as_long_as_a_job_needs_it(tmp_path: Path) -> None:
    device = Borrowed()
    service = JobService(tmp_path, program=PROGRAM, device=device)
    service.wait(service.submit("prune", {"to": 1}, device=False).id, UNTIL_S)
    service.wait(service.submit("recover", {"to": 1}).id, UNTIL_S)
    until(lambda: device.events[-1] == "back")
    service.close(10)
    assert "prune" not in device.events
    assert device.events.count("recover") == 1
    assert device.events[device.events.index("recover") + 1] == "back"
