"""What recovery is asked to do: how long, from which data, by which loss, with which optimiser."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, get_args

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.checks import flag, real, refuse_unknown, text, whole
from zimage_studio.records.strict_json import loads_strict

SCHEMA = 1
DRAWN = "drawn"
"""The data set that draws its pictures itself: the world of the embedded model."""

Method = Literal["flow", "distil", "both"]
Trainable = Literal["full", "lora"]
Optimiser = Literal["adamw", "adamw8bit", "muon"]
Schedule = Literal["cosine", "constant_linear"]
TrainingPrecision = Literal["auto", "fp32", "bf16"]

MAX_STEPS, MAX_MINUTES, MAX_BATCH, MAX_ACCUMULATION = 1_000_000, 10_080.0, 1024, 1024
MAX_PROMPTS, MAX_PROMPT_CHARS, MAX_SAMPLES, MAX_HELD_OUT, MAX_CUTS = 100_000, 2000, 16, 1024, 16
MAX_PATH_CHARS = 1000
AUTO, MAX_PROCESSES = "auto", 64
MAX_TRAJECTORIES = 100_000
SIZE_STEP_PX, MAX_SIZE_PX = 16, 2048
MAX_SEED = 2**63 - 1
MAX_CHECKPOINT_S = 60
"""Nobody loses more than a minute of training."""
DEFAULT_STEPS = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryConfig:
    """All that decides what training does to a student.

    Exactly one of `steps` and `minutes` is the budget (minutes of training, over all stages). `method` says which
    losses count: flow matching on the pictures of `data_set`, distillation of the teacher's velocity on its own
    trajectories, or both, weighted. `data_set` is `drawn` or a path: a folder of pictures, or webdataset shards; it
    may be empty for distillation, which needs only `prompts` (empty: the captions of the data set).
    `teacher` is a model as the door knows it (empty: the parent of the student); it draws `trajectories` pictures.

    `lr` is AdamW's, `muon_lr` Muon's. `warm_up` is a share of the budget, `constant_share` the share after which
    `constant_linear` falls. `ema` is a decay, 0 for none. `size` is the side in px (0: the model's own).
    `samples` pictures are drawn every `sample_every_s`; `held_out` pictures are kept for validation.

    `cuts` makes it progressive: each is a ratio in (0, 1) or the name of a plan; it is cut and then recovered from, in
    equal shares of the budget. `sparsity_share` of each share goes before its cut, with `sparsity_weight` on the norms
    of what will be removed.

    `processes` train together, each with the whole model and batches of its own: a number, or `auto` for one on each
    accelerator (`processes_on` says how many that is).
    """

    steps: int | None = None
    minutes: float | None = None
    method: Method = "flow"
    flow_weight: float = 1.0
    distil_weight: float = 1.0
    data_set: str = DRAWN
    prompts: tuple[str, ...] = ()
    teacher: str = ""
    trajectories: int = 256
    trainable: Trainable = "full"
    lora_rank: int = 16
    batch: int = 8
    accumulation: int = 1
    optimiser: Optimiser = "adamw"
    lr: float = 5e-4
    muon_lr: float = 4e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    schedule: Schedule = "constant_linear"
    warm_up: float = 0.05
    constant_share: float = 0.4
    ema: float = 0.98
    precision: TrainingPrecision = "auto"
    gradient_checkpointing: bool = True
    size: int = 0
    caption_dropout: float = 0.1
    held_out: int = 32
    validate_every_s: int = 20
    samples: int = 4
    sample_every_s: int = 60
    checkpoint_every_s: int = 60
    cuts: tuple[float | str, ...] = ()
    sparsity_share: float = 0.0
    sparsity_weight: float = 0.01
    seed: int = 0
    processes: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            object.__setattr__(self, "steps", DEFAULT_STEPS)
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        _refuse_contradictions(self)

    @property
    def uses_flow(self) -> bool:
        """Whether pictures are needed."""
        return self.method != "distil"

    @property
    def uses_teacher(self) -> bool:
        """Whether a teacher is needed."""
        return self.method != "flow"

    def to_dict(self) -> dict[str, object]:
        """All fields and the schema number, as JSON values."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        """Readable, as it lies beside a recovered model."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "RecoveryConfig":
        """Read what `to_dict` gave; what is left out keeps its default. Raises InvalidInputError."""
        values = dict(data)
        schema = values.pop("schema", None)
        if type(schema) is not int or schema != SCHEMA:
            raise InvalidInputError("recover_schema", field="recovery", value=schema, known=SCHEMA)
        return parse_recovery(values, cls())

    @classmethod
    def from_json(cls, source: str) -> "RecoveryConfig":
        """Read what `to_json` wrote. Raises InvalidInputError."""
        try:
            data = loads_strict(source)
        except ValueError as error:
            raise InvalidInputError("recover_unreadable", field="recovery", why=error) from error
        if not isinstance(data, dict):
            raise InvalidInputError("recover_unreadable", field="recovery", why=type(data).__name__)
        return cls.from_dict(data)


def parse_recovery(values: Mapping[str, object], base: RecoveryConfig | None = None) -> RecoveryConfig:
    """A config from the raw values of any door; what is missing or None is as in `base` (the defaults when None).

    A budget given replaces the budget of `base`. Raises InvalidInputError naming the field.
    """
    refuse_unknown(values, (f.name for f in fields(RecoveryConfig)))
    given = {name: value for name, value in values.items() if value is not None}
    if given.keys() & {"steps", "minutes"}:
        given = {"steps": None, "minutes": None, **given}
    return replace(RecoveryConfig() if base is None else base, **given)  # type: ignore[arg-type]


def processes_on(wanted: int | Literal["auto"], devices: int) -> int:
    """How many processes train where there are `devices` accelerators; 0 devices: on the processor.

    Raises InvalidInputError (recover_processes) for more processes than accelerators.
    """
    if wanted == "auto":
        return max(1, devices)
    if devices and wanted > devices:
        raise InvalidInputError("recover_processes", field="processes", value=wanted, high=devices)
    return wanted


# --- bounds and contradictions --------------------------------------------------------------------------------------


def _choice(known: tuple[str, ...]) -> Callable[[str, object], str]:
    def check(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise InvalidInputError("bad_choice", field=name, value=value, known=", ".join(known))
        return value

    return check


def _whole(low: int, high: int) -> Callable[[str, object], int]:
    return lambda name, value: whole(name, value, low, high)


def _real(low: float, high: float) -> Callable[[str, object], float]:
    return lambda name, value: real(name, value, low, high)


def _size(name: str, value: object) -> int:
    side = whole(name, value, 0, MAX_SIZE_PX)
    if side % SIZE_STEP_PX:
        below = side // SIZE_STEP_PX * SIZE_STEP_PX
        raise InvalidInputError(
            "not_a_multiple", field=name, value=side, step=SIZE_STEP_PX, below=below, above=below + SIZE_STEP_PX
        )
    return side


def _listed(name: str, value: object, high: int) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidInputError("recover_bad_list", field=name, value=value)
    if len(value) > high:
        raise InvalidInputError("recover_too_many", field=name, count=len(value), high=high)
    return tuple(value)


def _prompts(name: str, value: object) -> tuple[str, ...]:
    return tuple(text(name, prompt, MAX_PROMPT_CHARS) for prompt in _listed(name, value, MAX_PROMPTS))


def _cuts(name: str, value: object) -> tuple[float | str, ...]:
    return tuple(_cut(name, cut) for cut in _listed(name, value, MAX_CUTS))


def _cut(name: str, value: object) -> float | str:
    if isinstance(value, str):
        return text(name, value, MAX_PATH_CHARS)
    ratio = real(name, value, 0, 1)
    if ratio in (0, 1):
        raise InvalidInputError("recover_ratio", field=name, value=value)
    return ratio


def _processes(name: str, value: object) -> int | str:
    try:
        return AUTO if value == AUTO else whole(name, value, 1, MAX_PROCESSES)
    except InvalidInputError as error:
        shown = error.values["value"]
        raise InvalidInputError("recover_bad_processes", field=name, value=shown, high=MAX_PROCESSES) from error


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "steps": lambda name, value: None if value is None else whole(name, value, 1, MAX_STEPS),
    "minutes": lambda name, value: None if value is None else real(name, value, 0.01, MAX_MINUTES),
    "method": _choice(get_args(Method)),
    "flow_weight": _real(0, 1000),
    "distil_weight": _real(0, 1000),
    "data_set": lambda name, value: text(name, value, MAX_PATH_CHARS),
    "prompts": _prompts,
    "teacher": lambda name, value: text(name, value, MAX_PATH_CHARS),
    "trajectories": _whole(2, MAX_TRAJECTORIES),
    "trainable": _choice(get_args(Trainable)),
    "lora_rank": _whole(1, 1024),
    "batch": _whole(1, MAX_BATCH),
    "accumulation": _whole(1, MAX_ACCUMULATION),
    "optimiser": _choice(get_args(Optimiser)),
    "lr": _real(1e-8, 1),
    "muon_lr": _real(1e-8, 1),
    "weight_decay": _real(0, 1),
    "clip_norm": _real(0, 1000),
    "schedule": _choice(get_args(Schedule)),
    "warm_up": _real(0, 0.9),
    "constant_share": _real(0, 1),
    "ema": _real(0, 0.99999),
    "precision": _choice(get_args(TrainingPrecision)),
    "gradient_checkpointing": flag,
    "size": _size,
    "caption_dropout": _real(0, 1),
    "held_out": _whole(1, MAX_HELD_OUT),
    "validate_every_s": _whole(1, 3600),
    "samples": _whole(0, MAX_SAMPLES),
    "sample_every_s": _whole(1, 3600),
    "checkpoint_every_s": _whole(1, MAX_CHECKPOINT_S),
    "cuts": _cuts,
    "sparsity_share": _real(0, 0.9),
    "sparsity_weight": _real(0, 1000),
    "seed": _whole(0, MAX_SEED),
    "processes": _processes,
}


def _refuse_contradictions(config: RecoveryConfig) -> None:
    if config.steps is not None and config.minutes is not None:
        raise InvalidInputError("recover_two_budgets", field="steps", other="minutes")
    if not config.data_set and config.uses_flow:
        raise InvalidInputError("recover_flow_needs_pictures", field="data_set", value=config.method)
    if not config.data_set and not config.prompts:
        raise InvalidInputError("recover_needs_prompts", field="prompts")
    if not (config.uses_flow and config.flow_weight) and not (config.uses_teacher and config.distil_weight):
        raise InvalidInputError("recover_no_loss", field="flow_weight", other="distil_weight")
    if config.trainable == "lora" and config.optimiser == "muon":
        raise InvalidInputError("recover_muon_lora", field="optimiser", value=config.optimiser)
    if config.sparsity_share and not config.cuts:
        raise InvalidInputError("recover_needs_cuts", field="sparsity_share", other="cuts")
