"""Which of the two pages a browser gets: the Chinese one at /zh/, the English one and the API at /."""

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from zimage_studio.messages import Lang
from zimage_studio.web.answers import LANG_COOKIE, LANG_COOKIE_S, language_of, redirect, wants_page

PAGES: dict[Lang, str] = {"en": "/", "zh": "/zh/"}


class LanguageDoor:
    """Sends a browser that asks for / to the page it can read. Clients of the API ask for no HTML and stay."""

    def __init__(self, app: ASGIApp, *, default: Lang) -> None:
        self._app = app
        self._default: Lang = default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/" and wants_page(scope):
            lang = language_of(Headers(scope=scope), self._default)
            if lang != "en":
                query = scope["query_string"].decode("latin-1")
                response = redirect(PAGES[lang] + (f"?{query}" if query else ""))
                response.headers["vary"] = "Cookie, Accept-Language"
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def language_routes() -> APIRouter:
    """The switch between the pages."""
    router = APIRouter()

    @router.get("/lang/{lang}")
    def choose(lang: Lang, request: Request) -> Response:
        response = redirect(PAGES[lang])
        secure = request.url.scheme == "https"
        response.set_cookie(LANG_COOKIE, lang, max_age=LANG_COOKIE_S, samesite="lax", secure=secure)
        return response

    @router.get("/zh")
    def slash() -> Response:
        return redirect(PAGES["zh"])

    return router
