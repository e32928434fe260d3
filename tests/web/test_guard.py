"""The probes of a hostile network, each against a running server."""

import http.client
import json
import re
import socket
import time

import httpx
import pytest

from tests.web.servers import Server

EVIL = "https://evil.example"
ECHO = "/gradio_api/call/echo"


def call(server: Server, **options: object) -> httpx.Response:
    return httpx.post(server.url + ECHO, json={"data": ["hi"]}, timeout=20, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost.evil", "http://127.0.0.1:1", "http://localhost"])
@pytest.mark.parametrize("path", ["/config", "/zh/config", "/", "/healthz"])
def test_p38_another_origin_is_refused_and_never_told_that_it_may(plain: Server, origin: str, path: str) -> None:
    response = httpx.get(plain.url + path, headers={"Origin": origin})
    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_p38_a_preflight_is_refused_too(plain: Server) -> None:
    headers = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
    response = httpx.options(plain.url + ECHO, headers=headers)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_the_own_origin_is_welcome_and_gets_no_cors_header(plain: Server) -> None:
    response = call(plain, headers={"Origin": plain.url})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


def test_g16_an_upload_from_another_site_is_refused(plain: Server) -> None:
    url = plain.url + "/gradio_api/upload"
    assert httpx.post(url, files={"files": ("x.png", b"1")}, headers={"Origin": EVIL}).status_code == 403
    hidden = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert httpx.post(url, files={"files": ("x.png", b"1")}, headers=hidden).status_code == 403


def test_a_link_from_another_site_may_be_followed_but_not_embedded(plain: Server) -> None:
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert httpx.get(plain.url + "/zh/", headers=followed).status_code == 200
    assert httpx.get(plain.url + "/zh/", headers=followed | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


@pytest.mark.parametrize(
    "host", ["attacker-rebind.example", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1", ""]
)
def test_p40_dns_rebinding_is_misdirected(plain: Server, host: str) -> None:
    assert httpx.get(plain.url + "/config", headers={"Host": host}).status_code == 421


def test_two_host_headers_are_refused(plain: Server) -> None:
    host, port = plain.host.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(b"GET /config HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert sock.recv(20).startswith((b"HTTP/1.1 400", b"HTTP/1.1 421"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:7860"])
def test_names_of_this_machine_are_answered(plain: Server, host: str) -> None:
    assert httpx.get(plain.url + "/healthz", headers={"Host": host}).status_code == 200


def test_p41_forwarded_headers_poison_nothing(plain: Server) -> None:
    lie = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "Forwarded": "host=evil.example",
           "X-Gradio-Server": "http://evil.example"}  # fmt: skip
    for path in ("/gradio_api/info", "/config", "/", "/zh/config"):
        assert "evil.example" not in httpx.get(plain.url + path, headers=lie).text
        assert "evil.example" not in httpx.get(plain.url + path).text


@pytest.mark.parametrize(
    "path", ["/", "/zh/", "/config", "/healthz", "/nothing", "/assets/none.js", "/gradio_api/info"]
)
def test_p43_p44_every_answer_carries_the_headers(plain: Server, path: str) -> None:
    headers = httpx.get(plain.url + path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "same-origin"
    assert "server" not in headers


CLOSED = ["/monitoring", "/monitoring/summary", "/openapi.json", "/docs", "/redoc", "/pwa_icon/20000", "/pwa_icon/-1",
    "/manifest.json", "/gradio_api/openapi.json", "/gradio_api/startup-events", "/gradio_api/deep_link",
    "/gradio_api/vibe-code", "/gradio_api/proxy=http://example.org", "/gradio_api/dev/reload", "/gradio_api/runs",
    "/gradio_api/token", "/gradio_api/custom_component/1/client/x/y.js", "/gradio_api/stream/a/b/c/d.ts"]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "/zh"])
@pytest.mark.parametrize("path", CLOSED)
def test_p10_p31_p61_p62_addresses_the_page_does_not_need_are_closed(plain: Server, prefix: str, path: str) -> None:
    assert httpx.get(plain.url + prefix + path).status_code == 404


@pytest.mark.parametrize("path", ["process_recording", "vibe-edit", "component_server", "stream/x", "stream/x/close"])
def test_p61_closed_for_posts_too(plain: Server, path: str) -> None:
    assert httpx.post(f"{plain.url}/gradio_api/{path}", json={}).status_code == 404


@pytest.mark.parametrize("prefix", ["", "/zh"])
@pytest.mark.parametrize("way", ["run/echo", "api/echo", "run/predict", "api/predict", "run/hidden"])
def test_p58_the_queue_cannot_be_bypassed(plain: Server, prefix: str, way: str) -> None:
    body = {"data": ["hi"], "fn_index": 0}
    assert httpx.post(f"{plain.url}{prefix}/gradio_api/{way}", json=body).status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "%252e%252e/etc/passwd", "..%5c..%5cetc",
     "//etc/passwd", "/ETC/passwd", "http://127.0.0.1:22/", "http://169.254.169.254/", "http://[::1]/", "http://2130706433/",
     "https://example.org/", "HTTP://example.org", "file:///etc/passwd", "/proc/self/environ", "%00"],
)  # fmt: skip
def test_p01_p02_p07_p08_no_file_outside_the_cache(plain: Server, path: str) -> None:
    response = httpx.get(f"{plain.url}/gradio_api/file={path}")
    assert response.status_code in (403, 404)
    assert "passwd" not in response.text


