"""Stopping: by a signal, twice, on a taken port, and under supervisor."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.web.servers import SMALL_APP, Server, free_port, running, wait_until_up

ROOT = SMALL_APP.parent.parent.parent


def start_slow(server: Server, seconds: float) -> tuple[threading.Thread, list[str]]:
    """A call that takes `seconds`, and the list its answer will be in."""
    event = httpx.post(server.url + "/gradio_api/call/slow", json={"data": [seconds]}).json()["event_id"]
    answers: list[str] = []

    def read() -> None:
        with contextlib.suppress(httpx.HTTPError):  # a server that ends at once breaks the stream
            answers.append(httpx.get(f"{server.url}/gradio_api/call/slow/{event}", timeout=30).text)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(0.5)
    return reader, answers


def test_r8_a_running_call_finishes_new_work_is_refused_and_the_status_is_0(tmp_path: Path) -> None:
    with running(tmp_path / "data") as server:
        heartbeat = httpx.Client(timeout=60)
        stream = heartbeat.stream("GET", server.url + "/gradio_api/heartbeat/abc")
        stream.__enter__()
        reader, answers = start_slow(server, 3)
        assert httpx.get(server.url + "/readyz").status_code == 200
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        refused = httpx.post(server.url + "/gradio_api/call/slow", json={"data": [1]})
        ready = httpx.get(server.url + "/readyz")
        assert (refused.status_code, ready.status_code, ready.json()) == (503, 503, {"status": "stopping"})
        assert httpx.get(server.url + "/healthz").status_code == 200
        assert server.process.wait(45) == 0
        assert time.monotonic() - start < 12
        reader.join()
        assert "finished" in answers[0]
        heartbeat.close()


def test_r8_a_call_that_takes_too_long_is_cut_and_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path / "data") as server:
        start_slow(server, 600)
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert server.process.wait(5) == 128 + signal.SIGINT
        assert time.monotonic() - start < 1
        assert not [child for child in children if child.is_running()]


def run_app(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "app.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_f42_a_taken_port_ends_with_98_and_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        start = time.monotonic()
        result = run_app("--port", str(port), "--data", str(tmp_path))
    assert result.returncode == 98
    assert result.stderr.splitlines() == [
        f"error: Port {port} on 127.0.0.1 is taken. End what uses it, or choose another with --port."
    ]
    assert time.monotonic() - start < 10


REFUSED = [
    (["--host", "0.0.0.0"], "--auth"),
    (["--share"], "--auth"),
    (["--port", "abc"], "abc"),
    (["--auth", "ana"], "USER:PASSWORD"),
    (["--lang", "fr"], "en, zh"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_refused_options_end_with_2_and_one_sentence(tmp_path: Path, options: list[str], text: str) -> None:
    result = run_app("--data", str(tmp_path), *options)
    assert result.returncode == 2
    assert text in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_refusals_follow_the_language(tmp_path: Path) -> None:
    assert "登录" in run_app("--data", str(tmp_path), "--host", "0.0.0.0", "--lang", "zh").stderr


def test_help_names_every_option() -> None:
    result = run_app("--help")
    assert result.returncode == 0
    for option in ["--host", "--port", "--share", "--auth", "--models", "--data", "--lang", "--model", "--offline"]:
        assert option in result.stdout


def test_importing_the_web_layer_loads_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys, zimage_studio.web.serve; sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def supervisorctl(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(folder / "supervisord.conf"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False).stdout


def test_the_supervisor_configuration_starts_stops_and_restarts(tmp_path: Path) -> None:
    """The repository's own file, with folders of the test and the small application."""
    port = free_port()
    text = (ROOT / "supervisord.conf").read_text()
    text = text.replace("startsecs=25", "startsecs=1").replace("user=", ";user=")
    text = text.replace("%(here)s/app.py", str(SMALL_APP)).replace("%(here)s", str(tmp_path))
    text = text.replace("%(here)s/.venv/bin/python", sys.executable).replace(
        f"{tmp_path}/.venv/bin/python", sys.executable
    )
    (tmp_path / "supervisord.conf").write_text(text)
    environ = {**os.environ, "ZIMAGE_PORT": str(port), "ZIMAGE_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(tmp_path / "supervisord.conf")]
    daemon = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(daemon, f"http://127.0.0.1:{port}", tmp_path, tmp_path / "zimage-studio.log")  # type: ignore[arg-type]
    try:
        wait_until_up(server)
        first = int(supervisorctl(tmp_path, "pid", "zimage-studio"))
        os.kill(first, signal.SIGKILL)
        time.sleep(1)
        wait_until_up(server)
        second = int(supervisorctl(tmp_path, "pid", "zimage-studio"))
        assert second not in (first, 0)
        assert "RUNNING" in supervisorctl(tmp_path, "status")
        supervisorctl(tmp_path, "stop", "zimage-studio")
        assert "STOPPED" in supervisorctl(tmp_path, "status")
        assert not psutil.pid_exists(second)
    finally:
        daemon.terminate()
        daemon.wait(30)
    assert "exit status 0" in (tmp_path / "supervisord.log").read_text()
