"""How a model is fitted into memory: the profile a person asks for, and what the live pipeline answers to it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import ClassVar, Literal, Self, get_args

from pydantic import ConfigDict

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.checks import flag, refuse_unknown, text, whole
from zimage_studio.records.request import STRICT
from zimage_studio.records.versioned import WrongSchemaError, read_versioned

SCHEMA = 1
MAX_NAME_CHARS = 60
MAX_FEED_FORWARD_CHUNKS = 64
MIN_QUERY_CHUNK, MAX_QUERY_CHUNK = 64, 16384
TILE_STEP_PX, MAX_TILE_PX = 32, 2048
MAX_CACHED_PROMPTS = 4096
MAX_BLOCKS_PER_GROUP = 64
NOTED = frozenset({"ladder", "out_of_memory"})
"""In a recipe's memory: the rung of the ladder of precisions, and the rungs taken because memory ran out."""

Precision = Literal["auto", "bf16", "fp16", "fp32"]
Backend = Literal[
    "auto", "native", "native_math", "native_efficient", "native_flash", "native_cudnn", "flash", "flash_3", "sage",
    "xformers",
]  # fmt: skip
GroupOffload = Literal["none", "block", "leaf"]
Quantization = Literal["none", "int8", "fp8", "int4"]
Phase = Literal["text", "denoise", "decode"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryProfile:
    """Every memory and speed switch. The default is `exact`: nothing lossy, nothing offloaded.

    `*_precision`: `auto` is bfloat16 where the device computes in it, else float32.
    `attention_backend`: `auto` leaves the choice to torch (`native`).
    `attention_slicing`, `vae_slicing` and `gradient_checkpointing` are the field's usual switches; the live pipeline
    says what they do here. `attention_query_chunk` is the number of queries computed at once, 0 for all;
    `feed_forward_chunks` is into how many pieces the sequence is cut for the feed-forward layers, 1 for none.
    `vae_tile_px` is the side of a tile in px of the picture, 0 for no tiling.
    `evict_text_encoder` keeps the text encoder off the device and streams it through when a new prompt is read;
    `embedding_cache` is how many prompts are remembered, 0 for none.
    `group_offload` streams the transformer through the device, `group_offload_blocks` blocks at a time (`block`) or
    layer by layer (`leaf`), `group_offload_stream` beside the computation, `group_offload_disk` from disk instead of
    RAM. `fp8_storage` keeps the transformer's weights as unscaled float8 and computes in its precision;
    `quantization` replaces its linear layers by torchao's. `compile` compiles the repeated blocks.
    Raises InvalidInputError on a value outside its bounds and on two switches that contradict each other.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str = ""
    text_encoder_precision: Precision = "auto"
    transformer_precision: Precision = "auto"
    vae_precision: Precision = "auto"
    attention_backend: Backend = "auto"
    attention_slicing: bool = False
    attention_query_chunk: int = 0
    feed_forward_chunks: int = 1
    vae_tile_px: int = 0
    vae_slicing: bool = False
    gradient_checkpointing: bool = False
    evict_text_encoder: bool = False
    embedding_cache: int = 32
    model_offload: bool = False
    group_offload: GroupOffload = "none"
    group_offload_blocks: int = 1
    group_offload_stream: bool = False
    group_offload_disk: bool = False
    fp8_storage: bool = False
    quantization: Quantization = "none"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        _refuse_contradictions(self)

    @property
    def switches(self) -> dict[str, object]:
        """Every switch and its value, without the name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}

    @property
    def changed(self) -> dict[str, object]:
        """The switches that are not as in `exact`."""
        return {name: value for name, value in self.switches.items() if value != getattr(EXACT, name)}

    @property
    def numerics(self) -> dict[str, object]:
        """The switches on which the numbers may depend, as a recipe records them; precisions are recorded as dtypes.

        Offloading, eviction and caching move weights and change no number.
        """
        return {name: value for name, value in self.changed.items() if name in CHANGES_NUMBERS}

    def same_switches(self, other: "MemoryProfile") -> bool:
        """Whether both ask for the same, whatever they are called."""
        return self.switches == other.switches

    def to_json(self) -> str:
        """A file of a profile: schema and every switch, readable."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, source: str) -> Self:
        """Read what `to_json` wrote; switches left out keep their default.

        Raises InvalidInputError on another schema, unknown keys, wrong types, values out of bounds, contradictions.
        """
        try:
            return read_versioned(cls, source, SCHEMA)
        except WrongSchemaError as error:
            raise InvalidInputError("profile_schema", field="profile", value=error.found, known=SCHEMA) from error
        except ValueError as error:
            raise InvalidInputError("profile_unreadable", field="profile", why=error) from error


def parse_profile(values: Mapping[str, object], base: MemoryProfile | None = None) -> MemoryProfile:
    """A profile from raw values of any door; what is missing or None is as in `base` (`exact` when None).

    What a recipe notes beside the switches (NOTED) is passed over.
    """
    start = EXACT if base is None else base
    refuse_unknown(values.keys() - NOTED, (f.name for f in fields(MemoryProfile)))
    given = {name: value for name, value in values.items() if value is not None and name not in NOTED}
    return replace(start, **given)  # type: ignore[arg-type]


PLACES_WEIGHTS = (
    "evict_text_encoder", "embedding_cache", "model_offload", "group_offload", "group_offload_blocks",
    "group_offload_stream", "group_offload_disk",
)  # fmt: skip


def placed_as(profile: MemoryProfile, other: MemoryProfile) -> MemoryProfile:
    """`profile` with its weights lying where `other` has them, which changes no number.

    `profile` itself where its other switches contradict that.
    """
    try:
        return replace(profile, **{name: getattr(other, name) for name in PLACES_WEIGHTS})
    except InvalidInputError:
        return profile


# --- bounds and contradictions --------------------------------------------------------------------------------------


def _choice(known: tuple[str, ...]) -> Callable[[str, object], str]:
    def check(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise InvalidInputError("bad_choice", field=name, value=value, known=", ".join(known))
        return value

    return check


def _query_chunk(name: str, value: object) -> int:
    tokens = whole(name, value, 0, MAX_QUERY_CHUNK)
    return tokens if tokens == 0 else whole(name, tokens, MIN_QUERY_CHUNK, MAX_QUERY_CHUNK)


def _tile(name: str, value: object) -> int:
    """Tiles overlap by a quarter of 8-fold latents, so their side must be a multiple of 32 px."""
    side = whole(name, value, 0, MAX_TILE_PX)
    if side % TILE_STEP_PX:
        below = side // TILE_STEP_PX * TILE_STEP_PX
        raise InvalidInputError(
            "not_a_multiple", field=name, value=side, step=TILE_STEP_PX, below=below, above=below + TILE_STEP_PX
        )
    return side


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "name": lambda name, value: text(name, value, MAX_NAME_CHARS),
    "text_encoder_precision": _choice(get_args(Precision)),
    "transformer_precision": _choice(get_args(Precision)),
    "vae_precision": _choice(get_args(Precision)),
    "attention_backend": _choice(get_args(Backend)),
    "attention_slicing": flag,
    "attention_query_chunk": _query_chunk,
    "feed_forward_chunks": lambda name, value: whole(name, value, 1, MAX_FEED_FORWARD_CHUNKS),
    "vae_tile_px": _tile,
    "vae_slicing": flag,
    "gradient_checkpointing": flag,
    "evict_text_encoder": flag,
    "embedding_cache": lambda name, value: whole(name, value, 0, MAX_CACHED_PROMPTS),
    "model_offload": flag,
    "group_offload": _choice(get_args(GroupOffload)),
    "group_offload_blocks": lambda name, value: whole(name, value, 1, MAX_BLOCKS_PER_GROUP),
    "group_offload_stream": flag,
    "group_offload_disk": flag,
    "fp8_storage": flag,
    "quantization": _choice(get_args(Quantization)),
    "compile": flag,
}

CHANGES_NUMBERS = frozenset(
    {
        "attention_backend", "attention_query_chunk", "feed_forward_chunks", "vae_tile_px", "fp8_storage",
        "quantization", "compile",
    }
)  # fmt: skip

EXCLUDE_EACH_OTHER = (
    ("model_offload", "group_offload"),
    ("fp8_storage", "quantization"),
    ("quantization", "group_offload_disk"),  # torchao's tensors cannot be written as safetensors
    ("group_offload_stream", "group_offload_blocks"),  # diffusers prefetches single blocks only
    ("compile", "fp8_storage"),  # the casts around every layer would be compiled, one graph each
)
NEED_EACH_OTHER = (
    ("group_offload_stream", "group_offload"),
    ("group_offload_disk", "group_offload"),
)


def _refuse_contradictions(profile: MemoryProfile) -> None:
    """Against the defaults by name, since EXACT itself is made here first."""
    on = {f.name for f in fields(MemoryProfile) if getattr(profile, f.name) != f.default}
    for one, other in EXCLUDE_EACH_OTHER:
        if one in on and other in on:
            raise InvalidInputError("switches_exclude", field=one, other=other)
    for one, other in NEED_EACH_OTHER:
        if one in on and other not in on:
            raise InvalidInputError("switch_needs", field=one, other=other)


# --- presets --------------------------------------------------------------------------------------------------------

EXACT = MemoryProfile(name="exact")
CHUNKED = MemoryProfile(name="chunked", feed_forward_chunks=4)
TILED = MemoryProfile(name="tiled", vae_tile_px=512, feed_forward_chunks=4)
TEXT_OUT = MemoryProfile(name="text_out", evict_text_encoder=True)
TEXT_OUT_TILED = replace(TEXT_OUT, name="text_out_tiled", vae_tile_px=512, feed_forward_chunks=4)
IN_TURN = MemoryProfile(name="in_turn", model_offload=True)
STREAMED = replace(TEXT_OUT, name="streamed", group_offload="block", group_offload_stream=True)
STREAMED_TILED = replace(STREAMED, name="streamed_tiled", vae_tile_px=512, feed_forward_chunks=4)
STREAMED_LEAVES = replace(
    STREAMED, name="streamed_leaves", group_offload="leaf", vae_tile_px=256, feed_forward_chunks=16
)
FROM_DISK = replace(TEXT_OUT, name="from_disk", group_offload="block", group_offload_disk=True)
FROM_DISK_TILED = replace(FROM_DISK, name="from_disk_tiled", vae_tile_px=256, feed_forward_chunks=16)
BF16 = replace(CHUNKED, name="bf16", transformer_precision="bf16", text_encoder_precision="bf16")
FP16 = replace(TEXT_OUT_TILED, name="fp16", transformer_precision="fp16", vae_precision="fp32")
FP16_STREAMED = replace(FP16, name="fp16_streamed", group_offload="block", group_offload_stream=True)
FP8_STORAGE = replace(TEXT_OUT_TILED, name="fp8_storage", fp8_storage=True)
INT8 = replace(TEXT_OUT_TILED, name="int8", quantization="int8")
FP8 = replace(TEXT_OUT_TILED, name="fp8", quantization="fp8", compile=True)
INT4 = replace(TEXT_OUT_TILED, name="int4", quantization="int4")

PRESETS: Mapping[str, MemoryProfile] = {
    profile.name: profile
    for profile in (
        EXACT, CHUNKED, TILED, TEXT_OUT, TEXT_OUT_TILED, IN_TURN, STREAMED, STREAMED_TILED, STREAMED_LEAVES, FROM_DISK,
        FROM_DISK_TILED, BF16, FP16, FP16_STREAMED, FP8_STORAGE, INT8, FP8, INT4,
    )
}  # fmt: skip
"""By name; `exact` first. What each gives up is said by `preset.*` in messages."""


# --- what the pipeline answers --------------------------------------------------------------------------------------

State = Literal["applied", "no_effect", "refused"]


@dataclass(frozen=True, slots=True)
class SwitchState:
    """One switch, read from the live pipeline.

    `state` is `applied` when it is at work, `no_effect` when it is off or changes nothing here, `refused` when it
    could not be had. `reason` is a message key, `values` fill it in.
    """

    name: str
    requested: object
    state: State
    reason: str
    values: Mapping[str, object] = field(default_factory=dict)


IRREVERSIBLE = ("fp8_storage", "quantization")
PRECISIONS = ("text_encoder_precision", "transformer_precision", "vae_precision")


def needs_reload(before: MemoryProfile, after: MemoryProfile) -> tuple[str, ...]:
    """The switches because of which a model under `before` must be loaded again to come under `after`.

    Weights that were rounded stay rounded: what is stored in 8 bits or fewer, or was cast, comes back only from disk.
    """
    lost = [name for name in IRREVERSIBLE if getattr(before, name) not in (False, "none", getattr(after, name))]
    cast = [name for name in PRECISIONS if getattr(before, name) != getattr(after, name)]
    return (*lost, *cast)


# --- what is foretold, chosen and measured --------------------------------------------------------------------------

GIB = 2**30


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """One phase of one image: what the device holds at its peak, of which weights, and what lies in RAM beside it.

    On a CPU the device's memory is RAM and `host_bytes` is 0.
    """

    phase: Phase
    peak_bytes: int
    weights_bytes: int
    host_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """The phases of one image under one profile, in order."""

    phases: tuple[PhasePeak, ...]

    @property
    def highest(self) -> PhasePeak:
        """The phase that decides whether it fits."""
        return max(self.phases, key=lambda phase: phase.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """The highest peak of the device."""
        return self.highest.peak_bytes

    @property
    def host_bytes(self) -> int:
        """The most that lies in RAM beside an accelerator."""
        return max(phase.host_bytes for phase in self.phases)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The planner's choice.

    `fits` is False when nothing does: `profile` is then the one that needs least, and `size` the largest picture of
    the same shape for which it would fit, None when none would. `headroom_bytes` is what stays free (negative: what
    is missing). `reason` is a message key, `values` fill it in. `faster` is the quickest profile that fits and loses
    more, None when there is none.
    """

    profile: MemoryProfile
    fits: bool
    estimate: Estimate
    free_bytes: int
    headroom_bytes: int
    reason: str
    values: Mapping[str, object]
    size: tuple[int, int] | None = None
    faster: MemoryProfile | None = None

    def predicted(self) -> list[dict[str, object]]:
        """The phases, as the command line and the API print them."""
        return [asdict(phase) for phase in self.estimate.phases]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One image under one profile, measured.

    `phase_peak_bytes` maps the phases to bytes; `seconds` is the wall time of the call. `psnr_db` to the reference
    (peak 255) is None when the pixels are equal or there was no reference; `identical` tells the two apart.
    """

    profile: MemoryProfile
    states: tuple[SwitchState, ...]
    phase_peak_bytes: Mapping[Phase, int]
    seconds: float
    pixels_sha256: str
    psnr_db: float | None = None
    identical: bool | None = None

    def to_dict(self) -> dict[str, object]:
        """As the command line and the API print it, and SQLite keeps it."""
        return asdict(self)
