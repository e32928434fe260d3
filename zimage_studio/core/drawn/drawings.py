"""The pictures the tiny model learns from: one or two flat icons on a plain, striped or gradient background.

A `Scene` is data; `render` turns it into a 128 px picture, always the same one for the same scene. The backgrounds
are drawn in phase with the 16 px patches that the transformer sees (stripes 16 px wide that begin with the base
colour at the top or left edge; one gradient, light at the top): an earlier prototype drew them with random phase and
direction, and the model never learnt the words.
"""

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE_PX = 128
STRIPE_PX = 16
SUPERSAMPLE = 3
HELD_OUT_ONE_IN = 8
"""One scene kind in this many is never trained on; see `is_held_out`."""

Rgb = tuple[int, int, int]
Point = tuple[float, float]

OBJECTS = ("circle", "square", "triangle", "star", "heart", "diamond",
          "moon", "house", "tree", "fish", "flower", "car")  # fmt: skip
COLOURS: dict[str, Rgb] = {
    "red": (222, 38, 38),
    "orange": (245, 135, 25),
    "yellow": (250, 212, 35),
    "green": (40, 155, 65),
    "blue": (38, 82, 220),
    "purple": (135, 55, 185),
    "pink": (250, 110, 175),
    "brown": (125, 75, 38),
    "black": (28, 28, 30),
    "white": (252, 252, 252),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (250, 250, 250),
    "gray": (150, 152, 156),
    "black": (24, 24, 26),
    "blue": (120, 172, 245),
    "green": (132, 210, 142),
    "yellow": (250, 228, 120),
    "pink": (250, 178, 208),
    "purple": (190, 152, 232),
}
PATTERNS = ("plain", "horizontal stripes", "vertical stripes", "gradient")
PATTERN_SHARES = (0.45, 0.15, 0.15, 0.25)
POSITIONS: dict[str, Point] = {
    "center": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}  # fmt: skip
SIZES: dict[str, tuple[float, float, float]] = {
    "small": (19, 22, 38), "": (30, 33, 28), "big": (42, 45, 16)}  # fmt: skip
"""Smallest and largest radius, and the distance from the centre when off-centre, all in px of a 128 px picture."""
PAIR_RADII_PX = (23.0, 26.0)
PAIR_OFFSET_PX = 31.0


