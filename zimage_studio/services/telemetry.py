"""Live readouts: a thread that reads the devices once a second and keeps the last minutes."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from zimage_studio.core.memory.telemetry import TelemetryReader
from zimage_studio.records.telemetry import Reading, TorchUsage

PERIOD_S = 1.0
KEPT_S = 300.0


class Reader(Protocol):
    """Where the readings come from: core.memory.telemetry.TelemetryReader. Only the service's thread calls it."""

    def open(self) -> None: ...

    def read(self) -> Reading: ...

    def close(self) -> None: ...


def no_torch() -> Iterable[TorchUsage]:
    """torch holds nothing that anyone knows of."""
    return ()


class TelemetryService:
    """Readings of the last minutes, for any number of threads.

    Nothing runs before `start()`; `close()` ends the thread and the session with the driver. `torch_usage` is called
    on the service's thread at each reading (core.memory.torch_usage, once torch is there).
    """

    def __init__(
        self,
        make_reader: Callable[[], Reader] = TelemetryReader,
        *,
        torch_usage: Callable[[], Iterable[TorchUsage]] = no_torch,
        period_s: float = PERIOD_S,
        kept_s: float = KEPT_S,
    ) -> None:
        self._make_reader = make_reader
        self._torch_usage = torch_usage
        self._period_s = period_s
        self._readings: deque[tuple[float, Reading]] = deque(maxlen=max(1, round(kept_s / period_s)))
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read. Raises RuntimeError when it has begun before: a closed service stays closed."""
        with self._changed:
            if self._thread is not None or self._stop.is_set():
                raise RuntimeError("telemetry starts once")
            self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float = 5.0) -> bool:
        """End the thread. False when the driver held it longer than `timeout_s`; a second call is harmless."""
        self._stop.set()
        with self._changed:
            thread = self._thread
            self._changed.notify_all()
        if thread is None:
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    @property
    def running(self) -> bool:
        """Whether readings still come."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    @property
    def latest(self) -> Reading | None:
        """The newest reading; None before the first."""
        with self._changed:
            return self._newest()

    def recent(self, seconds: float = KEPT_S) -> tuple[Reading, ...]:
        """The readings of the last `seconds`, oldest first, as far back as they are kept."""
        since = time.monotonic() - seconds
        with self._changed:
            return tuple(reading for read_s, reading in self._readings if read_s >= since)

    def wait_newer(self, than: Reading | None, timeout_s: float) -> Reading | None:
        """The newest reading once it is another than `than`; after `timeout_s`, or at the end, what there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop.is_set() or self._newest() is not than, timeout_s)
            return self._newest()

    def _newest(self) -> Reading | None:
        return self._readings[-1][1] if self._readings else None

    def _run(self) -> None:
        reader = self._make_reader()
        reader.open()
        try:
            due = time.monotonic()
            while not self._stop.is_set():
                self._keep(reader.read().with_torch(self._torch_usage()))
                due = max(due + self._period_s, time.monotonic())  # a slow reading is not caught up with
                self._stop.wait(due - time.monotonic())
        finally:
            reader.close()

    def _keep(self, reading: Reading) -> None:
        with self._changed:
            self._readings.append((time.monotonic(), reading))
            self._changed.notify_all()
