"""A contact sheet: the cells of a grid in one picture, with their labels."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MAX_CELL_PX = 512
MAX_SHEET_PX = 8192
GAP_PX = 6
LABEL_CHARS = 48
LINE_CHARS = 24
CJK_FONTS = (
    "NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "wqy-microhei.ttc",
    "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
)  # fmt: skip
INK, PAPER, EMPTY = (24, 24, 27), (255, 255, 255), (236, 236, 238)


def draw_sheet(
    cells: Mapping[tuple[int, int], Image.Image], columns: Sequence[str], rows: Sequence[str]
) -> NDArray[np.uint8]:
    """(H, W, 3): the picture of cell (column, row) in its place, a light field where one is missing.

    `columns` and `rows` are labels, as many as there are columns and rows; empty ones take no room. Cells are at most
    512 px a side, fewer when the sheet would be larger than 8192 px.
    """
    width, height = _cell_size(cells, len(columns), len(rows))
    font = _font(max(11, min(20, width // 9)), "".join((*columns, *rows)))
    line = int(font.size * 1.35)
    top = _room(columns, line)
    left = max((int(font.getlength(text)) for row in rows for text in _lines(row, font)), default=0)
    left += 2 * GAP_PX if left else 0
    sheet = Image.new("RGB", (left + len(columns) * (width + GAP_PX) + GAP_PX,
                              top + len(rows) * (height + GAP_PX) + GAP_PX), PAPER)  # fmt: skip
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(columns):
        x = left + GAP_PX + column * (width + GAP_PX)
        for number, text in enumerate(_lines(label, font)):
            pen.text((x + width / 2, GAP_PX + number * line), text, INK, font, anchor="ma")
    for row, label in enumerate(rows):
        y = top + GAP_PX + row * (height + GAP_PX)
        lines = _lines(label, font)
        for number, text in enumerate(lines):
            pen.text((GAP_PX, y + height / 2 + (number - len(lines) / 2) * line), text, INK, font)
    for row in range(len(rows)):
        for column in range(len(columns)):
            place = (left + GAP_PX + column * (width + GAP_PX), top + GAP_PX + row * (height + GAP_PX))
            _paste(sheet, cells.get((column, row)), place, (width, height))
    return np.asarray(sheet)


def _cell_size(cells: Mapping[tuple[int, int], Image.Image], columns: int, rows: int) -> tuple[int, int]:
    widest = max((image.width for image in cells.values()), default=MAX_CELL_PX)
    highest = max((image.height for image in cells.values()), default=MAX_CELL_PX)
    scale = min(
        1.0, MAX_CELL_PX / max(widest, highest), MAX_SHEET_PX / (widest * columns), MAX_SHEET_PX / (highest * rows)
    )
    return max(1, int(widest * scale)), max(1, int(highest * scale))


def _paste(sheet: Image.Image, image: Image.Image | None, place: tuple[int, int], size: tuple[int, int]) -> None:
    if image is None:
        sheet.paste(EMPTY, (*place, place[0] + size[0], place[1] + size[1]))
        return
    scale = min(size[0] / image.width, size[1] / image.height)
    fitting = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shown = image if fitting == image.size else image.resize(fitting, Image.Resampling.LANCZOS)
    sheet.paste(shown, (place[0] + (size[0] - fitting[0]) // 2, place[1] + (size[1] - fitting[1]) // 2))


def _room(labels: Sequence[str], line: int) -> int:
    most = max((len(_wrapped(label)) for label in labels), default=0)
    return most * line + GAP_PX if most else 0


def _lines(label: str, font: ImageFont.FreeTypeFont) -> list[str]:
    readable = isinstance(font, _CjkFont) or label.isascii()
    return _wrapped(label if readable else label.encode("ascii", "backslashreplace").decode())


def _wrapped(label: str) -> list[str]:
    if len(label) > LABEL_CHARS:
        label = label[: LABEL_CHARS - 1] + "…"
    return [label[start : start + LINE_CHARS] for start in range(0, len(label), LINE_CHARS)]


class _CjkFont(ImageFont.FreeTypeFont):
    """A font of this machine that has Chinese characters."""


def _font(size_px: int, text: str) -> ImageFont.FreeTypeFont:
    """The font that Pillow brings along has Latin letters only."""
    if not text.isascii():
        for name in CJK_FONTS:
            try:
                return _CjkFont(name, size_px)
            except OSError:
                continue
    font = ImageFont.load_default(size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, so no labels can be drawn")
    return font
