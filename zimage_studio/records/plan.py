"""What a cut will do to a transformer: each block before and after, and what it comes to; made before cutting."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.ranges import units
from zimage_studio.records.request import STRICT
from zimage_studio.records.versioned import read_versioned

SCHEMA = 1
PLAN = "plan.json"
MAX_PLAN_BYTES = 20_000_000

Stack = Literal["layers", "noise_refiner", "context_refiner"]
Kind = Literal["depth", "ffn", "heads", "dim"]
Criterion = Literal["random", "l1", "group_l2", "taylor", "fisher", "activation", "ablation", "block_influence"]
Runtime = Literal["diffusers", "diffusers_with_package", "comfyui", "comfyui_gguf", "stable_diffusion_cpp"]
Verdict = Literal["unchanged", "needs_our_loader", "does_not_load"]
TargetName = Literal["ratio", "gigabytes", "speedup"]

STACKS: tuple[Stack, ...] = ("noise_refiner", "context_refiner", "layers")
KINDS: tuple[Kind, ...] = ("depth", "ffn", "heads", "dim")
CRITERIA: tuple[Criterion, ...] = (
    "random", "l1", "group_l2", "taylor", "fisher", "activation", "ablation", "block_influence",
)  # fmt: skip
RUNTIMES: tuple[Runtime, ...] = (
    "diffusers", "diffusers_with_package", "comfyui", "comfyui_gguf", "stable_diffusion_cpp",
)  # fmt: skip
_CALIBRATION = re.compile(
    r"(\d{1,6}) prompts, (\d{1,6}) states, (\d{1,6})x(\d{1,6}) px, guidance (\d[-+.e\d]{0,11}), seed (\d{1,20})",
    re.ASCII,
)
"""How plans said it when it was a sentence."""
ADALN_WIDTH = 256
"""Width of the timestep embedding in models at least that wide; narrower ones have their own width."""


@dataclass(frozen=True, slots=True)
class BlockShape:
    """One block: its place, the width of its feed-forward and the number of its heads."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    stack: Stack
    index: int
    ffn: int
    heads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerShape:
    """All that decides which shapes a Z-Image transformer's tensors have. `blocks` stand in the order of STACKS."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    dim: int
    head_dim: int
    in_channels: int
    caption_width: int
    blocks: tuple[BlockShape, ...]
    patch: int = 2

    @property
    def adaln_width(self) -> int:
        """Width of the timestep embedding."""
        return min(self.dim, ADALN_WIDTH)

    @property
    def stock_heads(self) -> int:
        """How many heads diffusers' own class gives every block."""
        return self.dim // self.head_dim

    @property
    def stock_ffn(self) -> int:
        """How wide diffusers' own class makes every feed-forward."""
        return int(self.dim / 3 * 8)

    def stack(self, name: Stack) -> tuple[BlockShape, ...]:
        """The blocks of one stack, in order."""
        return tuple(block for block in self.blocks if block.stack == name)

    @property
    def is_stock(self) -> bool:
        """Whether diffusers' own class can hold it."""
        even = all(block.ffn == self.stock_ffn and block.heads == self.stock_heads for block in self.blocks)
        refiners = len(self.stack("noise_refiner")) == len(self.stack("context_refiner"))
        return even and refiners and self.stock_heads * self.head_dim == self.dim


