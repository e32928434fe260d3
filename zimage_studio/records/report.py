"""The report card: a model against its parent at the same prompts and seeds, and what was not measured."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal, Self

from pydantic import ConfigDict

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.checks import flag, refuse_unknown, text, whole
from zimage_studio.records.request import (
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_SIDE_PX,
    MAX_STEPS,
    MIN_SIDE_PX,
    SIDE_STEP_PX,
    STRICT,
)
from zimage_studio.records.versioned import WrongSchemaError, read_versioned

SCHEMA = 1
CONFIDENCE = 0.95
MIN_RESAMPLES, DEFAULT_RESAMPLES, MAX_RESAMPLES = 2000, 5000, 100_000
MIN_PROMPTS, DEFAULT_PROMPTS, MAX_PROMPTS = 2, 24, 1000
MIN_REPEATS, DEFAULT_REPEATS, MAX_REPEATS = 3, 7, 100
MAX_PATH_CHARS = 1000

Better = Literal["higher", "lower"]
Column = Literal["model", "parent", "quantised"]
TargetName = Literal["size", "time", "clip_drop"]
Finding = Literal["better", "worse", "unclear", "same", ""]
COLUMNS: tuple[Column, ...] = ("model", "parent", "quantised")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One line of the card: `value` is the model's, `parent` its parent's, `quantised` the quantised parent's.

    `interval` holds the true mean difference to the parent with 95 %, in `unit` (value minus parent; for metrics that
    are a distance to the parent, whose own value is `ideal`, it holds the mean itself). It is None for what is
    counted and not sampled, such as bytes. `quantised_interval` is the same for the quantised parent, and `rivals` for
    model minus quantised parent. `to_parent` marks distances to the parent's picture, whose own value is that of a
    picture with itself; for PSNR that is infinite, which None stands for: `identical` says then that all pictures were
    equal. `counted` marks what is exact without sampling. `samples` counts what was averaged, `source` names the model
    that scored or the way it was measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    value: float | None
    parent: float | None
    unit: str
    better: Better
    interval: tuple[float, float] | None = None
    quantised: float | None = None
    quantised_interval: tuple[float, float] | None = None
    rivals: tuple[float, float] | None = None
    to_parent: bool = False
    identical: bool = False
    counted: bool = False
    samples: int = 0
    source: str = ""

    @property
    def difference(self) -> float | None:
        """Model minus parent; None where one is not known, or where the metric itself is a distance."""
        if self.to_parent or self.value is None or self.parent is None:
            return None
        return self.value - self.parent

    @property
    def finding(self) -> Finding:
        """What the numbers show: `unclear` where the interval holds 0 too; empty where they show nothing.

        It is `unclear` too where no picture differed at all, for others may.
        A distance to the parent has none: it is 0 or it is not. What was measured once, without an interval, neither.
        """
        if self.identical:
            return "same"
        if self.to_parent:
            return ""
        if self.interval is not None:
            return _finding(self.interval, self.better)
        if self.difference is None or not self.counted:
            return ""
        return _finding((self.difference, self.difference), self.better) if self.difference else "same"

    @property
    def against_quantised(self) -> Finding:
        """The model beside the quantised parent: which of the two is better, as far as the numbers show it."""
        return "" if self.rivals is None else _finding(self.rivals, self.better)


def _finding(interval: tuple[float, float], better: Better) -> Finding:
    low, high = interval
    if low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == (better == "higher") else "worse"


@dataclass(frozen=True, kw_only=True, slots=True)
class NotMeasured:
    """What the card lacks: `reason` is a message key, `values` fill it in. `column` is empty for all columns."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    reason: str
    values: Mapping[str, str | int | float] = field(default_factory=dict)
    column: Column | Literal[""] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A published target: `reached` at most `bound` meets it. `met` is None where it was not measured.

    `size` and `time` are ratios to the parent; `clip_drop` is the parent's score minus the model's, as cosines.
    `sure` says that the whole interval of what was reached lies on the same side of the bound.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: TargetName
    bound: float
    reached: float | None
    met: bool | None
    sure: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model that was measured. Parameters and bytes of all components, and of the transformer alone."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    sha256: str
    parameters: int
    bytes: int
    transformer_parameters: int
    transformer_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantisedParent:
    """The parent unpruned, its linear layers rounded until it takes as many bytes as the model.

    `int4` and `int8` count the layers of 4 and 8 bits, `plain` those left as they are. `bytes` is the real size of the
    whole model, `wanted_bytes` that of the pruned one. `reachable` is False where even 4 bits everywhere take more,
    or no rounding at all takes less.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    int4: int
    int8: int
    plain: int
    bytes: int
    wanted_bytes: int
    transformer_bytes: int
    reachable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One prompt and seed: files beside the card by column, and the numbers of each column by metric."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    prompt: str
    seed: int
    files: Mapping[str, str]
    values: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportCard:
    """All that was found, on which machine, with which versions, prompts and seeds. `created` is ISO 8601 in UTC."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    created: str
    model: Subject
    parent: Subject
    width: int
    height: int
    steps: int
    guidance: float
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    not_measured: tuple[NotMeasured, ...]
    targets: tuple[Target, ...]
    pairs: tuple[Pair, ...]
    machine: Mapping[str, str]
    stack: Mapping[str, str]
    quantised: QuantisedParent | None = None
    resamples: int = DEFAULT_RESAMPLES
    bootstrap_seed: int = 0
    confidence: float = CONFIDENCE
    seconds: float = 0.0

    def metric(self, name: str) -> Metric | None:
        """The line of that name."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    def to_dict(self) -> dict[str, object]:
        """All fields and the schema number, as JSON values."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        """Readable, as it lies beside a model; NaN is refused, non-ASCII is kept."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, source: str) -> Self:
        """Read what `to_json` wrote. Raises InvalidInputError on another schema, unknown keys, wrong values."""
        try:
            return read_versioned(cls, source, SCHEMA)
        except WrongSchemaError as error:
            raise InvalidInputError("report.schema", field="report", value=error.found, known=SCHEMA) from error
        except ValueError as error:
            raise InvalidInputError("report.unreadable", field="report", why=error) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRequest:
    """What a door asks of an evaluation.

    `prompts` may be empty: then `count` of the questions of the embedded model's world, or of the bundled prompts,
    are taken. Picture i has seed `seed` + i. `clip` is a local folder of an open_clip checkpoint or a hub name
    (`organisation/name`); empty takes the embedded one where it fits. `lpips`, `image_reward` and `hps` are local
    folders. `repeats` is how often each model is timed. `quantised` False leaves the quantised column out, which the
    card says. `size` (px of a side) and `steps` are the parent's own where they are 0.
    """

    prompts: tuple[str, ...] = ()
    count: int = DEFAULT_PROMPTS
    seed: int = 0
    resamples: int = DEFAULT_RESAMPLES
    repeats: int = DEFAULT_REPEATS
    clip: str = ""
    lpips: str = ""
    image_reward: str = ""
    hps: str = ""
    quantised: bool = True
    size: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        prompts = self.prompts
        if not isinstance(prompts, list | tuple):
            raise InvalidInputError("report.prompts_list", field="prompts", value=type(prompts).__name__)
        prompts = tuple(text("prompt", prompt, MAX_PROMPT_CHARS) for prompt in prompts)
        if prompts and not MIN_PROMPTS <= len(prompts) <= MAX_PROMPTS:
            raise InvalidInputError(
                "out_of_range", field="prompts", value=len(prompts), low=MIN_PROMPTS, high=MAX_PROMPTS
            )
        changes = {
            "prompts": prompts,
            "count": len(prompts) or whole("count", self.count, MIN_PROMPTS, MAX_PROMPTS),
            "seed": whole("seed", self.seed, 0, MAX_SEED - MAX_PROMPTS),
            "resamples": whole("resamples", self.resamples, MIN_RESAMPLES, MAX_RESAMPLES),
            "repeats": whole("repeats", self.repeats, MIN_REPEATS, MAX_REPEATS),
            "clip": text("clip", self.clip, MAX_PATH_CHARS),
            "lpips": text("lpips", self.lpips, MAX_PATH_CHARS),
            "image_reward": text("image_reward", self.image_reward, MAX_PATH_CHARS),
            "hps": text("hps", self.hps, MAX_PATH_CHARS),
            "quantised": flag("quantised", self.quantised),
            "size": _size(self.size),
            "steps": whole("steps", self.steps, 0, MAX_STEPS),
        }
        for name, value in changes.items():
            object.__setattr__(self, name, value)

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each prompt."""
        return tuple(range(self.seed, self.seed + self.count))

    def to_dict(self) -> dict[str, object]:
        """As a job keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Read what `to_dict` gave, or what a door sent. Raises InvalidInputError naming the field."""
        refuse_unknown(data, cls.__dataclass_fields__)
        return cls(**{name: value for name, value in data.items() if value is not None})  # type: ignore[arg-type]


def _size(value: object) -> int:
    """0, or a side in px."""
    side = whole("size", value, 0, MAX_SIDE_PX)
    if side == 0:
        return 0
    if side % SIDE_STEP_PX:
        raise InvalidInputError("report.size_step", field="size", value=side, step=SIDE_STEP_PX)
    return whole("size", side, MIN_SIDE_PX, MAX_SIDE_PX)
