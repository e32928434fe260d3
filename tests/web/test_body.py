"""Bodies that are too large, too many, nameless or endless."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.web.servers import Server

UPLOAD = "/gradio_api/upload"
MIB = 1 << 20


def resident_mib(server: Server) -> float:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096 / MIB


def post_until_answer(server: Server, path: str, content: object, headers: dict[str, str]) -> int:
    """The status; a server that has answered may close while we still write, which also counts as cut."""
    try:
        return httpx.post(server.url + path, content=content, headers=headers, timeout=20).status_code  # type: ignore[arg-type]
    except httpx.WriteError:
        return 413


def chunks(count: int, piece: bytes = b"x" * 65536) -> Iterator[bytes]:
    yield b'{"data": ["'
    for _ in range(count):
        yield piece
    yield b'"]}'


@pytest.mark.parametrize("path", ["/gradio_api/call/echo", "/gradio_api/queue/join", "/zh/gradio_api/queue/join"])
def test_s4_a_large_json_body_is_413_and_costs_no_memory(plain: Server, path: str) -> None:
    before = resident_mib(plain)
    body = b'{"data":["' + b"x" * (60 * MIB) + b'"]}'
    assert post_until_answer(plain, path, body, {"Content-Type": "application/json"}) == 413
    assert resident_mib(plain) - before < 100


def test_p25_a_chunked_body_is_counted_and_cut(plain: Server) -> None:
    before = resident_mib(plain)
    assert post_until_answer(plain, "/gradio_api/call/echo", chunks(800), {"Content-Type": "application/json"}) == 413
    assert resident_mib(plain) - before < 100


def test_a_short_chunked_body_is_fine(plain: Server) -> None:
    response = httpx.post(plain.url + "/gradio_api/call/echo", content=chunks(1, b"hi"),
                          headers={"Content-Type": "application/json"})  # fmt: skip
    assert response.status_code == 200


def test_s4_a_large_body_is_refused_before_the_login_reads_it(locked: Server) -> None:
    before = resident_mib(locked)
    post_until_answer(
        locked, "/login", b"username=" + b"x" * (60 * MIB), {"Content-Type": "application/x-www-form-urlencoded"}
    )
    post_until_answer(locked, "/gradio_api/queue/join", b"x" * (60 * MIB), {"Content-Type": "application/json"})
    assert resident_mib(locked) - before < 100


def test_an_ordinary_upload_arrives(plain: Server) -> None:
    response = httpx.post(plain.url + UPLOAD, files={"files": ("a.png", b"0" * (20 * MIB))}, timeout=20)
    assert response.status_code == 200
    assert len(httpx.get(f"{plain.url}/gradio_api/file={response.json()[0]}").content) == 20 * MIB


def test_an_upload_over_25_mb_is_cut(plain: Server) -> None:
    before = resident_mib(plain)
    files = {"files": ("a.png", b"0" * (40 * MIB))}
    request = httpx.Request("POST", plain.url + UPLOAD, files=files)
    assert post_until_answer(plain, UPLOAD, request.read(), {"Content-Type": request.headers["Content-Type"]}) == 413
    assert resident_mib(plain) - before < 100


def test_an_endless_chunked_upload_is_cut(plain: Server) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(1600):
            yield b"0" * 65536

    assert post_until_answer(plain, UPLOAD, endless(), {"Content-Type": "multipart/form-data; boundary=b"}) == 413


def test_p22_a_thousand_files_are_refused(plain: Server) -> None:
    files = [("files", (f"{number}.png", b"1")) for number in range(1000)]
    assert httpx.post(plain.url + UPLOAD, files=files, timeout=20).status_code == 413


def test_p23_a_part_without_a_file_name_is_refused_unread(plain: Server) -> None:
    before = resident_mib(plain)
    body = b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + b"x" * (24 * MIB) + b"\r\n--b--\r\n"
    assert post_until_answer(plain, UPLOAD, body, {"Content-Type": "multipart/form-data; boundary=b"}) == 413
    assert resident_mib(plain) - before < 100


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data", "application/json", "multipart/form-data; boundary="]
)
def test_b100_an_upload_of_another_type_is_refused(plain: Server, kind: str) -> None:
    response = httpx.post(plain.url + UPLOAD, content=b"--b\r\n", headers={"Content-Type": kind})
    assert response.status_code in (400, 413, 415)


def test_malformed_multipart_is_refused(plain: Server) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert httpx.post(plain.url + UPLOAD, content=b"not multipart at all", headers=headers).status_code == 400


@pytest.mark.parametrize("path", ["http://example.com/x.png", "HTTPS://example.com/x", " http://x"])
def test_a_file_that_is_an_address_is_refused_before_gradio_fetches_it(plain: Server, path: str) -> None:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    bodies = {
        "/gradio_api/call/size": {"data": [file]},
        "/gradio_api/call/echo": {"data": [{"deep": [file]}]},
        "/gradio_api/call/v2/echo": {"text": file},
        "/gradio_api/queue/join": {"data": [file], "fn_index": 0, "session_hash": "a"},
    }
    for address, body in bodies.items():
        answer = httpx.post(plain.url + address, json=body)
        assert (answer.status_code, "Studio fetches nothing" in answer.text) == (422, True), address


def test_p19_p20_only_pictures_are_shown_inline(plain: Server) -> None:
    html = ("x.html", b"<script>alert(1)</script>", "text/html")
    url = httpx.post(plain.url + UPLOAD, files={"files": html}).json()[0]
    response = httpx.get(f"{plain.url}/gradio_api/file={url}")
    assert response.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
