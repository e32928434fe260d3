"""Builds the parent application around the two pages, and serves it until it is asked to stop."""

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import gradio as gr
from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from gradio.routes import App as GradioApp
from starlette.routing import Mount, Route

from zimage_studio.errors import UserError
from zimage_studio.messages import Lang, say
from zimage_studio.settings import Settings
from zimage_studio.web import janitor
from zimage_studio.web.body import MAX_UPLOAD_BYTES, BodyLimits
from zimage_studio.web.guard import Gate, Guard, Hosts
from zimage_studio.web.health import health_routes
from zimage_studio.web.language import PAGES, LanguageDoor, language_routes
from zimage_studio.web.login import Accounts, LoginDoor, login_routes, user_of_request
from zimage_studio.web.share import PublicLink, sweep_tunnel
from zimage_studio.web.stop import StudioServer

log = logging.getLogger(__name__)

QUEUE_SIZE = 64  # events of all kinds that may wait; images have their own, smaller bound in the generation service
PARALLEL_EVENTS = 20  # of one kind; the device is guarded by the manager, not by Gradio's queue
SESSIONS = 256
MAX_CONNECTIONS = 600


class StudioLike(Protocol):
    """What serving needs of a Studio."""

    def start(self) -> None: ...

    def not_ready(self) -> str: ...

    def begin_stop(self) -> None: ...

    def finish(self, timeout_s: float) -> bool: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What mount_gradio_app takes besides the Blocks: theme, style and head of the pages."""

    theme: Any = None
    css: str | None = None
    head: str | None = None
    js: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """What app.py puts together before it serves."""

    studio: StudioLike
    pages: Mapping[Lang, gr.Blocks]
    looks: Mapping[Lang, Look] = field(default_factory=dict)
    make_link: Callable[[Path], PublicLink] = PublicLink


@dataclass(slots=True)
class Door:
    """State that the guards share with the server: names we answer to, whether new work is taken, who may enter."""

    hosts: Hosts
    accounts: Accounts | None = None
    gate: Gate = field(default_factory=Gate)


def create_app(
    settings: Settings,
    studio: StudioLike,
    pages: Mapping[Lang, gr.Blocks],
    *,
    cache: Path,
    door: Door,
    looks: Mapping[Lang, Look] = MappingProxyType({}),
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """The parent application: guards, own routes, then the pages. `cache` is Gradio's folder for files it serves.

    Raises ValueError for a page with an event outside the queue: the guard has no way for those.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan(cache))

    def not_ready() -> str:
        return "stopping" if door.gate.closed else studio.not_ready()

    own_routers = [health_routes(not_ready), language_routes(), *routers]
    if door.accounts is not None:
        own_routers.append(login_routes(door.accounts, settings.lang, lambda: door.hosts.https))
    for router in own_routers:
        app.include_router(router)
    own = re.compile(
        "|".join(
            route.path_regex.pattern.removeprefix("^").removesuffix("$")
            for router in own_routers
            for route in router.routes
            if isinstance(route, Route)
        )
    )
    for lang in sorted(pages, key=lambda lang: PAGES[lang] == "/"):  # "/" last: it takes what is left
        _mount(app, pages[lang], PAGES[lang].rstrip("/") or "/", settings, door, looks.get(lang, Look()))
    _add_guards(app, settings, pages, cache, door, own)
    return app


def _add_guards(
    app: FastAPI, settings: Settings, pages: Mapping[Lang, gr.Blocks], cache: Path, door: Door, own: re.Pattern[str]
) -> None:
    """Added inside out: the last one is asked first."""
    by_path = {PAGES[lang].rstrip("/") or "/": page for lang, page in pages.items()}
    app.add_middleware(CORSMiddleware, allow_origins=[])  # Gradio adds its own headers unless the parent has this
    app.add_middleware(BodyLimits, pages=by_path, lang=settings.lang)
    app.add_middleware(LanguageDoor, default=settings.lang)
    if door.accounts is not None:
        app.add_middleware(LoginDoor, accounts=door.accounts, lang=settings.lang)
    prefixes = tuple(path for path in by_path if path != "/")
    app.add_middleware(
        Guard, hosts=door.hosts, gate=door.gate, prefixes=prefixes, own=own, cache=cache, lang=settings.lang
    )


