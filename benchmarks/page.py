"""How long a person waits: for the page after a start, and for the first preview after a click."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings

ROOT = Path(__file__).parent.parent
PATIENCE_S = 120


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process to the first page and to /readyz; whether torch was absent at the first."""

    page_s: float
    ready_s: float
    without_torch: bool


def start(work: Path, repeats: int) -> list[Start]:
    """Start the real application `repeats` times, after one start that warms the caches."""
    return [_one_start(work / str(number)) for number in range(repeats + 1)][1:]


def _one_start(data: Path) -> Start:
    started = time.perf_counter()
    with _application(data) as (process, address):
        _wait(f"{address}/", {"Accept": "text/html"})
        page_s = time.perf_counter() - started
        without_torch = "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        _wait(f"{address}/readyz")
        return Start(page_s, time.perf_counter() - started, without_torch)


@contextlib.contextmanager
def _application(data: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), "--data", str(data), "--offline"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait(address: str, headers: dict[str, str] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(urllib.request.Request(address, headers=headers or {}), timeout=5).read()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.02)
    raise TimeoutError(address)


def click_to_preview(work: Path, repeats: int) -> list[float]:
    """Seconds from submitting a job to the first view that holds a preview."""
    studio = build_studio(Settings(data=work, offline=True))
    studio.start()
    try:
        studio.generation.submit({"prompt": "a red circle"}, model="tiny").result(PATIENCE_S)
        return [_one_preview(studio, seed) for seed in range(repeats)]
    finally:
        studio.begin_stop()
        studio.close()


def _one_preview(studio: Studio, seed: int) -> float:
    started = time.perf_counter()
    job = studio.generation.submit({"prompt": "a red circle", "seed": seed}, model="tiny")
    view = job.view
    while view.preview is None and not view.finished:
        view = job.wait_change(view.version, 10)
    seconds = time.perf_counter() - started
    job.result(PATIENCE_S)
    return seconds
