"""Servers in processes of their own, with the real guards."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx

SMALL_APP = Path(__file__).with_name("small_app.py")
START_LIMIT_S = 60
LOGINS = ("--auth", "ana:correct horse", "--auth", "bo:staple")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Server:
    """A running server; `url` has no slash at its end."""

    process: subprocess.Popen[bytes]
    url: str
    data: Path
    log_path: Path

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, **options)  # type: ignore[arg-type]

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def running(data: Path, *options: str, environ: Mapping[str, str] = MappingProxyType({})) -> Iterator[Server]:
    """A server from small_app.py that answers; killed at the end if it still runs."""
    port = free_port()
    data.mkdir(parents=True, exist_ok=True)
    log_path = data / "server.log"
    command = [sys.executable, str(SMALL_APP), "--port", str(port), "--data", str(data), *options]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ZIMAGE_")}
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**clean, **environ})
    server = Server(process, f"http://127.0.0.1:{port}", data, log_path)
    try:
        wait_until_up(server)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_up(server: Server) -> None:
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end and server.process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(server.url + "/healthz", timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"the server did not come up:\n{server.log()}")
