"""Small things every guard needs: headers of a request, its language, and a refusal in JSON."""

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from zimage_studio.messages import LANGS, Lang, say

LANG_COOKIE = "zimage_lang"
LANG_COOKIE_S = 365 * 24 * 3600


def prefers_chinese(accept_language: str) -> bool | None:
    """Whether the first language we have is Chinese, by weight; None when neither is named."""
    best: tuple[float, bool] | None = None
    for part in accept_language.split(",")[:20]:
        tag, _, weight = part.strip().partition(";q=")
        language = tag.split("-")[0].lower()
        if language not in LANGS:
            continue
        try:
            q = float(weight) if weight else 1.0
        except ValueError:
            continue
        if q > 0 and (best is None or q > best[0]):
            best = (q, language == "zh")
    return best[1] if best else None


def cookies_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The cookies of a request; none when the header is malformed."""
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(headers.get("cookie", ""))
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in jar.items()}


def language_of(headers: Mapping[str, str], default: Lang) -> Lang:
    """The language of whoever asks: cookie, then browser, then the setting."""
    cookie = cookies_of(headers).get(LANG_COOKIE)
    if cookie == "zh":
        return "zh"
    if cookie == "en":
        return "en"
    chinese = prefers_chinese(headers.get("accept-language", ""))
    return default if chinese is None else ("zh" if chinese else "en")


def wants_page(scope: Scope) -> bool:
    """Whether a browser asks for a page, rather than a script or a client for data."""
    return scope["method"] in ("GET", "HEAD") and "text/html" in Headers(scope=scope).get("accept", "")


def refusal(scope: Scope, status: int, key: str, default: Lang, **values: object) -> Response:
    """A refusal in the reader's language. Gradio's page reads `detail`, its client `error`."""
    text = say(key, language_of(Headers(scope=scope), default), **values)
    return JSONResponse({"error": text, "detail": text}, status_code=status)


def redirect(url: str) -> Response:
    """303: fetch the other page with GET, and do not remember it."""
    return RedirectResponse(url, status_code=303, headers={"cache-control": "no-store"})


async def answer(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send `response` instead of asking the application."""
    await response(scope, receive, send)
