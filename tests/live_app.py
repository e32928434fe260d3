"""The application as a real process."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
START_LIMIT_S = 90


@contextlib.contextmanager
def running_app(data: Path, *options: str) -> Iterator[str]:
    """`python app.py` until the end of the block, then SIGTERM, which must end it with status 0. Yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--data", str(data), "--port", str(port), "--offline", *options]
    data.parent.mkdir(parents=True, exist_ok=True)
    with (data.parent / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}/"
        _wait_until_up(url, process)
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()


def _wait_until_up(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url + "healthz").status_code == 200:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing answers at {url}; exit status {process.poll()}")
