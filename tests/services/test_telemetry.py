"""Readings in the background: started, stopped, bounded, for many threads at once."""

import threading
import time

import pytest

from tests.test_architecture import imported_by
from zimage_studio.records.telemetry import GpuReading, Reading, TorchUsage
from zimage_studio.services.telemetry import TelemetryService

PATIENCE_S = 20.0


class Numbered:
    """A reader whose readings count upwards."""

    def __init__(self) -> None:
        self.opened = self.closed = self.count = 0
        self.threads: set[int] = set()

    def open(self) -> None:
        self.opened += 1

    def read(self) -> Reading:
        self.threads.add(threading.get_ident())
        self.count += 1
        return Reading(time_s=self.count, gpus=(GpuReading(index=0, id="GPU-0", used_bytes=7),))

    def close(self) -> None:
        self.closed += 1


def threads_named_telemetry() -> int:
    return sum(thread.name == "telemetry" for thread in threading.enumerate())


def test_nothing_runs_before_the_start_and_nothing_after_the_end():
    reader = Numbered()
    service = TelemetryService(lambda: reader, period_s=0.01)
    assert (service.latest, service.recent(), service.running, reader.opened) == (None, (), False, 0)
    service.start()
    assert service.wait_newer(None, PATIENCE_S) is not None
    assert service.running
    assert service.close()
    assert service.close()
    count = reader.count
    assert (service.running, reader.opened, reader.closed) == (False, 1, 1)
    assert threads_named_telemetry() == 0
    assert reader.count == count
    assert service.latest.time_s == count


def test_the_real_reader_says_the_memory_of_this_process():
    service = TelemetryService()
    service.start()
    try:
        reading = service.wait_newer(None, PATIENCE_S)
        assert reading.process_bytes > 10 * 2**20
        assert reading.ram_total_bytes > reading.process_bytes
        assert abs(reading.time_s - time.time()) < 60
    finally:
        assert service.close()


def test_it_starts_once():
    service = TelemetryService(Numbered, period_s=0.01)
    service.start()
    with pytest.raises(RuntimeError):
        service.start()
    service.close()
    with pytest.raises(RuntimeError):
        service.start()
    never = TelemetryService(Numbered)
    assert never.close()
    with pytest.raises(RuntimeError):
        never.start()


def test_only_the_last_minutes_are_kept():
    reader = Numbered()
    service = TelemetryService(lambda: reader, period_s=0.001, kept_s=0.01)
    service.start()
    newest = None
    while reader.count < 40:
        newest = service.wait_newer(newest, PATIENCE_S)
    service.close()
    times = [reading.time_s for reading in service.recent()]
    assert len(times) == 10
    assert times == sorted(times)
    assert times[-1] == reader.count
    assert service.recent(0) == ()


def test_many_threads_read_while_one_writes():
    reader = Numbered()
    service = TelemetryService(lambda: reader, period_s=0.001, kept_s=0.05)
    service.start()
    wrong: list[str] = []

    def watch() -> None:
        newest = None
        for _ in range(50):
            previous, newest = newest, service.wait_newer(newest, PATIENCE_S)
            times = [reading.time_s for reading in service.recent()]
            if previous is not None and newest.time_s <= previous.time_s:
                wrong.append(f"{previous.time_s} then {newest.time_s}")
            if times != sorted(set(times)) or len(times) > 50:
                wrong.append(str(times))

    watchers = [threading.Thread(target=watch) for _ in range(8)]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join(PATIENCE_S)
    assert service.close()
    assert wrong == []
    assert len(reader.threads) == 1


def test_whoever_waits_is_let_go_at_the_end():
    service = TelemetryService(Numbered, period_s=1000)
    service.start()
    first = service.wait_newer(None, PATIENCE_S)
    got: list[Reading | None] = []
    waiter = threading.Thread(target=lambda: got.append(service.wait_newer(first, 1000)))
    waiter.start()
    assert service.close()
    waiter.join(PATIENCE_S)
    assert got == [first]


def test_a_driver_that_hangs_does_not_hold_the_end():
    release = threading.Event()

    class Hanging(Numbered):
        def read(self) -> Reading:
            release.wait(PATIENCE_S)
            return super().read()

    service = TelemetryService(Hanging)
    service.start()
    assert not service.close(timeout_s=0.05)
    release.set()
    assert service.close(PATIENCE_S)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_with_a_bug_ends_the_readings_and_is_still_closed():
    class Broken(Numbered):
        def read(self) -> Reading:
            raise ZeroDivisionError

    reader = Broken()
    service = TelemetryService(lambda: reader)
    service.start()
    service._thread.join(PATIENCE_S)
    assert not service.running
    assert reader.closed == 1
    assert service.close()


def test_what_torch_holds_stands_beside_it():
    usage = TorchUsage(id="GPU-0", allocated_bytes=3, reserved_bytes=5)
    service = TelemetryService(Numbered, torch_usage=lambda: [usage], period_s=0.01)
    service.start()
    reading = service.wait_newer(None, PATIENCE_S)
    service.close()
    assert reading.torch == (usage,)
    assert (reading.gpus[0].ours_bytes, reading.gpus[0].others_bytes) == (5, 2)


def test_it_comes_without_a_model_library():
    assert not imported_by("zimage_studio.services.telemetry") & {"torch", "diffusers", "transformers"}
