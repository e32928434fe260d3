"""A real Chromium, and the application as a real process."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_LIMIT_S = 90
StartApp = Callable[[Path], AbstractContextManager[str]]


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """Skipped where there is no Chromium; in CI its absence is a failure."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "no Chromium on this machine (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def start_app() -> StartApp:
    """`with start_app(data) as url:` runs `python app.py` until the end of the block, then ends it with SIGTERM."""

    @contextlib.contextmanager
    def start(data: Path) -> Iterator[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "app.py", "--data", str(data), "--port", str(port), "--offline"]
        data.parent.mkdir(parents=True, exist_ok=True)
        with (data.parent / "server.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}/"
            _wait_until_up(url, process)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()

    return start


def _wait_until_up(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url + "healthz").status_code == 200:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing answers at {url}; exit status {process.poll()}")


@pytest.fixture(scope="module")
def app_url(start_app: StartApp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One running application for the tests of a module."""
    with start_app(tmp_path_factory.mktemp("app") / "data") as url:
        yield url
