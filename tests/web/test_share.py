"""The public link, against a stand-in for the tunnel program; nothing here uses the network."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.web.servers import running
from zimage_studio.web.share import PID_NAME, PublicLink, ShareError, TunnelProgram, TunnelServer, sweep_tunnel

GOOD = "echo 'start proxy success: https://abc123.gradio.live'\nexec sleep 600\n"
FULL_PIPE = "echo 'start proxy success: https://abc123.gradio.live'\nwhile true; do echo noise noise noise; done\n"
REFUSED = "echo 'login to server failed'\nexit 1\n"
SILENT = "exec sleep 600\n"
LOGIN = ("--auth", "ana:a long enough password")


def program(folder: Path, script: str, sha256: str = "") -> TunnelProgram:
    path = folder / "tunnel"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o700)
    return TunnelProgram(path, sha256 or hashlib.sha256(path.read_bytes()).hexdigest(), fetch=lambda: None)


def link_to(folder: Path, tunnel: TunnelProgram) -> PublicLink:
    return PublicLink(
        folder, find_program=lambda: tunnel, find_server=lambda: TunnelServer("127.0.0.1:1", "pem"), url_timeout_s=3
    )


def until_gone(process: psutil.Process) -> bool:
    end = time.monotonic() + 3
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_the_link_opens_and_its_program_ends_with_it(tmp_path: Path) -> None:
    link = link_to(tmp_path, program(tmp_path, GOOD))
    link.start(link.prepare(), 7860)
    assert link.wait() == "https://abc123.gradio.live"
    child = psutil.Process(int((tmp_path / PID_NAME).read_text().split()[0]))
    assert link.alive
    link.close()
    assert until_gone(child)
    assert not (tmp_path / PID_NAME).exists()


def test_a_talkative_tunnel_is_not_held_up(tmp_path: Path) -> None:
    link = link_to(tmp_path, program(tmp_path, FULL_PIPE))
    link.start(link.prepare(), 7860)
    assert link.wait()
    link.close()


@pytest.mark.parametrize("script", [REFUSED, SILENT])
def test_f43_a_tunnel_that_gives_no_address_leaves_nothing_behind(tmp_path: Path, script: str) -> None:
    link = link_to(tmp_path, program(tmp_path, script))
    link.start(link.prepare(), 7860)
    with pytest.raises(ShareError) as caught:
        link.wait()
    assert "Studio runs on" in caught.value.text("en")
    assert "公开链接" in caught.value.text("zh")
    assert not link.alive


def test_g7_the_checksum_is_verified_at_every_start_and_a_wrong_program_removed(tmp_path: Path) -> None:
    tunnel = program(tmp_path, GOOD)
    link = link_to(tmp_path, tunnel)
    link.prepare()
    tunnel.path.write_text("#!/bin/sh\necho tampered\n")
    with pytest.raises(ShareError, match="checksum"):
        link.prepare()
    assert not tunnel.path.exists()
    with pytest.raises(ShareError, match="binary"):
        link.prepare()


def test_a_tunnel_left_behind_is_swept_at_the_next_start_but_no_stranger(tmp_path: Path) -> None:
    orphan = subprocess.Popen(["/bin/sleep", "600"])
    while psutil.Process(orphan.pid).cmdline() != ["/bin/sleep", "600"]:
        time.sleep(0.01)  # between fork and exec it has none
    (tmp_path / PID_NAME).write_text(f"{orphan.pid} /some/other/program")
    assert not sweep_tunnel(tmp_path)
    assert orphan.poll() is None
    (tmp_path / PID_NAME).write_text(f"{orphan.pid} /bin/sleep")
    assert sweep_tunnel(tmp_path)
    assert orphan.wait(3) == -signal.SIGKILL
    assert not sweep_tunnel(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to its parent")
def test_g6_the_program_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from zimage_studio.web.share import PublicLink\n"
        "link = PublicLink(Path(sys.argv[1])); link.start(['/bin/sleep', '600'][:1] + ['600'], 1); time.sleep(600)\n"
    )
    root = Path(__file__).parent.parent.parent
    script = tmp_path / "wait"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o700)
    code = code.replace("['/bin/sleep', '600'][:1] + ['600']", repr([str(script)]))
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root)
    end = time.monotonic() + 20
    while not (tmp_path / PID_NAME).exists() and time.monotonic() < end:
        time.sleep(0.05)
    child = psutil.Process(int((tmp_path / PID_NAME).read_text().split()[0]))
    while "sleep" not in child.name() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert until_gone(child)


def test_p65_the_public_name_is_answered_over_https_while_the_link_lives_and_no_tunnel_is_left(tmp_path: Path) -> None:
    tunnel = program(tmp_path, GOOD)
    environ = {"STUB_TUNNEL": str(tunnel.path), "STUB_SHA256": tunnel.sha256}
    with running(tmp_path / "data", "--share", *LOGIN, environ=environ) as server:
        end = time.monotonic() + 10
        while "gradio.live" not in server.log() and time.monotonic() < end:
            time.sleep(0.1)
        public = {"Host": "abc123.gradio.live"}
        form = {"username": "ana", "password": "a long enough password"}
        answer = httpx.post(server.url + "/login", data=form, headers=public)
        assert "secure" in answer.headers["set-cookie"].lower()
        cookie = {"Cookie": answer.headers["set-cookie"].split(";")[0]}
        root = httpx.get(server.url + "/config", headers=public | cookie).json()["root"]
        assert root == "https://abc123.gradio.live"
        assert httpx.get(server.url + "/config", headers={"Host": "other.gradio.live"} | cookie).status_code == 421
        child = psutil.Process(int((server.data / PID_NAME).read_text().split()[0]))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert until_gone(child)


def test_g7_a_tampered_program_costs_the_link_and_not_the_app(tmp_path: Path) -> None:
    tunnel = program(tmp_path, GOOD, sha256="0" * 64)
    environ = {"STUB_TUNNEL": str(tunnel.path), "STUB_SHA256": tunnel.sha256}
    with running(tmp_path / "data", "--share", *LOGIN, environ=environ) as server:
        end = time.monotonic() + 10
        while "no public link" not in server.log() and time.monotonic() < end:
            time.sleep(0.1)
        assert "is not the one that was published" in server.log()
        assert httpx.get(server.url + "/readyz").status_code == 200
