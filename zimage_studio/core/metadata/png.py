"""PNG in and out: our recipe chunk, the widely read `parameters` text, and a reader that decodes no pixel.

The reader walks the chunks itself, with caps, because image libraries decode the whole picture first: a 500 KB
file can ask for more than a gigabyte.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zimage_studio.core.metadata.exif import texts_in_exif
from zimage_studio.core.metadata.infotext import to_infotext
from zimage_studio.core.metadata.limits import MAX_PARTS, MAX_TEXT_BYTES, capped, read_capped
from zimage_studio.errors import UserError
from zimage_studio.records.recipe import Recipe

OWN_KEY = "zimage_studio"
INFOTEXT_KEY = "parameters"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COMPRESS_LEVEL = 4
"""Of zlib, for pixels. Pillow's own 6 takes twice as long on a small picture and saves 1 to 6 % of the bytes."""
_MAX_KEY_CHARS = 79
_MAX_RAW_BYTES = 2 * MAX_TEXT_BYTES
"""Of all text chunks as they stand in the file: a packed text of no length may be as long as it likes."""


def write_png(pixels_HWC: NDArray[np.uint8], recipe: Recipe) -> bytes:
    """The PNG file of (H, W, 3) uint8 pixels, with the recipe in two dialects."""
    return encode_png(pixels_HWC, {INFOTEXT_KEY: to_infotext(recipe), OWN_KEY: recipe.to_json()})


def encode_png(pixels_HWC: NDArray[np.uint8], texts: Mapping[str, str]) -> bytes:
    """The PNG file of (H, W, 3) uint8 pixels, with `texts` by key (at most 79 Latin-1 characters)."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC, "RGB").save(buffer, "PNG", pnginfo=info, compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()


def read_texts(path: Path, *, name: str | None = None) -> dict[str, str]:
    """The text chunks (tEXt, zTXt, iTXt) of a PNG file, at most 2 MB in all.

    Raises UserError when it is not a PNG, is larger than 64 MB, or is damaged. `name` is what the person called
    the file. The first of several chunks with one key counts.
    """
    shown = name or path.name
    content = read_capped(path, shown)
    if not content.startswith(SIGNATURE):
        raise UserError("not_png", value=shown)
    try:
        return texts_in_png(content)
    except (ValueError, struct.error, zlib.error) as error:
        raise UserError("file_damaged", value=shown, why=error) from error


def read_own_recipe(path: Path) -> Recipe | None:
    """Our recipe in the PNG at `path`, or None when it has none that this version reads."""
    try:
        return Recipe.from_json(read_texts(path)[OWN_KEY])
    except (UserError, KeyError, ValueError, TypeError):
        return None


def texts_in_png(content: bytes) -> dict[str, str]:
    """The texts of the chunks, and of the EXIF chunk. Raises ValueError, struct.error or zlib.error."""
    texts: dict[str, str] = {}
    budget, raw_budget = MAX_TEXT_BYTES, _MAX_RAW_BYTES
    has_exif = False
    for kind, at, length in _chunks(content):
        if kind not in _TEXTS or (kind == b"eXIf" and has_exif):
            continue
        has_exif = has_exif or kind == b"eXIf"
        data = capped(content[at : at + min(length, raw_budget + 1)], raw_budget)
        raw_budget -= length
        for key, text in _texts_of(kind, data, budget).items():
            budget = max(0, budget - len(text.encode("utf-8", "replace")))
            texts.setdefault(key, text)
    return texts


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place and length of what each chunk holds. Some programs leave out IEND."""
    at = len(SIGNATURE)
    for _ in range(MAX_PARTS):
        if at == len(content):
            return
        length, kind = struct.unpack_from(">I4s", content, at)
        if at + 8 + length > len(content):
            raise ValueError("it ends in the middle of a chunk")
        yield kind, at + 8, length
        if kind == b"IEND":
            return
        at += 12 + length
    raise ValueError(f"it has more than {MAX_PARTS} chunks")


def _texts_of(kind: bytes, data: bytes, budget: int) -> dict[str, str]:
    if kind == b"eXIf":
        return texts_in_exif(capped(data, budget))
    key, text = _READERS[kind](data, budget)
    return {key[:_MAX_KEY_CHARS]: text}


def _plain(data: bytes, budget: int) -> tuple[str, str]:
    key, _, text = data.partition(b"\0")
    return key.decode("latin-1"), capped(text, budget).decode("latin-1")


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
    raw = _inflate(text, budget) if packed else capped(text, budget)
    return key.decode("latin-1"), raw.decode("utf-8", "replace")


def _inflate(data: bytes, budget: int) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, budget + 1)
    return capped(text, budget)


_READERS = {b"tEXt": _plain, b"zTXt": _compressed, b"iTXt": _international}
_TEXTS = {*_READERS, b"eXIf"}
