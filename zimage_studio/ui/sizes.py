"""Sizes that a picture brings along, made into sizes that can be drawn: always shown, never changed silently."""

import math

from zimage_studio.records.request import MAX_ASPECT, MAX_PIXELS, MAX_SIDE_PX, MIN_SIDE_PX, SIDE_STEP_PX

Size = tuple[int, int]


def near(side: float) -> int:
    """The nearest side that can be drawn, in px."""
    rounded = math.floor(side / SIDE_STEP_PX + 0.5) * SIDE_STEP_PX
    return min(MAX_SIDE_PX, max(MIN_SIDE_PX, rounded))


def enlarged(size: Size, factor: float) -> Size | None:
    """`size` times `factor`, each side the nearest multiple of 16; None when that is too large or too narrow."""
    width, height = near(size[0] * factor), near(size[1] * factor)
    too_long = max(size) * factor > MAX_SIDE_PX
    if too_long or width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        return None
    return width, height


def drawable(size: Size, wanted: Size) -> Size:
    """The shape of `size` with about as many pixels as `wanted`, which a model draws well."""
    scale = math.sqrt(wanted[0] * wanted[1] / (size[0] * size[1]))
    width, height = near(size[0] * scale), near(size[1] * scale)
    longest = MAX_ASPECT * min(width, height)
    return min(width, longest), min(height, longest)
