"""Stands before every route: who may be asked for (Host), by whom (Origin), for what (addresses), and what goes out."""

import ipaddress
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zimage_studio.messages import Lang
from zimage_studio.settings import LOOPBACK, Settings
from zimage_studio.web.answers import refusal

log = logging.getLogger(__name__)

# What Gradio's page and client need; every other address of Gradio is 404, also those a later version may add.
# Not here on purpose: run and api (they pass by the queue), monitoring, openapi.json, pwa_icon, deep_link, proxy,
# vibe-*, startup-events, process_recording, dev/reload, run-history, token, stream, custom_component,
# component_server (it parses a body of any type; no component of ours asks for it).
PAGE_ADDRESSES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/(assets|static|svelte)/.+"
    r"|/gradio_api/(info|theme\.css|app_id|login_check|upload_progress|upload|reset|cancel|user)/?"
    r"|/gradio_api/(queue/(join|data)|heartbeat/[\w-]+|call/(v2/)?[\w-]+(/[\w-]+)?/?)"
    r"|/gradio_api/file=.+"
)
FILE = re.compile(r"/gradio_api/file=(.+)", re.DOTALL)
NEW_WORK = re.compile(r"/gradio_api/(queue/join|call/.+|upload)/?")
STRIPPED = (b"x-forwarded", b"forwarded", b"x-gradio-server", b"x-original", b"x-rewrite")
INLINE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})

# Gradio's page holds inline scripts and styles and builds functions from text (unsafe-eval); nothing comes from
# another host, so everything else can be closed.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'self'"


@dataclass(slots=True)
class Hosts:
    """The names this server answers to. `https` are those that are reached through an HTTPS end in front of us."""

    names: set[str]
    any_address: bool = False
    https: set[str] = field(default_factory=set)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Hosts":
        hosts = cls({"localhost", "127.0.0.1", "[::1]"}, any_address=settings.host in ("0.0.0.0", "::"))
        if not hosts.any_address:
            hosts.add(f"[{settings.host}]" if ":" in settings.host.strip("[]") else settings.host)
        for name in settings.public_hosts:
            hosts.add(name)
        return hosts

    def add(self, address: str) -> None:
        """Allow one more name, written NAME or https://NAME."""
        parts = urlsplit(address if "://" in address else f"//{address}")
        name = _bare(parts.netloc)
        self.names.add(name)
        if parts.scheme == "https":
            self.https.add(name)

    def discard(self, address: str) -> None:
        """Allow a name no longer, unless it is one of this machine."""
        name = _bare(urlsplit(address).netloc)
        if name not in LOOPBACK:
            self.names.discard(name)
            self.https.discard(name)

    def allow(self, host: str) -> bool:
        """Whether a Host header is one of ours.

        Rebinding needs a name under the attacker's control, never a bare address; so with a wildcard address every
        literal IP is let through, which also serves a container that does not know its outer address.
        """
        bare = _bare(host)
        return bare in self.names or (self.any_address and _is_address(bare))


def _bare(host: str) -> str:
    """The name without its port, in lower case."""
    return re.sub(r":\d*$", "", host.strip().lower()) if not host.endswith("]") else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


@dataclass(slots=True)
class Gate:
    """Whether new work is still taken. Closed once, at the first signal to stop."""

    closed: bool = False


class Guard:
    """The outermost layer; pure ASGI, so that streams pass through it unbuffered."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Hosts,
        gate: Gate,
        prefixes: tuple[str, ...],
        own: re.Pattern[str],
        cache: Path,
        lang: Lang,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._gate = gate
        self._prefixes = prefixes
        self._own = own
        self._cache = cache.resolve()
        self._lang: Lang = lang

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no websocket route exists; returning closes it
        headers = Headers(scope=scope)
        path = self.inner_path(scope["path"])
        send = _with_headers(send, path)
        refused = self._refuse(scope, headers, path)
        if refused is not None:
            status, key, values = refused
            await refusal(scope, status, key, self._lang, **values)(scope, receive, send)
            return
        await _clean_errors(self._app, self._cleaned(scope, headers), receive, send, path, self._lang)

    def inner_path(self, path: str) -> str:
        """`path` as the page below sees it: without the prefix of the language."""
        for prefix in self._prefixes:
            if path == prefix or path.startswith(prefix + "/"):
                return path[len(prefix) :] or "/"
        return path

    def _refuse(self, scope: Scope, headers: Headers, path: str) -> tuple[int, str, dict[str, object]] | None:
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._hosts.allow(host):
            return 421, "web.host", {"value": host}
        if _cross_origin(scope["method"], headers):
            return 403, "web.origin", {}
        if not self._own.fullmatch(scope["path"]) and not PAGE_ADDRESSES.fullmatch(path):
            return 404, "web.not_found", {}
        if (match := FILE.fullmatch(path)) and not self._may_serve(match[1]):
            return 403, "web.file_refused", {}
        if self._gate.closed and scope["method"] == "POST" and NEW_WORK.fullmatch(path):
            return 503, "stopping", {}
        return None

    def _may_serve(self, value: str) -> bool:
        """Only copies in Gradio's cache: no address for the server to fetch, no file in place, no link out of it."""
        if "\0" in value or "\\" in value or not value.startswith("/"):
            return False
        try:
            return Path(value).resolve().is_relative_to(self._cache)
        except (OSError, RuntimeError):
            return False

    def _cleaned(self, scope: Scope, headers: Headers) -> Scope:
        """The request without what only a trusted proxy may say; https where a known public name is in front."""
        kept = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(STRIPPED)]
        https = _bare(headers.get("host", "")) in self._hosts.https
        return {**scope, "headers": kept, "scheme": "https" if https else scope["scheme"]}


def _cross_origin(method: str, headers: Headers) -> bool:
    """Whether another site makes the browser ask. A link that is followed is allowed; nothing else is."""
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    site = headers.get("sec-fetch-site", "none")
    followed = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    return site not in ("none", "same-origin") and not (followed and headers.get("sec-fetch-dest") == "document")


def _with_headers(send: Send, path: str) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            is_file = FILE.fullmatch(path) is not None
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "same-origin"  # no-referrer would turn our own forms' Origin into null
            headers["x-frame-options"] = "SAMEORIGIN"
            headers["cross-origin-resource-policy"] = "same-origin"
            headers["content-security-policy"] = FILE_POLICY if is_file else PAGE_POLICY
            if is_file and headers.get("content-type", "").split(";")[0] not in INLINE_TYPES:
                headers["content-disposition"] = "attachment"
            del headers["server"]
        await send(message)

    return sender


async def _clean_errors(app: ASGIApp, scope: Scope, receive: Receive, send: Send, path: str, lang: Lang) -> None:
    """Turn Gradio's bare 500 into JSON, and the wrong keywords of call/v2 into 422. The log keeps the traceback."""
    started = False
    failed = False

    async def sender(message: Message) -> None:
        nonlocal started, failed
        if message["type"] == "http.response.start":
            failed = message["status"] == 500
            started = not failed
        if not failed:
            await send(message)

    try:
        await app(scope, receive, sender)
    except Exception as error:
        if started:
            raise
        failed = True
        if isinstance(error, TypeError) and path.startswith("/gradio_api/call/v2/"):
            await refusal(scope, 422, "web.bad_arguments", lang, why=error)(scope, receive, send)
            return
        log.exception("a request to %s failed", ascii(path))
    if failed:
        await refusal(scope, 500, "web.failed", lang)(scope, receive, send)
