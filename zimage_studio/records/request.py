"""What a person asks for: one image (GenerationRequest), or several that differ by seed (Batch)."""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

from pydantic import ConfigDict

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.checks import real, refuse_unknown, text, whole

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""How records are read back from JSON: unknown keys and other types are refused."""

SIDE_STEP_PX = 16
MIN_SIDE_PX, MAX_SIDE_PX = 64, 4096
MAX_PIXELS = 2048 * 2048
MAX_ASPECT = 8
MAX_STEPS = 200
MAX_GUIDANCE = 20.0
MIN_SHIFT, MAX_SHIFT = 0.1, 20.0
MAX_SEED = 2**64 - 1
MAX_COUNT = 64
MAX_PROMPT_CHARS = 5000
MAX_VARIATIONS = 16
MIN_STRENGTH = 0.01
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTROL_MARK = re.compile(r"<\|\w+\|>|</?think>|</?tool_call>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """A step of the start noise towards the noise of `seed`: 0 stays, `strength` 1 arrives."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    seed: int
    strength: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole("variation_seed", self.seed, 0, MAX_SEED))
        object.__setattr__(self, "strength", real("variation_strength", self.strength, 0.0, 1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """One image to make. Equal requests to one model on one machine give equal pixels.

    `guidance` is g in `pos + g * (pos - neg)`, as diffusers counts it for Z-Image: 0 switches it off, and what
    other programs call CFG scale is g + 1. `steps` is the number of transformer forwards (diffusers >= 0.39).
    `shift` is the time shift of the flow-matching scheduler; None keeps the model's own.
    `variations` turn the start noise, one after the other. `variety` (0..1) loosens how the prompt is read in the
    first steps. `source` is the pixel hash of a picture to start from instead of pure noise, and `strength` (0.01..1)
    the share of the steps that is run on it; 1 forgets the picture.
    Raises InvalidInputError on any value outside its bounds.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    negative_prompt: str = ""
    shift: float | None = None
    variations: tuple[Variation, ...] = ()
    variety: float = 0.0
    source: str | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        text("prompt", self.prompt, MAX_PROMPT_CHARS)
        if not self.prompt.strip():
            raise InvalidInputError("empty_prompt", field="prompt")
        text("negative_prompt", self.negative_prompt, MAX_PROMPT_CHARS)
        _refuse_marks("prompt", self.prompt)
        _refuse_marks("negative_prompt", self.negative_prompt)
        for name, bounds in _BOUNDS.items():
            object.__setattr__(self, name, bounds(name, getattr(self, name)))
        if self.shift is not None:
            object.__setattr__(self, "shift", real("shift", self.shift, MIN_SHIFT, MAX_SHIFT))
        check_size(self.width, self.height)
        object.__setattr__(self, "variations", _chain(self.variations))
        if len(self.variations) > MAX_VARIATIONS:
            raise InvalidInputError(
                "too_many_variations", field="variations", count=len(self.variations), high=MAX_VARIATIONS
            )
        self._check_source()

    def _check_source(self) -> None:
        if self.source is not None and (not isinstance(self.source, str) or not _SHA256.fullmatch(self.source)):
            raise InvalidInputError("bad_hash", field="source", value=repr(self.source))
        if (self.source is None) != (self.strength is None):
            raise InvalidInputError(
                "source_without_strength" if self.source else "strength_without_source", field="strength"
            )
        if self.strength is not None:
            object.__setattr__(self, "strength", real("strength", self.strength, MIN_STRENGTH, 1.0))

    @property
    def skipped_steps(self) -> int:
        """How many of the first steps are not run because the picture to start from stands for them."""
        if self.strength is None:
            return 0
        return int(max(self.steps - self.steps * self.strength, 0))  # as diffusers counts it

    def to_dict(self) -> dict[str, object]:
        """All fields, as JSON values."""
        return {**asdict(self), "variations": [asdict(variation) for variation in self.variations]}


def _refuse_marks(name: str, value: str) -> None:
    """Marks such as <|im_end|> would close the user's turn in the text encoder's chat template."""
    if mark := _CONTROL_MARK.search(value):
        raise InvalidInputError("control_mark", field=name, value=mark.group())


def _side(name: str, value: object) -> int:
    side = whole(name, value, MIN_SIDE_PX, MAX_SIDE_PX)
    if side % SIDE_STEP_PX:
        below = side // SIDE_STEP_PX * SIDE_STEP_PX
        raise InvalidInputError(
            "not_a_multiple",
            field=name, value=side, step=SIDE_STEP_PX, below=max(below, MIN_SIDE_PX), above=below + SIDE_STEP_PX,
        )  # fmt: skip
    return side


def check_size(width: int, height: int) -> None:
    """Refuse a size that is too large in all or too narrow; the sides themselves are checked already."""
    if width * height > MAX_PIXELS:
        raise InvalidInputError(
            "too_many_pixels", field="width", width=width, height=height, pixels=width * height, high=MAX_PIXELS
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidInputError("too_narrow", field="width", width=width, height=height, high=MAX_ASPECT)


_BOUNDS: dict[str, Callable[[str, object], float]] = {
    "seed": lambda name, value: whole(name, value, 0, MAX_SEED),
    "width": _side,
    "height": _side,
    "steps": lambda name, value: whole(name, value, 1, MAX_STEPS),
    "guidance": lambda name, value: real(name, value, 0.0, MAX_GUIDANCE),
    "variety": lambda name, value: real(name, value, 0.0, 1.0),
}


def checked(name: str, value: object) -> float | str:
    """`value` as the field `name` of a request takes it. Raises InvalidInputError on what a request refuses."""
    if name in ("prompt", "negative_prompt"):
        words = text(name, value, MAX_PROMPT_CHARS)
        _refuse_marks(name, words)
        return words
    if name == "shift":
        return real(name, value, MIN_SHIFT, MAX_SHIFT)
    return _BOUNDS[name](name, value)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDefaults:
    """What a model likes best: read from its folder (`studio_defaults.json`) or from its family.

    `sizes` are (width, height) pairs in px that the model draws well, the first one being the default.
    """

    width: int = 1024
    height: int = 1024
    steps: int = 8
    guidance: float = 0.0
    sizes: tuple[tuple[int, int], ...] = field(
        default=((1024, 1024), (1152, 896), (896, 1152), (1280, 720), (720, 1280), (1536, 1024), (1024, 1536))
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """`count` images of one request: image i has seed + i (modulo 2^64) and its own generator.

    Of a request with variations the seed stays, and the last variation's seed counts up instead, as in A1111.
    """

    first: GenerationRequest
    count: int = 1

    def __post_init__(self) -> None:
        whole("count", self.count, 1, MAX_COUNT)

    def __iter__(self) -> Iterator[GenerationRequest]:
        for index in range(self.count):
            if self.first.variations:
                *before, last = self.first.variations
                last = replace(last, seed=(last.seed + index) % (MAX_SEED + 1))
                yield replace(self.first, variations=(*before, last))
            else:
                yield replace(self.first, seed=(self.first.seed + index) % (MAX_SEED + 1))


_OPTIONAL = (
    "width", "height", "steps", "guidance", "negative_prompt", "shift", "variety", "source", "strength",
)  # fmt: skip
_VARIATION = ("variations", "variation_seed", "variation_strength")


def parse_batch(values: Mapping[str, object], defaults: ModelDefaults) -> Batch:
    """Build a batch from raw values of any door; what is missing or None comes from the model's defaults.

    `seed` may be a whole number, its decimal text (JSON clients round above 2^53), or empty, None or -1 for a
    random one, which is drawn here, so that every later step sees the resolved seed. `variation_strength` above 0
    adds a variation with `variation_seed` (drawn when empty) to those in `variations`.
    """
    refuse_unknown(values, ("prompt", "seed", "count", *_OPTIONAL, *_VARIATION))
    given = {name: values[name] for name in _OPTIONAL if values.get(name) is not None}
    base = {"width": defaults.width, "height": defaults.height, "steps": defaults.steps, "guidance": defaults.guidance}
    prompt = values.get("prompt")
    if prompt is None:
        raise InvalidInputError("empty_prompt", field="prompt")
    request = GenerationRequest(
        **{**base, **given, "prompt": prompt, "seed": parse_seed(values.get("seed")), "variations": _variations(values)}  # type: ignore[arg-type]
    )
    count = values.get("count")
    return Batch(request, whole("count", 1 if count is None else count, 1, MAX_COUNT))


def _variations(values: Mapping[str, object]) -> tuple[Variation, ...]:
    chain = _chain(values.get("variations") or ())
    seed, strength = values.get("variation_seed"), values.get("variation_strength")
    if strength is None:
        if seed is not None and seed != "":
            raise InvalidInputError("variation_without_strength", field="variation_strength", value=seed)
        return chain
    link = Variation(seed=parse_seed(seed, "variation_seed"), strength=real("variation_strength", strength, 0.0, 1.0))
    return (*chain, link) if link.strength > 0 else chain


def _chain(links: object) -> tuple[Variation, ...]:
    if isinstance(links, str | Mapping) or not isinstance(links, Sequence):
        raise InvalidInputError("bad_variations", field="variations", value=repr(links))
    return tuple(_variation(link) for link in links)


def _variation(link: object) -> Variation:
    if isinstance(link, Variation):
        return link
    if not isinstance(link, Mapping) or link.keys() != {"seed", "strength"}:
        raise InvalidInputError("bad_variations", field="variations", value=repr(link))
    return Variation(seed=link["seed"], strength=link["strength"])


def parse_seed(value: object, field: str = "seed") -> int:
    """A seed in 0 .. 2^64-1; empty, None and -1 draw one in 0 .. 2^32-1 (short enough to read aloud)."""
    if (
        value is None
        or (isinstance(value, str) and value.strip() in ("", "-1"))
        or (not isinstance(value, bool) and value == -1)
    ):
        return secrets.randbelow(2**32)
    return whole(field, value, 0, MAX_SEED)
