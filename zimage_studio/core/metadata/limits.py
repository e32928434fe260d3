"""How much of a file is read, and how much of what it says is shown."""

from pathlib import Path

from zimage_studio.errors import UserError

MAX_FILE_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 2 * 2**20
MAX_PARTS = 20_000
"""Chunks of a PNG or a WebP, segments of a JPEG."""


def read_capped(path: Path, shown: str) -> bytes:
    """The bytes of a file of at most 64 MB. Raises UserError; `shown` is what the person called the file."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError("file_damaged", value=shown, why=error.strerror) from error
    if len(content) > MAX_FILE_BYTES:
        mb = path.stat().st_size // 2**20
        raise UserError("file_too_large", value=shown, mb=mb, high=MAX_FILE_BYTES // 2**20)
    return content


def capped(text: bytes, budget: int) -> bytes:
    """`text` itself. Raises ValueError when it is longer than what is left of the 2 MB."""
    if len(text) > budget:
        raise ValueError(f"its texts are larger than {MAX_TEXT_BYTES // 2**20} MB")
    return text
