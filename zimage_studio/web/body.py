"""Caps on request bodies, counted on the stream: JSON is read whole and small, uploads are watched as they pass."""

import asyncio
import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from gradio import Blocks
from gradio.blocks import BlockFunction
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zimage_studio.messages import Lang
from zimage_studio.web.answers import refusal

MAX_JSON_BYTES = 1 << 20
MAX_UPLOAD_BYTES = 25 << 20
MAX_FILES = 16
MULTIPART_SLACK_BYTES = 64 << 10
MAX_BOUNDARY_BYTES = 200
MAX_PART_HEADER_BYTES = 4096
READ_TIMEOUT_S = 30.0

UPLOAD = re.compile(r"(?:/\w+)?/gradio_api/upload/?")
CALL = re.compile(r"((?:/\w+)?)/gradio_api/call/(v2/)?([^/]+)/?")
ADDRESS = re.compile(r"\s*https?:", re.IGNORECASE)
JOIN = re.compile(r"((?:/\w+)?)/gradio_api/queue/join/?")


class Refused(Exception):  # noqa: N818 - carries an answer, not an error
    """The body may not go on; `status` and `key` say why."""

    def __init__(self, status: int, key: str, **values: object) -> None:
        super().__init__(key)
        self.status = status
        self.key = key
        self.values = values


class BodyLimits:
    """Reads JSON bodies before the application sees them and checks what they name; watches uploads."""

    def __init__(self, app: ASGIApp, *, pages: Mapping[str, Blocks], lang: Lang) -> None:
        self._app = app
        self._pages = pages
        self._lang: Lang = lang

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            if UPLOAD.fullmatch(scope["path"]):
                await self._watch(scope, receive, send)
                return
            body = await _read(scope, receive)
            check_call(scope["path"], body, self._pages)
        except Refused as refused:
            await refusal(scope, refused.status, refused.key, self._lang, **refused.values)(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an upload on, chunk by chunk, and cut it at the first part or byte that is too many."""
        headers = Headers(scope=scope)
        if int(_length(headers) or 0) > MAX_UPLOAD_BYTES + MULTIPART_SLACK_BYTES:
            raise Refused(413, "web.too_large", high=MAX_UPLOAD_BYTES >> 20)
        watch = UploadWatch(headers)
        answered = False
        refused: Refused | None = None

        async def watched() -> Message:
            nonlocal refused
            message = await receive()
            try:
                watch.feed(message.get("body", b""))
            except Refused as error:
                refused = error
                raise
            return message

        async def sender(message: Message) -> None:
            nonlocal answered
            if refused is None:
                answered = True
                await send(message)

        with contextlib.suppress(Refused):
            await self._app(scope, watched, sender)
        if refused is not None and not answered:
            raise refused


class UploadWatch:
    """Counts bytes and parts of a multipart body and refuses a part without a file name.

    Gradio holds such nameless parts in memory whole, whatever its own limit says.
    """

    def __init__(self, headers: Headers) -> None:
        kind, options = parse_options_header(headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
            raise Refused(415, "web.bad_upload")
        self._total = 0
        self._parts = 0
        self._name = self._value = b""
        self._named = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
            },
        )

    def feed(self, chunk: bytes) -> None:
        self._total += len(chunk)
        if self._total > MAX_UPLOAD_BYTES + MULTIPART_SLACK_BYTES:
            raise Refused(413, "web.too_large", high=MAX_UPLOAD_BYTES >> 20)
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise Refused(400, "web.bad_upload") from error

    def _part_begin(self) -> None:
        self._parts += 1
        self._name = self._value = b""
        self._named = False
        if self._parts > MAX_FILES:
            raise Refused(413, "web.too_many_files", high=MAX_FILES)

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        if len(self._value) > MAX_PART_HEADER_BYTES:
            raise Refused(413, "web.bad_upload")

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._named = bool(options.get(b"filename"))
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        if not self._named:
            raise Refused(413, "web.nameless")


def _length(headers: Headers) -> str:
    value = headers.get("content-length", "0")
    return value if value.isascii() and value.isdigit() else "0"


async def _read(scope: Scope, receive: Receive) -> bytes:
    """The whole body, at most MAX_JSON_BYTES, chunked or not."""
    too_large = Refused(413, "web.too_large", high=MAX_JSON_BYTES >> 20)
    if int(_length(Headers(scope=scope))) > MAX_JSON_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MAX_JSON_BYTES:
                    raise too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Refused(408, "web.slow", seconds=round(READ_TIMEOUT_S)) from None


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def check_call(path: str, body: bytes, pages: Mapping[str, Blocks]) -> None:
    """Refuse an unknown endpoint or event, and a wrong number of arguments, before Gradio answers them with 500.

    And a file that is an address: Gradio would fetch it on the way to any handler.
    """
    call, join = CALL.fullmatch(path), JOIN.fullmatch(path)
    match = call or join
    if match is None:
        return
    page = pages.get(match[1] or "/")
    data = _json(body)
    if page is None:
        raise Refused(404, "web.not_found")
    _check_files(data)
    if call and call[2]:
        _check_endpoint(page, call[3])
        return
    _check_frame(data)
    if call:
        _check_arguments(_check_endpoint(page, call[3]), data["data"])
    else:
        _check_event(page, data)


def _json(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(422, "web.bad_json") from error
    if not isinstance(data, dict):
        raise Refused(422, "web.bad_json")
    return data


def _check_frame(data: dict[str, Any]) -> None:
    """`data` is a list; around it stands what can be written as text again (FastAPI quotes it in its refusals)."""
    if not isinstance(data.get("data"), list):
        raise Refused(422, "web.bad_arguments", why="data must be a list")
    try:
        json.dumps(
            {key: value for key, value in data.items() if key != "data"}, allow_nan=False, ensure_ascii=False
        ).encode()
    except ValueError as error:
        raise Refused(422, "web.bad_json") from error


def _check_files(data: object) -> None:
    """Looks through all of it, as Gradio does; without recursion, as it may be nested deeply."""
    left = [data]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and "meta" in value and ADDRESS.match(path):
                raise Refused(422, "web.file_is_address", value=path)
            left += value.values()
        elif isinstance(value, list):
            left += value


def _check_endpoint(page: Blocks, name: str) -> BlockFunction:
    public = {str(fn.api_name): fn for fn in page.fns.values() if fn.api_name and fn.api_visibility != "private"}
    if name not in public:
        known = sorted(key for key, fn in public.items() if fn.api_visibility == "public")
        raise Refused(404, "web.unknown_api", value=name, known=", ".join(known))
    return public[name]


def _check_arguments(fn: BlockFunction, arguments: list[object]) -> None:
    if len(arguments) not in (len(fn.inputs), _shown_inputs(fn)):
        raise Refused(422, "web.bad_arguments", why=f"{fn.api_name} takes {_shown_inputs(fn)}, got {len(arguments)}")


def _shown_inputs(fn: BlockFunction) -> int:
    return sum(not block.skip_api for block in fn.inputs)


def _check_event(page: Blocks, data: dict[str, Any]) -> None:
    number, session = data.get("fn_index"), data.get("session_hash")
    known = page.fns
    holder = page.state_holder
    if isinstance(session, str) and session in holder:
        known = holder[session].blocks_config.fns
    if isinstance(number, bool) or not isinstance(number, int) or number not in known:
        whole = isinstance(number, int) and not isinstance(number, bool)
        raise Refused(404 if whole else 422, "web.bad_event", value=number)