@dataclass(frozen=True, slots=True)
class Thing:
    """One drawn object. `size` is "small", "big" or, for the usual one and for members of a pair, empty."""

    name: str
    colour: str
    position: str
    size: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in a picture, and the `seed` of the small liberties (radius, place, shade) taken in drawing it."""

    things: tuple[Thing, ...]
    background: str
    pattern: str
    seed: int


def is_held_out(scene: Scene) -> bool:
    """Whether this combination of shapes, colours, background, pattern and positions is kept for evaluation.

    Decided by a CRC of the words, so it is the same on every machine and needs no list.
    """
    words = [scene.background, scene.pattern]
    for thing in scene.things:
        words += [thing.name, thing.colour, thing.position]
    return zlib.crc32("/".join(words).encode()) % HELD_OUT_ONE_IN == 0


def sample_scene(rng: random.Random, *, two_share: float = 0.18, held_out: bool | None = False) -> Scene:
    """Draw scenes until one is (or is not) held out; `held_out=None` takes any."""
    while True:
        scene = _any_scene(rng, two_share)
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def _any_scene(rng: random.Random, two_share: float) -> Scene:
    background = rng.choice(list(BACKGROUNDS))
    colours = [name for name in COLOURS if name != background]
    pattern = rng.choices(PATTERNS, PATTERN_SHARES)[0]
    if background == "white" and pattern == "gradient":
        pattern = "plain"  # white fading to grey would look like a grey gradient
    if rng.random() < two_share:
        places = rng.choice([("left", "right"), ("top", "bottom")])
        things = tuple(Thing(rng.choice(OBJECTS), rng.choice(colours), place, "") for place in places)
    else:
        place = rng.choices(list(POSITIONS), (0.36, 0.16, 0.16, 0.16, 0.16))[0]
        size = rng.choices(list(SIZES), (0.2, 0.45, 0.35))[0]
        things = (Thing(rng.choice(OBJECTS), rng.choice(colours), place, size),)
    return Scene(things, background, pattern, rng.randrange(1 << 30))


def render(scene: Scene, width_px: int = SIDE_PX, height_px: int = SIDE_PX) -> NDArray[np.uint8]:
    """Draw a scene, shape (H, W, 3); other sizes than 128 px keep stripe width, radii scale with the shorter side."""
    rng = random.Random(scene.seed)
    scale = min(width_px, height_px) / SIDE_PX
    base = _shade(BACKGROUNDS[scene.background], rng, 4)
    pixels_HWC = _background(scene.pattern, base, width_px * SUPERSAMPLE, height_px * SUPERSAMPLE)
    image = Image.fromarray(pixels_HWC)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        pair = len(scene.things) > 1
        low, high, offset = (*PAIR_RADII_PX, PAIR_OFFSET_PX) if pair else SIZES[thing.size]
        dx, dy = POSITIONS[thing.position]
        center_x = width_px / 2 + dx * offset * width_px / SIDE_PX + rng.uniform(-2, 2) * scale
        center_y = height_px / 2 + dy * offset * height_px / SIDE_PX + rng.uniform(-2, 2) * scale
        radius = rng.uniform(low, high) * scale
        fill = _shade(COLOURS[thing.colour], rng, 5)
        pen = Pen(canvas, (center_x * SUPERSAMPLE, center_y * SUPERSAMPLE), radius * SUPERSAMPLE, fill)
        _DRAW[thing.name](pen)
    return np.asarray(image.resize((width_px, height_px), Image.Resampling.BOX))


def _background(pattern: str, base: Rgb, width: int, height: int) -> NDArray[np.uint8]:
    """Supersampled background pixels, shape (H, W, 3)."""
    pixels_HWC = np.empty((height, width, 3), np.uint8)
    pixels_HWC[:] = base
    band = STRIPE_PX * SUPERSAMPLE
    if pattern == "horizontal stripes":
        pixels_HWC[(np.arange(height) // band) % 2 == 1] = _stripe(base)
    elif pattern == "vertical stripes":
        pixels_HWC[:, (np.arange(width) // band) % 2 == 1] = _stripe(base)
    elif pattern == "gradient":
        light, deep = _gradient_ends(base)
        ramp_H1 = np.linspace(0.0, 1.0, height)[:, None]
        rows_HC = np.array(light)[None] * (1 - ramp_H1) + np.array(deep)[None] * ramp_H1
        pixels_HWC[:] = rows_HC.round().astype(np.uint8)[:, None]
    return pixels_HWC


def _stripe(base: Rgb) -> Rgb:
    """The second colour of a striped background, far enough from the first to be seen."""
    if sum(base) > 690:
        return _mix(base, (60, 70, 95), 0.32)
    return _mix(base, (255, 255, 255), 0.38 if sum(base) < 150 else 0.6)


def _gradient_ends(base: Rgb) -> tuple[Rgb, Rgb]:
    """Colours of the top and of the bottom edge; the top is the lighter one."""
    if sum(base) > 690:
        return base, _mix(base, (60, 70, 95), 0.5)
    if sum(base) < 150:
        return _mix(base, (255, 255, 255), 0.55), base
    return _mix(base, (255, 255, 255), 0.8), _mix(base, (0, 0, 0), 0.12)


def _mix(colour: Rgb, other: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _shade(colour: Rgb, rng: random.Random, spread: int) -> Rgb:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in colour)
    return red, green, blue


class Pen:
    """Draws in units of the object's radius around its centre; everything filled gets a contour."""

    def __init__(self, canvas: ImageDraw.ImageDraw, center: Point, radius: float, fill: Rgb) -> None:
        self._canvas, self._center, self._radius = canvas, center, radius
        self.fill = fill
        self.edge = self._edge(fill)
        self.accent = _mix(fill, (255, 255, 255), 0.45) if sum(fill) < 330 else _mix(fill, (0, 0, 0), 0.3)
        self._line = max(2, round(1.6 * SUPERSAMPLE))

    @staticmethod
    def _edge(fill: Rgb) -> Rgb:
        if sum(fill) > 690:
            return (105, 112, 128)
        if sum(fill) < 150:
            return (120, 120, 126)
        return _mix(fill, (0, 0, 0), 0.45)

    def polygon(self, points: Sequence[Point], fill: Rgb | None = None, *, contour: bool = True) -> None:
        """A closed polygon, with round joints."""
        placed = [(self._center[0] + x * self._radius, self._center[1] + y * self._radius) for x, y in points]
        self._canvas.polygon(placed, fill=fill or self.fill)
        if contour:
            self._canvas.line([*placed, placed[0], placed[1]], fill=self.edge, width=self._line, joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Rgb | None = None, *, contour: bool = True,
                ) -> None:  # fmt: skip
        """An ellipse around (x, y) with half axes rx and ry."""
        turns = [2 * math.pi * i / 64 for i in range(64)]
        self.polygon([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in turns], fill, contour=contour)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Rgb | None = None, *,
            contour: bool = True) -> None:  # fmt: skip
        """An upright rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill, contour=contour)


def _circle(pen: Pen) -> None:
    pen.ellipse(0, 0, 0.95, 0.95)


def _square(pen: Pen) -> None:
    pen.box(-0.84, -0.84, 0.84, 0.84)


def _triangle(pen: Pen) -> None:
    pen.polygon([(0, -0.98), (1, 0.82), (-1, 0.82)])


def _star(pen: Pen) -> None:
    arms = [1.08 if i % 2 == 0 else 0.46 for i in range(10)]
    pen.polygon([(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(arms)])


def _heart(pen: Pen) -> None:
    """The usual parametric heart, x = 16 sin^3 t."""
    points = []
    for i in range(80):
        t = 2 * math.pi * i / 80
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((16 * math.sin(t) ** 3 / 16.5, -(y + 2) / 16.0))
    pen.polygon(points)


def _diamond(pen: Pen) -> None:
    pen.polygon([(0, -1.08), (0.76, 0), (0, 1.08), (-0.76, 0)])


def _moon(pen: Pen) -> None:
    """A crescent open to the right: an arc of the unit circle, back along a circle through its two tips."""
    tip = math.radians(48)
    outer = [tip + (2 * math.pi - 2 * tip) * i / 60 for i in range(61)]
    tip_x, tip_y = math.cos(tip), math.sin(tip)
    inner_x = 0.52
    inner_radius = math.hypot(tip_x - inner_x, tip_y)
    start = math.atan2(-tip_y, tip_x - inner_x) % (2 * math.pi)
    inner = [start + (math.atan2(tip_y, tip_x - inner_x) - start) * i / 40 for i in range(1, 40)]
    points = [(math.cos(a), math.sin(a)) for a in outer]
    points += [(inner_x + inner_radius * math.cos(a), inner_radius * math.sin(a)) for a in inner]
    pen.polygon([(x + 0.22, y) for x, y in points])


def _house(pen: Pen) -> None:
    pen.box(-0.78, -0.15, 0.78, 0.95)
    pen.polygon([(0, -1.02), (1.05, -0.12), (-1.05, -0.12)], pen.accent)
    pen.box(-0.2, 0.32, 0.2, 0.95, pen.accent)


def _tree(pen: Pen) -> None:
    pen.box(-0.16, 0.5, 0.16, 1.05, (112, 70, 38))
    pen.polygon([(0, -0.62), (0.92, 0.6), (-0.92, 0.6)])
    pen.polygon([(0, -1.1), (0.7, -0.05), (-0.7, -0.05)])


def _fish(pen: Pen) -> None:
    pen.polygon([(0.42, 0), (1.08, -0.6), (0.95, 0), (1.08, 0.6)], pen.accent)
    pen.ellipse(-0.18, 0, 0.84, 0.58)
    pen.ellipse(-0.58, -0.14, 0.15, 0.15, (250, 250, 250))
    pen.ellipse(-0.6, -0.14, 0.07, 0.07, (20, 20, 22), contour=False)


def _flower(pen: Pen) -> None:
    for i in range(6):
        angle = i * math.pi / 3
        pen.ellipse(0.62 * math.cos(angle), 0.62 * math.sin(angle), 0.4, 0.4)
    warm = pen.fill[0] > 200 and pen.fill[1] > 100 and pen.fill[2] < 80
    pen.ellipse(0, 0, 0.36, 0.36, (120, 72, 38) if warm else (250, 212, 35))


def _car(pen: Pen) -> None:
    pen.polygon([(-0.62, -0.05), (-0.4, -0.6), (0.38, -0.6), (0.68, -0.05)])
    pen.polygon([(-0.44, -0.1), (-0.3, -0.46), (0.28, -0.46), (0.48, -0.1)], (205, 228, 245))
    pen.polygon([(-1.05, -0.08), (0.85, -0.08), (1.05, 0.1), (1.05, 0.4), (-1.05, 0.4)])
    for x in (-0.55, 0.55):
        pen.ellipse(x, 0.42, 0.27, 0.27, (40, 40, 44))
        pen.ellipse(x, 0.42, 0.11, 0.11, (200, 200, 205), contour=False)


_DRAW = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "heart": _heart,
    "diamond": _diamond, "moon": _moon, "house": _house, "tree": _tree, "fish": _fish,
    "flower": _flower, "car": _car,
}  # fmt: skip
