"""The server and its end: no new work at once, the running image finishes, everything of ours is gone, status 0."""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from zimage_studio.messages import Lang, say
from zimage_studio.web.guard import Hosts
from zimage_studio.web.share import LIFETIME_S, PublicLink, ShareError

log = logging.getLogger(__name__)

LAST_RESULTS_S = 1.0  # for clients to fetch what has just been finished
OPEN_REQUESTS_S = 4
GIVE_UP_S = 42.0
EXIT_STUCK = 70


class StudioServer(uvicorn.Server):
    """uvicorn with our own order of stopping. Must run in the main thread: signals arrive there."""

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        *,
        on_up: Callable[[], None],
        close_gate: Callable[[], None],
        finish: Callable[[], bool],
        release_streams: Callable[[], None],
        link: PublicLink | None,
        hosts: Hosts,
        announce: Callable[[str], None],
        max_connections: int,
        lang: Lang,
    ) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ws="none",
            lifespan="on",
            limit_concurrency=max_connections,
            timeout_graceful_shutdown=OPEN_REQUESTS_S,
        )
        super().__init__(config)
        self._sock = sock
        self._on_up = on_up
        self._close_gate = close_gate
        self._finish = finish
        self._release_streams = release_streams
        self._link = link
        self._hosts = hosts
        self._announce = announce
        self._lang: Lang = lang
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._asked = False

    def run_until_stopped(self) -> int:
        """Serve; 0 after a requested stop, 1 when the application did not come up."""
        self.run(sockets=[self._sock])
        return 0 if self.started else 1

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: stop in order. Second: at once.

        uvicorn's own version notes the signal and raises it again at the end, which would make the exit status -15.
        """
        if self._asked:
            log.warning("second signal: ending at once")
            os._exit(128 + sig)  # the tunnel is tied to us and goes too
        self._asked = True
        if self._loop is None:
            self.should_exit = True
            return
        self._loop.call_soon_threadsafe(self._stopping.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then the two tasks of ours beside the requests."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if not self.started:
            return
        self._on_up()
        if self._asked:
            self._stopping.set()
        self._stop_task = asyncio.create_task(self._stop_when_asked())
        if self._link is not None:
            self._link_task = asyncio.create_task(self._open_link(self._link))

    async def _stop_when_asked(self) -> None:
        await self._stopping.wait()
        log.info("stopping: no new work; what runs may finish")
        threading.Thread(target=_give_up, name="give-up", daemon=True).start()
        self._close_gate()
        finished = await asyncio.to_thread(self._finish)
        log.info("nothing runs any more%s", "" if finished else "; the running image was stopped")
        await asyncio.sleep(LAST_RESULTS_S)
        if self._link is not None:
            self._link_task.cancel()
            self._link.close()
        self._release_streams()
        self.should_exit = True

    async def _open_link(self, link: PublicLink) -> None:
        """Open the public link beside the running server; when it fails, say so and go on."""
        try:
            command = await asyncio.to_thread(link.prepare)
            link.start(command, self._sock.getsockname()[1])
            url = await asyncio.to_thread(link.wait)
        except ShareError as error:
            self._announce(error.text(self._lang))
            return
        self._hosts.add(url)
        self._announce(say("public_link", self._lang, value=url, hours=int(LIFETIME_S // 3600)))
        end = asyncio.get_running_loop().time() + LIFETIME_S
        while link.alive and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(1)
        self._hosts.discard(url)
        link.close()
        self._announce(say("public_link_ended", self._lang, value=url))


def _give_up() -> None:
    """Something does not stop: end anyway, before whoever started us loses patience and kills."""
    threading.Event().wait(GIVE_UP_S)
    log.error("still not stopped after %d s; ending at once", int(GIVE_UP_S))
    os._exit(EXIT_STUCK)
