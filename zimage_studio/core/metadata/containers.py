"""The texts in a picture file (PNG, JPEG or WebP, told apart by content), without decoding a pixel."""

import struct
import zlib
from pathlib import Path

from zimage_studio.core.metadata.exif import texts_in_exif
from zimage_studio.core.metadata.limits import MAX_PARTS, MAX_TEXT_BYTES, capped, read_capped
from zimage_studio.core.metadata.png import SIGNATURE, texts_in_png
from zimage_studio.errors import UserError

_JPEG_START = b"\xff\xd8\xff"
_APP1, _COMMENT, _SCAN, _END = 0xE1, 0xFE, 0xDA, 0xD9
_ALONE = {0x01, *range(0xD0, 0xD9)}
"""JPEG markers without a length."""
_MAX_EXIF = 2 * MAX_TEXT_BYTES


def read_picture_texts(path: Path, *, name: str | None = None) -> dict[str, str]:
    """The texts in the file, by the key that a PNG gives them.

    `name` is what the person called the file. Raises UserError when it is none of the three formats, is larger
    than 64 MB, or is damaged.
    """
    shown = name or path.name
    content = read_capped(path, shown)
    try:
        if content.startswith(SIGNATURE):
            return texts_in_png(content)
        if content.startswith(_JPEG_START):
            return texts_in_jpeg(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return texts_in_webp(content)
    except (ValueError, struct.error, zlib.error) as error:
        raise UserError("file_damaged", value=shown, why=error) from error
    raise UserError("not_picture", value=shown)


def texts_in_jpeg(content: bytes) -> dict[str, str]:
    """Texts of the first EXIF segment and the comments of a JPEG, up to where its pixels begin. Raises ValueError."""
    texts: dict[str, str] = {}
    has_exif = False
    at = 2
    for _ in range(MAX_PARTS):
        marker, at = _marker(content, at)
        if marker in (_SCAN, _END):
            return texts
        if marker in _ALONE:
            continue
        length = int.from_bytes(content[at : at + 2], "big")
        if length < 2 or at + length > len(content):
            raise ValueError("it ends in the middle of a segment")
        if marker == _APP1 and content[at + 2 : at + 8] == b"Exif\0\0" and not has_exif:
            has_exif = True
            _merge(texts, texts_in_exif(content[at + 8 : at + length]))
        elif marker == _COMMENT and "comment" not in texts:
            comment = content[at + 2 : at + length].rstrip(b"\0")
            _merge(texts, {"comment": comment.decode("utf-8", "replace")})
        at += length
    raise ValueError(f"it has more than {MAX_PARTS} segments")


def _marker(content: bytes, at: int) -> tuple[int, int]:
    """The marker at `at`, and where what follows it begins; any number of 0xFF may stand before it."""
    if content[at : at + 1] != b"\xff":
        raise ValueError("it ends in the middle of a segment")
    rest = content[at : at + MAX_PARTS].lstrip(b"\xff")
    if not rest:
        raise ValueError("it ends in the middle of a segment")
    at += len(content[at : at + MAX_PARTS]) - len(rest)
    return content[at], at + 1


def texts_in_webp(content: bytes) -> dict[str, str]:
    """Texts of the first EXIF chunk of a WebP. Raises ValueError."""
    at = 12
    for _ in range(MAX_PARTS):
        if at + 8 > len(content):
            return {}
        kind, length = struct.unpack_from("<4sI", content, at)
        if at + 8 + length > len(content):
            raise ValueError("it ends in the middle of a chunk")
        if kind == b"EXIF":
            return texts_in_exif(capped(content[at + 8 : at + 8 + min(length, _MAX_EXIF + 1)], _MAX_EXIF))
        at += 8 + length + length % 2
    raise ValueError(f"it has more than {MAX_PARTS} chunks")


def _merge(texts: dict[str, str], more: dict[str, str]) -> None:
    """What stood first counts; all together stay below the cap."""
    for key, text in more.items():
        texts.setdefault(key, text)
    if sum(map(len, texts.values())) > MAX_TEXT_BYTES:
        raise ValueError(f"its texts are larger than {MAX_TEXT_BYTES // 2**20} MB")
