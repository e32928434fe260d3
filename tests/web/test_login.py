"""The login: what is open before it, how guessing ends, and that clients get in."""

import asyncio
from pathlib import Path

import gradio_client
import httpx
import pytest

from tests.web.servers import Server
from zimage_studio.errors import UserError
from zimage_studio.settings import Settings
from zimage_studio.web.login import LOCK_S, TOKEN_LIFE_S, Accounts, check_exposure, read_logins

ANA = {"username": "ana", "password": "correct horse"}
BROWSER = {"Accept": "text/html"}
OPEN = {"/login", "/zh/login", "/healthz", "/readyz"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def log_in(server: Server) -> httpx.Client:
    token = httpx.post(server.url + "/login", data=ANA).cookies
    return server.client(cookies=token)


ALL_ROUTES = [
    *["/", "/zh/", "/config", "/zh/config", "/theme.css", "/favicon.ico", "/robots.txt", "/assets/x.js", "/static/x"],
    *[
        "/gradio_api/info",
        "/gradio_api/app_id",
        "/gradio_api/login_check",
        "/gradio_api/user",
        "/gradio_api/queue/data",
    ],
    *["/gradio_api/heartbeat/abc", "/gradio_api/call/echo/1", "/gradio_api/file=/etc/passwd", "/lang/zh", "/logout"],
    *["/gradio_api/upload_progress", "/gradio_api/startup-events", "/openapi.json", "/monitoring", "/pwa_icon/1"],
    *["/nothing", "/login/../config", "//config", "/%2e/config", "/login%2f..%2fconfig"],
]


@pytest.mark.parametrize("path", ALL_ROUTES)
def test_p50_nothing_answers_without_a_cookie(locked: Server, path: str) -> None:
    assert httpx.get(locked.url + path).status_code in (401, 403, 404)


@pytest.mark.parametrize("path", ["cancel", "reset", "upload", "queue/join", "call/echo", "call/v2/echo", "run/echo"])
def test_g9_nothing_can_be_posted_without_a_cookie(locked: Server, path: str) -> None:
    for prefix in ("", "/zh"):
        response = httpx.post(f"{locked.url}{prefix}/gradio_api/{path}", json={"data": ["x"]})
        assert response.status_code in (401, 404)


def test_p50_at_most_five_addresses_are_open(locked: Server) -> None:
    for path in OPEN:
        assert httpx.get(locked.url + path).status_code == 200
    assert len(OPEN) <= 5


def test_g8_no_endpoint_is_named_before_the_login(locked: Server) -> None:
    for path in ("/", "/config", "/login", "/gradio_api/info", "/zh/"):
        text = httpx.get(locked.url + path, headers=BROWSER, follow_redirects=True).text
        assert not [name for name in ("echo", "whoami", "slow") if name in text]


def test_a_browser_is_led_to_the_login_page_and_back(locked: Server) -> None:
    with locked.client(headers=BROWSER, follow_redirects=True) as browser:
        page = browser.get("/zh/")
        assert page.url.path == "/login"
        assert 'value="/zh/"' in page.text
        inside = browser.post("/login", data=ANA | {"next": "/zh/"})
        assert inside.status_code == 200
        assert inside.url.path == "/zh/"


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/a\r\nX: 1"]
)
def test_the_login_leads_to_no_other_site(locked: Server, target: str) -> None:
    response = httpx.post(locked.url + "/login", data=ANA | {"next": target}, headers=BROWSER)
    assert response.headers["location"] == "/"


def test_the_login_page_speaks_chinese(locked: Server) -> None:
    assert "登录" in httpx.get(locked.url + "/login", headers={"Accept-Language": "zh-CN"}).text
    assert "Log in" in httpx.get(locked.url + "/login", headers={"Accept-Language": "en"}).text


def test_p55_the_cookie_is_closed_to_scripts_and_other_sites(locked: Server) -> None:
    cookie = httpx.post(locked.url + "/login", data=ANA).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie


def test_logging_out_ends_the_session(locked: Server) -> None:
    with log_in(locked) as client:
        assert client.get("/config").status_code == 200
        token = dict(client.cookies)
        assert token
        client.get("/logout")
        assert httpx.get(locked.url + "/config", cookies=token).status_code == 401


def test_a_forged_token_is_nothing(locked: Server) -> None:
    for token in ("", "x", "0" * 43, "%ff"):
        assert httpx.get(locked.url + "/config", headers={"Cookie": f"zimage_session={token}"}).status_code == 401


@pytest.mark.parametrize("path", ["/", "/zh/"])
def test_gradio_client_gets_in_with_auth_and_is_known_by_name(locked: Server, path: str) -> None:
    client = gradio_client.Client(locked.url + path, auth=("ana", "correct horse"), verbose=False)
    assert client.predict("hi", api_name="/echo") == ("zh:hi" if "zh" in path else "en:hi")
    assert client.predict(api_name="/whoami") == "ana"


