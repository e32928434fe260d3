"""Downloads from a stand-in of the hub on this machine: progress, stop and resume, refusals, silence."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK_BYTES = 64 * 1024

CLIENT = """
import json, sys, time
from pathlib import Path
from huggingface_hub import constants
from zimage_studio.core import hub
from zimage_studio.errors import Cancelled, ModelError
cache, repo_id, stop_at = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
constants.DOWNLOAD_CHUNK_SIZE = 65536  # 10 MB by default, more than this whole model
seen = []
def progress(done, total, note, /, preview=None):
    seen.append((done, total, note))
    if done >= stop_at:
        raise Cancelled
started = time.perf_counter()
answer = {}
try:
    answer["folder"] = str(hub.find_or_download(repo_id, cache=cache, progress=progress))
except ModelError as error:
    answer["error"] = error.key
except Cancelled:
    answer["error"] = "cancelled"
answer |= {"seconds": time.perf_counter() - started, "seen": seen, "torch": "torch" in sys.modules}
print(json.dumps(answer))
"""


class StandIn(ThreadingHTTPServer):
    """What huggingface_hub asks of a hub, for one repository made from a folder."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.asked: list[str] = []
        self.chunk_delay_s = 0.0
        self.mute_s = 0.0
        self.status = 200


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, *, head: bool) -> None:
        time.sleep(self.server.mute_s)
        path = self.path.split("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if self.server.status != 200:
            self._send(b"{}", {"X-Error-Code": "RepoNotFound"} if self.server.status == 401 else {}, self.server.status)
        elif "/resolve/" in path:
            self._file(path.split(f"/resolve/{COMMIT}/")[-1].split("/resolve/main/")[-1], head)
        elif "/tree/" in path:
            self._json([{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in self._files().items()])
        else:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self._files().items()]
            self._json({"id": "a/b", "modelId": "a/b", "sha": COMMIT, "siblings": siblings})

    def _files(self) -> dict[str, bytes]:
        return self.server.files

    def _json(self, data: object) -> None:
        self._send(json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, head: bool) -> None:
        content = self._files()[name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{hash(name) & 0xFFFFFFFF:040x}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(content[start:], headers, 206 if start else 200, head=head)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200, *, head: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, 0 if head else len(body), CHUNK_BYTES):
            try:
                self.wfile.write(body[start : start + CHUNK_BYTES])
            except OSError:
                return
            time.sleep(self.server.chunk_delay_s if len(body) > CHUNK_BYTES else 0)


@pytest.fixture
def hub(random_folder: Path, tmp_path: Path) -> Iterator[StandIn]:
    server = StandIn(random_folder)
    server.files |= {"README.md": b"x" * 10, "pytorch_model.bin": b"x" * 10, "assets/show.png": b"x" * 10}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(hub: StandIn, cache: Path, *, stop_at: float = 1e18, **environment: str) -> dict:
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    run = subprocess.run(
        [sys.executable, "-c", CLIENT, str(cache), "someone/z-image", str(stop_at)],
        env=os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(cache.parent / "home"), "NO_PROXY": "*"} | environment,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_model_is_downloaded_once_with_progress_in_bytes_and_without_torch(hub, tmp_path, random_folder):
    hub.chunk_delay_s = 0.01
    answer = ask(hub, tmp_path / "hub")
    folder = Path(answer["folder"])
    wanted = {n: c for n, c in hub.files.items() if not n.endswith((".md", ".bin", ".png"))}
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == wanted
    total = sum(map(len, wanted.values()))
    assert {note for *_, note in answer["seen"]} == {"note.downloading"}
    assert max(t for _, t, _ in answer["seen"]) == total
    between = [done for done, *_ in answer["seen"] if 0 < done < total]
    assert between == sorted(between)
    assert len(set(between)) >= 3
    assert not answer["torch"]
    hub.asked.clear()
    assert ask(hub, tmp_path / "hub")["folder"] == answer["folder"]
    assert ask(hub, tmp_path / "hub", HF_HUB_OFFLINE="1")["folder"] == answer["folder"]
    assert not hub.asked


def test_a_stopped_download_stops_soon_and_goes_on_where_it_was(hub, tmp_path):
    hub.chunk_delay_s = 0.05
    answer = ask(hub, tmp_path / "hub", stop_at=500_000)
    assert answer["error"] == "cancelled"
    assert answer["seen"][-1][0] < answer["seen"][-1][1]
    hub.chunk_delay_s = 0.0
    again = ask(hub, tmp_path / "hub")
    assert Path(again["folder"], "model_index.json").is_file()


def test_half_a_download_is_not_taken_for_a_model(hub, tmp_path):
    hub.chunk_delay_s = 0.05
    ask(hub, tmp_path / "hub", stop_at=500_000)
    assert ask(hub, tmp_path / "hub", HF_HUB_OFFLINE="1")["error"] == "model_not_here"


def test_another_pipeline_is_refused_before_a_weight_is_fetched(hub, tmp_path):
    hub.files["model_index.json"] = json.dumps({"_class_name": "FluxPipeline"}).encode()
    assert ask(hub, tmp_path / "hub")["error"] == "model_other_pipeline"
    assert not any("safetensors" in request for request in hub.asked)


def test_a_repository_that_is_no_pipeline_is_refused(hub, tmp_path):
    del hub.files["model_index.json"]
    assert ask(hub, tmp_path / "hub")["error"] == "model_no_index"


@pytest.mark.parametrize(("status", "key"), [(401, "model_not_on_hub"), (503, "model_not_here")])
def test_a_hub_that_says_no_is_not_asked_again_and_again(hub, tmp_path, status, key):
    hub.status = status
    answer = ask(hub, tmp_path / "hub")
    assert answer["error"] == key
    assert len(hub.asked) <= 3
    assert answer["seconds"] < 5


def test_a_hub_that_never_answers_is_given_up_within_seconds(hub, tmp_path):
    hub.mute_s = 20
    answer = ask(hub, tmp_path / "hub")
    assert answer["error"] == "model_not_here"
    assert answer["seconds"] < 7


def test_a_hub_that_is_not_there_is_given_up_at_once(hub, tmp_path):
    answer = ask(hub, tmp_path / "hub", HF_ENDPOINT="http://127.0.0.1:9")
    assert answer["error"] == "model_not_here"
    assert answer["seconds"] < 5