def _mount(app: FastAPI, page: gr.Blocks, path: str, settings: Settings, door: Door, look: Look) -> None:
    unqueued = [fn.api_name or fn.name for fn in page.fns.values() if fn.fn is not None and not fn.queue]
    if unqueued:
        raise ValueError(f"events outside the queue would bypass its limits: {unqueued}. Leave out queue=False.")
    page.state_session_capacity = SESSIONS
    page.queue(max_size=QUEUE_SIZE, api_open=False, default_concurrency_limit=PARALLEL_EVENTS)
    gr.mount_gradio_app(
        app,
        page,
        path,
        server_name=settings.host,
        server_port=settings.port,
        footer_links=[],
        run_history=False,
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
        auth_dependency=user_of_request if door.accounts is not None else None,
        allowed_paths=[str(settings.data / "images")],
        blocked_paths=[str(settings.data / "images" / f"images.sqlite{end}") for end in ("", "-wal", "-shm")],
        show_error=False,
        max_file_size=MAX_UPLOAD_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=look.theme,
        css=look.css,
        head=look.head,
        js=look.js,
    )
    page.has_launched = True  # without it Gradio skips its check of which files a handler may give out


def _lifespan(cache: Path) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def keep_clean() -> None:
            while True:
                await asyncio.sleep(janitor.EVERY_S)
                await asyncio.to_thread(janitor.sweep, cache)

        task = asyncio.create_task(keep_clean())
        yield
        task.cancel()

    return lifespan


def serve(
    app: FastAPI,
    studio: StudioLike,
    sock: socket.socket,
    door: Door,
    *,
    link: PublicLink | None = None,
    announce: Callable[[str], None] = log.info,
    finish_s: float = 30.0,
    lang: Lang = "en",
) -> int:
    """Serve in the main thread until a signal, then stop in order. Returns the exit status: 0 for a requested stop."""

    def release_streams() -> None:
        for route in app.routes:
            if isinstance(route, Mount) and isinstance(route.app, GradioApp):
                route.app.stop_event.set()  # else the heartbeats of open pages hold the server up

    def on_up() -> None:
        host, port = sock.getsockname()[:2]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        announce(say("serving", lang, value=f"http://{shown}:{port}"))
        studio.start()  # after the page is up: the first weights compete with it for the processor

    server = StudioServer(
        app,
        sock,
        on_up=on_up,
        close_gate=lambda: _close(door.gate, studio),
        finish=lambda: studio.finish(finish_s),
        release_streams=release_streams,
        link=link,
        hosts=door.hosts,
        announce=announce,
        max_connections=MAX_CONNECTIONS,
        lang=lang,
    )
    try:
        return server.run_until_stopped()
    finally:
        studio.close()


def run_studio(
    settings: Settings,
    composition: Composition,
    *,
    sock: socket.socket,
    cache: Path,
    logins: Mapping[str, str],
    announce: Callable[[str], None],
) -> int:
    """Everything from two finished pages to the end of the process; the exit status."""
    janitor.empty(cache)
    sweep_tunnel(settings.data)
    studio, pages = composition.studio, composition.pages
    door = Door(Hosts.from_settings(settings), Accounts(logins) if logins else None)
    app = create_app(settings, studio, pages, cache=cache, door=door, looks=composition.looks)
    link = composition.make_link(settings.data) if settings.share else None
    return serve(app, studio, sock, door, link=link, announce=announce, lang=settings.lang)


def _close(gate: Gate, studio: StudioLike) -> None:
    gate.closed = True
    with contextlib.suppress(UserError):
        studio.begin_stop()