def test_gradio_client_without_or_with_a_wrong_login_is_told_so(locked: Server) -> None:
    with pytest.raises(Exception, match="credentials"):
        gradio_client.Client(locked.url, verbose=False)
    with pytest.raises(Exception, match="credentials"):
        gradio_client.Client(locked.url, auth=("ana", "wrong password"), verbose=False)


def test_p52_guessing_ends_after_five(locked: Server) -> None:
    answers = [httpx.post(locked.url + "/login", data={"username": "bo", "password": f"guess {n}"}) for n in range(40)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 35
    assert "min" in answers[-1].json()["error"]
    right = httpx.post(locked.url + "/login", data={"username": "bo", "password": "staple"})
    assert right.status_code == 429  # the right password does not show itself while locked
    assert httpx.post(locked.url + "/login", data=ANA).status_code == 200  # another user is not locked out


def test_p53_unknown_users_get_the_same_answer(locked: Server) -> None:
    unknown = httpx.post(locked.url + "/login", data={"username": "nobody", "password": "x"})
    known = httpx.post(locked.url + "/login", data={"username": "ana", "password": "x"})
    assert (unknown.status_code, unknown.text) == (known.status_code, known.text)


def test_a_lock_opens_after_fifteen_minutes_and_old_failures_are_forgotten() -> None:
    clock = Clock()
    limiter = Accounts({"ana": "secret"}, clock).limiter
    for _ in range(4):
        limiter.failed("ana", "1.2.3.4")
    clock.now += 301
    limiter.failed("ana", "1.2.3.4")
    assert limiter.locked_s("ana", "1.2.3.4") == 0
    for _ in range(4):
        limiter.failed("ana", "1.2.3.4")
    assert limiter.locked_s("ana", "1.2.3.4") == LOCK_S
    assert limiter.locked_s("ana", "1.2.3.5") == 0
    clock.now += LOCK_S + 1
    assert limiter.locked_s("ana", "1.2.3.4") == 0


def test_a_token_expires() -> None:
    clock = Clock()
    accounts = Accounts({"ana": "secret"}, clock)
    token = accounts.open("ana")
    assert accounts.user_of(token) == "ana"
    clock.now += TOKEN_LIFE_S + 1
    assert accounts.user_of(token) is None


def test_checking_compares_the_whole_pair() -> None:
    accounts = Accounts({"ana": "secret", "bo": "staple"})
    assert accounts.check("ana", "secret")
    for pair in (
        ("ana", "staple"),
        ("bo", "secret"),
        ("", ""),
        ("nobody", "secret"),
        ("ana", ""),
        ("\ud83d", "\ud83d"),
    ):
        assert not accounts.check(*pair)


@pytest.mark.parametrize("settings", [Settings(share=True), Settings(host="0.0.0.0"), Settings(host="192.168.1.5")])
def test_s7_no_login_no_public_address(settings: Settings) -> None:
    with pytest.raises(UserError, match="--auth"):
        check_exposure(settings, {})
    check_exposure(settings, {"ana": "a long enough password"})


def test_s7_the_flag_says_so_on_purpose() -> None:
    check_exposure(Settings(host="0.0.0.0", insecure_no_auth=True), {})


def test_p65_a_weak_password_makes_no_public_link() -> None:
    with pytest.raises(UserError, match="shorter"):
        check_exposure(Settings(share=True), {"ana": "short"})
    with pytest.raises(UserError, match="network"):
        check_exposure(Settings(share=True, offline=True), {"ana": "a long enough password"})


def test_auto_makes_a_login_with_a_long_password() -> None:
    logins, made = read_logins(Settings(auth=("auto",)))
    assert logins == {"studio": made}
    assert len(made) >= 16


def test_logins_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "logins"
    file.write_text("# people\nana:a:b:c\n\n密码:很长的密码\n", encoding="utf-8")
    assert read_logins(Settings(auth_file=file))[0] == {"ana": "a:b:c", "密码": "很长的密码"}
    with pytest.raises(UserError, match="cannot be read"):
        read_logins(Settings(auth_file=tmp_path / "none"))


@pytest.mark.parametrize("login", ["ana", ":secret", "ana:", "ana:abc", "a" * 65 + ":secret"])
def test_a_malformed_login_is_refused_without_showing_it(login: str) -> None:
    with pytest.raises(UserError, match="USER:PASSWORD") as caught:
        read_logins(Settings(auth=(login,)))
    assert "secret" not in str(caught.value)


def test_four_people_at_once_are_kept_apart(locked: Server) -> None:
    async def one(number: int) -> str:
        async with httpx.AsyncClient(base_url=locked.url, timeout=20) as client:
            await client.post("/login", data=ANA)
            event = (await client.post("/gradio_api/call/echo", json={"data": [f"n{number}"]})).json()["event_id"]
            return (await client.get(f"/gradio_api/call/echo/{event}")).text

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(4)))

    for number, text in enumerate(asyncio.run(all_of_them())):
        assert f"en:n{number}" in text
