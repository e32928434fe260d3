"""The login: one page, a check that takes as long for unknown users, a lock after five failures, tokens that expire."""

import hashlib
import html
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.messages import Lang, say
from zimage_studio.settings import AUTO_LOGIN, Settings
from zimage_studio.web.answers import cookies_of, language_of, redirect, refusal, wants_page

COOKIE = "zimage_session"
TOKEN_LIFE_S = 12 * 3600.0
MAX_TOKENS = 1000
MAX_FAILURES = 5
FAILURE_WINDOW_S = 5 * 60.0
LOCK_S = 15 * 60.0
MAX_TRACKED = 10_000
MIN_PASSWORD = 4
MIN_PUBLIC_PASSWORD = 12
MAX_PASSWORD = 256
MAX_USER = 64
AUTO_USER = "studio"
PUBLIC = re.compile(r"(?:/zh)?/login/?|/healthz|/readyz")
LOCAL_PATH = re.compile(r"/(?![/\\])[\w./?=&%-]*")


def read_logins(settings: Settings) -> tuple[dict[str, str], str]:
    """The logins by user, and the password that was made up for `auto` (else empty), to be shown once."""
    lines = list(settings.auth)
    if settings.auth_file is not None:
        lines += _read_file(settings.auth_file)
    made = ""
    logins: dict[str, str] = {}
    for line in lines:
        if line == AUTO_LOGIN:
            made = secrets.token_urlsafe(18)
            logins[AUTO_USER] = made
            continue
        user, colon, password = line.partition(":")
        if not colon or not 0 < len(user) <= MAX_USER or not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
            raise InvalidInputError("bad_login", field="auth", high_user=MAX_USER, low=MIN_PASSWORD, high=MAX_PASSWORD)
        logins[user] = password
    return logins, made


def _read_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("login_file_unreadable", field="auth_file", value=path, why=error) from error
    return [line for line in lines if line.strip() and not line.startswith("#")]


def check_exposure(settings: Settings, logins: Mapping[str, str]) -> None:
    """Refuse to be reachable by others without a login, and by everyone with a weak one."""
    if settings.share and settings.offline:
        raise UserError("share_offline")
    if settings.insecure_no_auth or (settings.loopback and not settings.share):
        return
    if not logins:
        raise UserError("login_needed", value="the public link" if settings.share else settings.host)
    for user, password in logins.items():
        if settings.share and len(password) < MIN_PUBLIC_PASSWORD:
            raise UserError("weak_login", value=user, low=MIN_PUBLIC_PASSWORD)


class Limiter:
    """Counts failures by (user, address): the fifth within five minutes locks that pair for fifteen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()
        self._locked: OrderedDict[tuple[str, str], float] = OrderedDict()

    def locked_s(self, user: str, address: str) -> float:
        """Seconds until this pair may try again; 0 when it may now."""
        until = self._locked.get((user, address), 0.0)
        return max(0.0, until - self._clock())

    def failed(self, user: str, address: str) -> None:
        """Note one failure."""
        now, key = self._clock(), (user, address)
        recent = self._failures.setdefault(key, deque(maxlen=MAX_FAILURES))
        recent.append(now)
        self._failures.move_to_end(key)
        if len(recent) == MAX_FAILURES and now - recent[0] <= FAILURE_WINDOW_S:
            self._locked[key] = now + LOCK_S
            del self._failures[key]
        for table in (self._failures, self._locked):
            while len(table) > MAX_TRACKED:
                table.popitem(last=False)

    def passed(self, user: str, address: str) -> None:
        """Forget the failures of a pair that got it right."""
        self._failures.pop((user, address), None)


class Accounts:
    """Who may enter, and who has. All in memory: a restart logs everybody out."""

    def __init__(self, logins: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._digests = {user: _digest(password) for user, password in logins.items()}
        self._tokens: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._clock = clock
        self.limiter = Limiter(clock)

    def check(self, user: str, password: str) -> bool:
        """Whether the pair is right; every known user is compared, whoever is asked for."""
        given_user, given = user.encode(errors="replace"), _digest(password)
        right = False
        for known, digest in self._digests.items():
            right |= secrets.compare_digest(known.encode(), given_user) & secrets.compare_digest(digest, given)
        return right

    def open(self, user: str) -> str:
        """A new random token for `user`."""
        token = secrets.token_urlsafe(32)
        self._tokens[token] = (user, self._clock() + TOKEN_LIFE_S)
        while len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)
        return token

    def user_of(self, token: str) -> str | None:
        """The user a token belongs to, while it lasts."""
        user, until = self._tokens.get(token, ("", 0.0))
        if not user:
            return None
        if until <= self._clock():
            del self._tokens[token]
            return None
        return user

    def close(self, token: str) -> None:
        """Log out."""
        self._tokens.pop(token, None)


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode(errors="replace")).digest()


class LoginDoor:
    """In front of all routes but the login page and the two health addresses."""

    def __init__(self, app: ASGIApp, *, accounts: Accounts, lang: Lang) -> None:
        self._app = app
        self._accounts = accounts
        self._lang: Lang = lang

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or PUBLIC.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        user = self._accounts.user_of(cookies_of(Headers(scope=scope)).get(COOKIE, ""))
        if user is None:
            await self._turn_away(scope)(scope, receive, send)
            return
        await self._app({**scope, "zimage_user": user}, receive, send)

    def _turn_away(self, scope: Scope) -> Response:
        if wants_page(scope):
            return redirect("/login?next=" + quote(scope["path"], safe="/"))
        return refusal(scope, 401, "web.login", self._lang)


def user_of_request(request: Request) -> str | None:
    """For Gradio's `auth_dependency`: the user that LoginDoor found."""
    user: str | None = request.scope.get("zimage_user")
    return user


