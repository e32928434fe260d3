"""The public link: Gradio's tunnel program, verified at every start and never left behind."""

import contextlib
import hashlib
import logging
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from zimage_studio.messages import CATALOGUES, Lang, say
from zimage_studio.services import tether

log = logging.getLogger(__name__)

URL_TIMEOUT_S = 30.0
LIFETIME_S = 8 * 3600.0
URL_LINE = re.compile(r"start proxy success: (https://[A-Za-z0-9.-]+)/?\s*$")
PID_NAME = "tunnel.pid"


class ShareError(Exception):
    """Why there is no public link; `key` is a message, the app runs on."""

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(key)
        self.key = key
        self.values = values

    def text(self, lang: Lang) -> str:
        """The whole sentence."""
        return CATALOGUES[lang]["share_failed"].format(why=say(self.key, lang, **self.values))


@dataclass(frozen=True, slots=True)
class TunnelServer:
    """The far end: where the tunnel program connects, and the certificate it must show (PEM; empty for none)."""

    address: str
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class TunnelProgram:
    """The near end: the program, its published SHA-256, and how to fetch it when it is not there."""

    path: Path
    sha256: str
    fetch: Callable[[], None]

    def verified(self) -> Path:
        """The program, fetched if needed and verified now; a wrong one is removed before it can run."""
        if not self.path.exists():
            try:
                self.fetch()
            except (httpx.HTTPError, OSError) as error:
                raise ShareError("share_no_binary") from error
        if not self.path.is_file():
            raise ShareError("share_no_binary")
        if hashlib.sha256(self.path.read_bytes()).hexdigest() != self.sha256:
            self.path.unlink()
            raise ShareError("share_checksum", value=self.path.name)
        return self.path


def gradio_program() -> TunnelProgram:
    """The tunnel program that Gradio publishes for this machine."""
    from gradio import tunneling
    from gradio.exceptions import ChecksumMismatchError

    def fetch() -> None:
        with contextlib.suppress(ChecksumMismatchError):  # `verified` finds it too, and removes it
            tunneling.Tunnel.download_binary()

    sha256 = tunneling.CHECKSUMS.get(tunneling.BINARY_URL)
    if sha256 is None:
        raise ShareError("share_platform")
    return TunnelProgram(Path(tunneling.BINARY_PATH), sha256, fetch)


def gradio_server() -> TunnelServer:
    """The tunnel server that Gradio offers at the moment."""
    from gradio.networking import GRADIO_API_SERVER

    try:
        offer = httpx.get(GRADIO_API_SERVER, timeout=30).raise_for_status().json()[0]
        return TunnelServer(f"{offer['host']}:{int(offer['port'])}", str(offer["root_ca"]))
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ShareError("share_no_server") from error


class PublicLink:
    """One tunnel. `prepare` may block for long; `start` must run in the main thread; `close` ends it for sure.

    The child is tied to the *thread* that starts it, which is why that must be the one that lives longest.
    """

    def __init__(
        self,
        folder: Path,
        *,
        find_program: Callable[[], TunnelProgram] = gradio_program,
        find_server: Callable[[], TunnelServer] = gradio_server,
        url_timeout_s: float = URL_TIMEOUT_S,
    ) -> None:
        self._folder = folder
        self._find_program = find_program
        self._find_server = find_server
        self._url_timeout_s = url_timeout_s
        self._child: subprocess.Popen[str] | None = None
        self._urls: queue.Queue[str] = queue.Queue()
        self.url = ""

    def prepare(self) -> list[str]:
        """Verify the program, ask for a server; the command line without the local end. Uses the network."""
        program, server = self._find_program().verified(), self._find_server()
        command = [str(program), "http", "-n", secrets.token_urlsafe(32), "--uc", "--sd", "random", "--ue"]
        command += ["--server_addr", server.address, "--disable_log_color"]
        if server.certificate:
            certificate = self._folder / "tunnel.pem"
            certificate.write_text(server.certificate, encoding="ascii")
            command += ["--tls_enable", "--tls_trusted_ca_file", str(certificate)]
        return command

    def start(self, command: list[str], port: int) -> None:
        """Start the program, tied to this process. Returns at once."""
        tied = [sys.executable, "-I", str(Path(tether.__file__)), str(os.getpid())]
        self._child = subprocess.Popen(
            [*tied, *command, "-l", str(port), "-i", "127.0.0.1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        (self._folder / PID_NAME).write_text(f"{self._child.pid} {command[0]}", encoding="utf-8")
        threading.Thread(target=self._listen, args=(self._child,), name="tunnel-log", daemon=True).start()

    def wait(self) -> str:
        """The public address, as soon as the tunnel says it."""
        try:
            self.url = self._urls.get(timeout=self._url_timeout_s)
        except queue.Empty:
            self.url = ""
        if not self.url:
            self.close()
            raise ShareError("share_no_url", seconds=round(self._url_timeout_s))
        return self.url

    @property
    def alive(self) -> bool:
        """Whether the tunnel runs."""
        return self._child is not None and self._child.poll() is None

    def close(self) -> None:
        """End the tunnel and wait until it is gone."""
        self.url = ""
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(2)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        (self._folder / PID_NAME).unlink(missing_ok=True)

    def _listen(self, child: "subprocess.Popen[str]") -> None:
        """Read what the tunnel says until it ends: a full pipe would stop it."""
        assert child.stdout is not None
        for line in child.stdout:
            found = URL_LINE.search(line)
            if found:
                self._urls.put(found[1])
            log.debug("tunnel: %s", ascii(line.strip()))
        self._urls.put("")


def sweep_tunnel(folder: Path) -> bool:
    """End a tunnel that an earlier process left behind. Only when the pid still runs that very program."""
    note = folder / PID_NAME
    if not note.is_file():
        return False
    pid, _, program = note.read_text(encoding="utf-8").partition(" ")
    note.unlink()
    command_line = Path(f"/proc/{pid}/cmdline")
    if not pid.isdigit() or not command_line.exists():
        return False
    try:
        if program.encode() not in command_line.read_bytes().split(b"\0"):
            return False
        os.kill(int(pid), signal.SIGKILL)
    except OSError:
        return False
    time.sleep(0.05)
    return True
