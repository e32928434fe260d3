"""The few texts in an EXIF block that image programs use: UserComment, Make, Model, Software and the like.

Our own reader, because it needs one folder of tags and its sub-folder and nothing else: no thumbnail, no maker's
notes, no chain of further folders that could lead in circles.
"""

import re
import struct

from zimage_studio.core.metadata.limits import MAX_TEXT_BYTES, capped

_EXIF_FOLDER = 0x8769
_USER_COMMENT = 0x9286
_MAKER_NOTE = 0x927C
_NAMES = {
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    0x013B: "Artist",
    _MAKER_NOTE: "MakerNote",
    _USER_COMMENT: "parameters",
}
_BYTES_EACH = {1: 1, 2: 1, 6: 1, 7: 1}
"""Types that can hold text: BYTE, ASCII, SBYTE, UNDEFINED."""
_NAMED_GRAPH = re.compile(r"(prompt|workflow):\s*(?=\{)", re.IGNORECASE)
_SCHEMES = {"fooocus", "a1111"}
_MAX_MAKER_NOTE = 200
MAX_TAGS = 500


def texts_in_exif(block: bytes) -> dict[str, str]:
    """Texts by the name that a PNG would give them; UserComment becomes `parameters`. Raises ValueError.

    ComfyUI's WebP writers put `workflow:{…}` into Make and `prompt:{…}` into Model; Fooocus puts its scheme into
    MakerNote.
    """
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        raise ValueError("its EXIF block has no byte order")
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        values = _folder(block, order, start)
        if (inner := values.pop(_EXIF_FOLDER, None)) is not None:
            (start,) = struct.unpack(f"{order}I", inner)
            values |= _folder(block, order, start)
    except struct.error:
        raise ValueError("its EXIF block ends too early") from None
    texts: dict[str, str] = {}
    budget = MAX_TEXT_BYTES
    for tag, raw in values.items():
        if tag in _NAMES:
            budget -= len(capped(raw, budget))
            _add(texts, tag, raw, order)
    return texts


def _folder(block: bytes, order: str, start: int) -> dict[int, bytes]:
    (count,) = struct.unpack_from(f"{order}H", block, start)
    values: dict[int, bytes] = {}
    for index in range(min(count, MAX_TAGS)):
        at = start + 2 + 12 * index
        tag, kind, length = struct.unpack_from(f"{order}HHI", block, at)
        if tag == _EXIF_FOLDER:
            values.setdefault(tag, block[at + 8 : at + 12])
        elif tag in _NAMES and kind in _BYTES_EACH and length:
            where = at + 8
            if length > 4:
                (where,) = struct.unpack_from(f"{order}I", block, at + 8)
            if where + length > len(block):
                raise ValueError("its EXIF block ends too early")
            values.setdefault(tag, block[where : where + length])
    return values


def _add(texts: dict[str, str], tag: int, raw: bytes, order: str) -> None:
    text = decode_comment(raw, order) if tag == _USER_COMMENT else _plain(raw)
    name = _NAMES[tag]
    if tag == _MAKER_NOTE:
        if text in _SCHEMES:
            name = "fooocus_scheme"
        elif len(raw) > _MAX_MAKER_NOTE or not text.isprintable():
            return  # a camera's own data
    if graph := _NAMED_GRAPH.match(text):
        name, text = graph[1].lower(), text[graph.end() :]
    if text.strip():
        texts.setdefault(name, text)


def decode_comment(raw: bytes, order: str = ">") -> str:
    """The text of a UserComment, by its eight-byte prefix (UNICODE, ASCII, JIS or none).

    The standard wants UNICODE in the byte order of the block; A1111 always writes the high byte first. So the
    order that gives more ASCII wins: every dialect is mostly ASCII in its keys.
    """
    prefix, rest = raw[:8], raw[8:]
    if prefix == b"UNICODE\0":
        if rest[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return rest.decode("utf-16", "replace").rstrip("\0")
        first, second = ("utf-16-le", "utf-16-be") if order == "<" else ("utf-16-be", "utf-16-le")
        return max((rest.decode(code, "replace") for code in (first, second)), key=_ascii_count).rstrip("\0")
    if prefix == b"JIS\0\0\0\0\0":
        return rest.decode("iso2022_jp", "replace").rstrip("\0")
    return _plain(rest if prefix in (b"ASCII\0\0\0", b"\0" * 8) else raw)


def _ascii_count(text: str) -> int:
    return sum(map(str.isascii, text))


def _plain(raw: bytes) -> str:
    raw = raw.rstrip(b"\0")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