def login_routes(accounts: Accounts, default: Lang, share_hosts: Callable[[], set[str]]) -> APIRouter:
    """The login page, the form it sends (also what gradio_client sends), and the way out."""
    router = APIRouter()

    def address_of(request: Request) -> str:
        """Where a guess comes from. All of a public link count as one place, apart from this machine."""
        host = request.headers.get("host", "").partition(":")[0]
        if host in share_hosts():
            return "public link"
        return request.client.host if request.client else ""

    @router.get("/login")
    @router.get("/zh/login")
    def login_page(request: Request, next: str = "/") -> HTMLResponse:
        return _page(language_of(request.headers, default), _local(next))

    @router.post("/login")
    @router.post("/login/")
    @router.post("/zh/login")
    @router.post("/zh/login/")
    def log_in(
        request: Request,
        username: Annotated[str, Form(max_length=MAX_USER)],
        password: Annotated[str, Form(max_length=MAX_PASSWORD)],
        next: Annotated[str, Form(max_length=500)] = "/",
    ) -> Response:
        lang = language_of(request.headers, default)
        is_form = "text/html" in request.headers.get("accept", "")
        user, address = username.strip(), address_of(request)
        locked_s = accounts.limiter.locked_s(user, address)
        if not locked_s and accounts.check(user, password):
            accounts.limiter.passed(user, address)
            response = redirect(_local(next)) if is_form else JSONResponse({"success": True})
            secure = request.url.scheme == "https"
            response.set_cookie(
                COOKIE, accounts.open(user), max_age=int(TOKEN_LIFE_S), httponly=True, samesite="lax", secure=secure
            )
            return response
        if not locked_s:
            accounts.limiter.failed(user, address)
            text, status = say("login.wrong", lang), 401
        else:
            text, status = say("login.locked", lang, minutes=int(locked_s // 60) + 1), 429
        if is_form:
            return _page(lang, _local(next), text, status)
        return JSONResponse({"error": text, "detail": text}, status_code=status)

    @router.get("/logout")
    def log_out(request: Request) -> Response:
        accounts.close(request.cookies.get(COOKIE, ""))
        response = redirect("/login")
        response.delete_cookie(COOKIE)
        return response

    return router


def _local(target: str) -> str:
    """`target` when it is a page of ours, else the start: never a way to another site."""
    return target if LOCAL_PATH.fullmatch(target) else "/"


def _page(lang: Lang, target: str, failure: str = "", status: int = 200) -> HTMLResponse:
    words = {name: html.escape(say(f"login.{name}", lang)) for name in ("title", "user", "password", "button")}
    template = Path(__file__).with_name("login.html").read_text(encoding="utf-8")
    shown = f'<p role="alert">{html.escape(failure)}</p>' if failure else ""
    values = {**words, "lang": "zh-CN" if lang == "zh" else "en", "failure": shown, "next": html.escape(target)}
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
    return HTMLResponse(text, status_code=status, headers={"cache-control": "no-store"})
