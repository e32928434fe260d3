"""PNG in and out: our recipe chunk, the widely read `parameters` text, and a reader that decodes no pixel.

The reader walks the chunks itself, with caps, because image libraries decode the whole picture first: a 500 KB
file can ask for more than a gigabyte.
"""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zimage_studio.core.metadata.infotext import to_infotext
from zimage_studio.errors import UserError
from zimage_studio.records.recipe import Recipe

OWN_KEY = "zimage_studio"
INFOTEXT_KEY = "parameters"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_FILE_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 2 * 2**20
MAX_CHUNKS = 20_000


def write_png(pixels_HWC: NDArray[np.uint8], recipe: Recipe) -> bytes:
    """The PNG file of (H, W, 3) uint8 pixels, with the recipe in two dialects."""
    info = PngInfo()
    info.add_itxt(INFOTEXT_KEY, to_infotext(recipe))
    info.add_itxt(OWN_KEY, recipe.to_json())
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC, "RGB").save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_texts(path: Path, *, name: str | None = None) -> dict[str, str]:
    """The text chunks (tEXt, zTXt, iTXt) of a PNG file, at most 2 MB in all.

    Raises UserError when it is not a PNG, is larger than 64 MB, or is damaged. `name` is what the person called
    the file. The first of several chunks with one key counts.
    """
    shown = name or path.name
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UserError("file_too_large", value=shown, mb=size // 2**20, high=MAX_FILE_BYTES // 2**20)
        content = path.read_bytes()
    except OSError as error:
        raise UserError("file_damaged", value=shown, why=error.strerror) from error
    if not content.startswith(SIGNATURE):
        raise UserError("not_png", value=shown)
    try:
        return _texts(content)
    except (ValueError, struct.error, zlib.error) as error:
        raise UserError("file_damaged", value=shown, why=error) from error


def read_own_recipe(path: Path) -> Recipe | None:
    """Our recipe in the PNG at `path`, or None when it has none that this version reads."""
    try:
        return Recipe.from_json(read_texts(path)[OWN_KEY])
    except (UserError, KeyError, ValueError, TypeError):
        return None


def _texts(content: bytes) -> dict[str, str]:
    texts: dict[str, str] = {}
    budget = MAX_TEXT_BYTES
    at = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if at == len(content):
            break  # some programs leave out IEND
        length, kind = struct.unpack_from(">I4s", content, at)
        data = content[at + 8 : at + 8 + length]
        if len(data) < length:
            raise ValueError("it ends in the middle of a chunk")
        at += 12 + length
        if kind == b"IEND":
            break
        if kind in _READERS:
            key, text = _READERS[kind](data, budget)
            budget -= len(text.encode("utf-8", "replace"))
            texts.setdefault(key, text)
    else:
        raise ValueError(f"it has more than {MAX_CHUNKS} chunks")
    return texts


def _plain(data: bytes, budget: int) -> tuple[str, str]:
    key, _, text = data.partition(b"\0")
    return key.decode("latin-1"), _capped(text, budget).decode("latin-1")


def _compressed(data: bytes, budget: int) -> tuple[str, str]:
    key, _, rest = data.partition(b"\0")
    return key.decode("latin-1"), _inflate(rest[1:], budget).decode("latin-1")


def _international(data: bytes, budget: int) -> tuple[str, str]:
    key, _, rest = data.partition(b"\0")
    if len(rest) < 2:
        raise ValueError("it has a text chunk without content")
    packed = rest[0] == 1
    _language, _, rest = rest[2:].partition(b"\0")
    _translated, _, text = rest.partition(b"\0")
    raw = _inflate(text, budget) if packed else _capped(text, budget)
    return key.decode("latin-1"), raw.decode("utf-8", "replace")


def _inflate(data: bytes, budget: int) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, budget + 1)
    return _capped(text, budget)


def _capped(text: bytes, budget: int) -> bytes:
    if len(text) > budget:
        raise ValueError(f"its texts are larger than {MAX_TEXT_BYTES // 2**20} MB")
    return text


_READERS = {b"tEXt": _plain, b"zTXt": _compressed, b"iTXt": _international}


def loads_strict(text: str) -> object:
    """JSON without NaN, infinity or duplicate keys. Raises ValueError."""

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ValueError("a key stands twice")
        return keys

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