def test_p04_p05_neither_own_files_nor_links_out_of_the_cache(plain: Server) -> None:
    secret = plain.data / "settings.toml"
    secret.write_text("# secret")
    (plain.data / "tmp" / "gradio" / "link").symlink_to(secret)
    for path in (secret, plain.data / "tmp" / "gradio" / "link", plain.data / "server.log"):
        assert httpx.get(f"{plain.url}/gradio_api/file={path}").status_code == 403
    secret.unlink()


@pytest.mark.parametrize(
    "path", ["/static/../../app.py", "/assets/%2e%2e/%2e%2e/routes.py", "/svelte/..%2f..%2froutes.py"]
)
def test_p13_static_folders_are_not_left(plain: Server, path: str) -> None:
    host, port = plain.host.split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", path)
    assert connection.getresponse().status in (403, 404)


def test_b97_an_unknown_endpoint_is_404_with_the_known_names(plain: Server) -> None:
    response = httpx.post(plain.url + "/gradio_api/call/nothing", json={"data": []})
    assert response.status_code == 404
    assert "echo" in response.json()["error"]
    assert "hidden" not in response.json()["error"]


@pytest.mark.parametrize(("number", "status"), [(9999, 404), (-1, 404), ("abc", 422), (None, 422), (True, 422)])
def test_b97_an_unknown_event_is_refused(plain: Server, number: object, status: int) -> None:
    body = {"data": ["hi"], "fn_index": number, "session_hash": "abc"}
    assert httpx.post(plain.url + "/gradio_api/queue/join", json=body).status_code == status


def test_p59_a_private_event_has_no_name(plain: Server) -> None:
    for version in ("", "v2/"):
        url = f"{plain.url}/gradio_api/call/{version}hidden"
        assert httpx.post(url, json={"data": ["hi"]}).status_code == 404


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "b", "c"]])
def test_b95_a_wrong_number_of_arguments_is_named(plain: Server, arguments: list[str]) -> None:
    response = httpx.post(plain.url + ECHO, json={"data": arguments})
    assert response.status_code == 422
    assert "echo takes 1" in response.json()["error"]


@pytest.mark.parametrize("body", [{}, {"wrong": 1}, {"text": "x", "wrong": 1}])
def test_b98_wrong_keywords_are_422(plain: Server, body: dict[str, object]) -> None:
    response = httpx.post(plain.url + "/gradio_api/call/v2/echo", json=body)
    assert response.status_code == 422
    assert "Traceback" not in response.text


BROKEN = [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 50_000, b'{"data": NaN}', b'{"data": {"a": 1}}',
    b'{"data": ["x"], "session_hash": NaN}', b'{"data": ["x"], "session_hash": "\\ud83d"}']  # fmt: skip


@pytest.mark.parametrize("body", BROKEN)
def test_s2_broken_json_is_422(plain: Server, body: bytes) -> None:
    response = httpx.post(plain.url + ECHO, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422


@pytest.mark.parametrize(
    "data",
    [[None], [1], [[]], [{}], [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}], ["\ud83d"], [True]],
)
@pytest.mark.parametrize("name", ["echo", "size", "slow", "give"])
def test_s2_odd_values_never_give_a_5xx(plain: Server, name: str, data: list[object]) -> None:
    if name == "slow":
        data = [data, 1][:1]
    response = httpx.post(
        f"{plain.url}/gradio_api/call/{name}",
        content=json.dumps({"data": data}),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code < 500
    if response.status_code == 200:
        event = response.json()["event_id"]
        answer = httpx.get(f"{plain.url}/gradio_api/call/{name}/{event}", timeout=20).text
        assert "root:" not in answer


def test_g21_an_exception_keeps_its_text_to_itself(plain: Server) -> None:
    event = httpx.post(plain.url + "/gradio_api/call/crash", json={"data": ["x"]}).json()["event_id"]
    answer = httpx.get(f"{plain.url}/gradio_api/call/crash/{event}", timeout=20).text
    assert "event: error" in answer
    assert "secret" not in answer


def test_p11_a_handler_that_echoes_a_path_gives_out_no_file(plain: Server) -> None:
    """Gradio's own check is off in a mounted app until has_launched is set."""
    for path in ("/etc/passwd", str(plain.data / "server.log"), __file__):
        event = httpx.post(plain.url + "/gradio_api/call/give", json={"data": [path]}).json()["event_id"]
        answer = httpx.get(f"{plain.url}/gradio_api/call/give/{event}", timeout=20).text
        assert "event: error" in answer


def test_refusals_speak_the_language_of_the_browser(plain: Server) -> None:
    response = httpx.get(plain.url + "/nothing", headers={"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"})
    assert re.search("[\u4e00-\u9fff]", response.json()["error"])


def test_p28_many_slow_connections_do_not_silence_the_server(plain: Server) -> None:
    host, port = plain.host.split(":")
    sockets = [socket.create_connection((host, int(port))) for _ in range(200)]
    for sock in sockets:
        sock.sendall(b"POST /gradio_api/call/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    start = time.monotonic()
    assert httpx.get(plain.url + "/healthz").status_code == 200
    assert time.monotonic() - start < 1
    for sock in sockets:
        sock.close()