@dataclass(frozen=True, slots=True)
class BlockCut:
    """What stays of one block of the parent. `index` counts in the parent.

    `ffn_kept` and `heads_kept` are units as text, "0-3,7"; "" keeps all. Of a block that is not `kept` they mean
    nothing and are "".
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    stack: Stack
    index: int
    kept: bool = True
    ffn_kept: str = ""
    heads_kept: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """On what a criterion measured: `states` of the drawings of `prompts` prompts, the first of them with `seed`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    prompts: int
    states: int
    width: int
    height: int
    guidance: float
    seed: int

    @classmethod
    def from_sentence(cls, said: str) -> Self | None:
        """What an older plan says in words; None for one that says nothing. Raises ValueError for any other."""
        if not said:
            return None
        found = _CALIBRATION.fullmatch(said)
        if found is None:
            raise ValueError(f"calibration {said[:80]!r}")
        *whole, guidance, seed = found.groups()
        prompts, states, width, height = map(int, whole)
        return cls(prompts=prompts, states=states, width=width, height=height, guidance=float(guidance), seed=int(seed))


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunePlan:
    """A cut of one model, decided and not yet made.

    `model_sha256` is the hash of the model that it is for; `created` is UTC, ISO 8601. `target` is what was asked,
    the rest is what will be. `parameters` and `bytes` count the whole model as the list of models does, the
    `transformer_` ones the transformer alone. `flops` (2 per multiply-add) are of one forward at `width` x `height`
    pixels with `caption_tokens`. `predicted_speedup` is their ratio: a ceiling, reached where arithmetic is all that
    takes time. `loads_why` maps each runtime to a message key. `edited` says that a person changed it by hand.
    `image_tokens` are those of one picture. `item_bytes` is what one number takes in the file, `item_bytes_of` where a
    tensor of the parent differs; `float16_probe` is, for each main block of the parent, the spread of the weights by
    which ComfyUI decides about float16. With these the plan can be edited without the model. `calibration` is None for
    criteria that look at weights alone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: str
    model_sha256: str
    created: str
    kinds: tuple[Kind, ...]
    criterion: Criterion
    target: Mapping[TargetName, float]
    before: TransformerShape
    cuts: tuple[BlockCut, ...]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    transformer_parameters_before: int
    transformer_parameters_after: int
    transformer_bytes_before: int
    transformer_bytes_after: int
    flops_before: int
    flops_after: int
    width: int
    height: int
    caption_tokens: int
    image_tokens: int
    item_bytes: int
    predicted_speedup: float
    loads_in: Mapping[Runtime, Verdict]
    loads_why: Mapping[Runtime, str]
    item_bytes_of: Mapping[str, int] = field(default_factory=dict)
    float16_probe: tuple[float, ...] = ()
    dim_kept: str = ""
    seed: int = 0
    note: str = ""
    calibration: Calibration | None = None
    protect_ends: bool = True
    edited: bool = False

    def __post_init__(self) -> None:
        places = [(block.stack, block.index) for block in self.before.blocks]
        if [(cut.stack, cut.index) for cut in self.cuts] != places:
            raise InvalidInputError("plan_blocks", field="cuts", count=len(self.cuts), expected=len(places))
        for block, cut in zip(self.before.blocks, self.cuts, strict=True):
            units(cut.ffn_kept, block.ffn, f"{block.stack}.{block.index} ffn_kept")
            units(cut.heads_kept, block.heads, f"{block.stack}.{block.index} heads_kept")
        units(self.dim_kept, self.before.dim, "dim_kept")
        if not any(cut.kept for cut in self.cuts if cut.stack == "layers"):
            raise InvalidInputError("plan_no_layers", field="cuts", count=len(self.before.stack("layers")))
        noise, context = (len(self.after.stack(stack)) for stack in ("noise_refiner", "context_refiner"))
        if noise != context:
            raise InvalidInputError("plan_refiners", field="cuts", noise=noise, context=context)

    @property
    def after(self) -> TransformerShape:
        """The shape of the child, its blocks numbered anew from 0 in each stack."""
        blocks: list[BlockShape] = []
        for block, cut in zip(self.before.blocks, self.cuts, strict=True):
            if cut.kept:
                index = sum(earlier.stack == block.stack for earlier in blocks)
                ffn, heads = len(units(cut.ffn_kept, block.ffn)), len(units(cut.heads_kept, block.heads))
                blocks.append(BlockShape(block.stack, index, ffn, heads))
        return replace(self.before, dim=len(units(self.dim_kept, self.before.dim)), blocks=tuple(blocks))

    @property
    def removes_nothing(self) -> bool:
        """Whether the child is the parent."""
        return not self.dim_kept and all(cut.kept and not cut.ffn_kept and not cut.heads_kept for cut in self.cuts)

    def to_json(self) -> str:
        """JSON with the schema number, one line."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, source: str) -> Self:
        """Read what `to_json` wrote. Raises InvalidInputError on another schema, unknown keys or wrong values."""
        try:
            return read_versioned(cls, source, SCHEMA, max_chars=MAX_PLAN_BYTES, mend=_calibrated)
        except ValueError as error:
            raise InvalidInputError("bad_plan", field="plan", why=error) from error

    def rows(self) -> list[dict[str, object]]:
        """One line a block, for a table: widths and heads before and after (0 where the block goes)."""
        return [
            {
                "stack": block.stack,
                "index": block.index,
                "kept": cut.kept,
                "ffn_before": block.ffn,
                "ffn_after": len(units(cut.ffn_kept, block.ffn)) if cut.kept else 0,
                "heads_before": block.heads,
                "heads_after": len(units(cut.heads_kept, block.heads)) if cut.kept else 0,
            }
            for block, cut in zip(self.before.blocks, self.cuts, strict=True)
        ]

    def public(self) -> dict[str, object]:
        """What a door prints: everything but the kept units, and the table of blocks in their place."""
        data = asdict(self)
        for bulky in ("cuts", "before", "dim_kept", "item_bytes_of"):
            del data[bulky]
        after = self.after
        return {**data, "dim_before": self.before.dim, "dim_after": after.dim, "blocks": self.rows()}


def _calibrated(data: dict[str, Any]) -> dict[str, Any]:
    """An older plan says in words how it was measured."""
    said = data.get("calibration")
    if not isinstance(said, str):
        return data
    found = Calibration.from_sentence(said)
    return {**data, "calibration": found and asdict(found)}


@dataclass(frozen=True, slots=True)
class BlockEdit:
    """What a person sets for one block of the parent. None leaves it as it is."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    stack: Stack
    index: int
    kept: bool | None = None
    ffn: int | None = None
    heads: int | None = None
    ffn_kept: str | None = None
    heads_kept: str | None = None
