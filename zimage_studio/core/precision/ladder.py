"""The ladder: float16 scaled exactly, then its sensitive blocks in float32, then bfloat16, then float32 streamed.

A rung is data; `engage` makes a pipeline compute that way and says what it did, for the recipe; `Ladder` goes down
one rung whenever a picture was not finite. Nothing is ever clamped.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import nn

from zimage_studio.core.precision.casting import cast
from zimage_studio.core.precision.decoding import TILE_PX, float32_vae
from zimage_studio.core.precision.offload import is_offloaded, stream_blocks
from zimage_studio.core.precision.scaling import EXPONENT, float32_inputs, float32_residual, scale_products
from zimage_studio.errors import NonFiniteError

log = logging.getLogger(__name__)
T = TypeVar("T")

RungName = Literal["float16_scaled", "float16_float32_blocks", "bfloat16", "float32"]
DType = Literal["float16", "bfloat16", "float32"]
DTYPES: Mapping[DType, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
SENSITIVE_LAYERS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One way to compute. `name` is told and recorded; the message `rung.<name>` says it to people.

    `exponent` k scales the products of each block by 2^-k (None: unscaled). `float32_blocks` puts the noise refiner
    and the first main layers, where Z-Image's activations are largest, into float32. `streamed` keeps the weights off
    the device but for one block.
    """

    name: RungName
    dtype: DType
    exponent: int | None = None
    float32_blocks: bool = False
    streamed: bool = False


LADDER = (
    Rung(name="float16_scaled", dtype="float16", exponent=EXPONENT),
    Rung(name="float16_float32_blocks", dtype="float16", exponent=EXPONENT, float32_blocks=True),
    Rung(name="bfloat16", dtype="bfloat16"),
    Rung(name="float32", dtype="float32", streamed=True),
)
RUNGS: Mapping[str, Rung] = {rung.name: rung for rung in LADDER}


def rungs(start: DType, *, bfloat16: bool, scalable: bool = True) -> tuple[Rung, ...]:
    """The rungs from the first that computes in `start` downwards.

    `bfloat16`: whether the device has such units; `scalable`: see scaling.scalable. float32 is always among them.
    """
    first = next(number for number, rung in enumerate(LADDER) if rung.dtype == start)
    possible = {"float16": scalable, "bfloat16": bfloat16, "float32": True}
    return tuple(rung for rung in LADDER[first:] if possible[rung.dtype])


def load_dtypes(rung: Rung) -> dict[str, torch.dtype]:
    """What to load transformer and VAE as, so that `engage` has nothing to convert. The text encoder is left alone."""
    return {
        "transformer": DTYPES[rung.dtype],
        "vae": torch.bfloat16 if rung.dtype == "bfloat16" else torch.float32,
    }


class Engaged:
    """A pipeline that computes on `rung` until `remove()`. `facts` is what was done, for the recipe."""

    def __init__(self, rung: Rung, facts: Mapping[str, object], undo: ExitStack) -> None:
        self.rung = rung
        self.facts = facts
        self._undo = undo

    def remove(self) -> None:
        """Give the pipeline back as it was, bit for bit. A second call does nothing."""
        self._undo.close()


def engage(pipeline: ZImagePipeline, rung: Rung, *, tile_px: int | None = TILE_PX, stream: bool = True) -> Engaged:
    """Make `pipeline` compute on `rung`.

    Do this before group offloading and before compiling: both take copies of what is changed here. LoRA and model
    offload may come before or after. `tile_px` is for the float32 VAE; without `stream`, a streamed rung leaves the
    weights where they are, for a memory profile to place. Raises ValueError on a group-offloaded pipeline, on torchao
    weights made for another dtype, and on a transformer with biases where Z-Image has none (`scalable`); the pipeline
    is then as it was.
    """
    facts: dict[str, object] = {"rung": rung.name}
    with ExitStack() as undo:
        _engage_transformer(pipeline, rung, facts, undo)
        device = torch.device(pipeline._execution_device)
        if stream and rung.streamed and device.type != "cpu" and not is_offloaded(pipeline.transformer):
            stream_blocks(pipeline.transformer, device, undo)
            facts["streamed"] = True
        if rung.dtype != "bfloat16" or pipeline.vae.dtype == torch.float16:
            float32_vae(pipeline.vae, tile_px, undo)
            facts["vae"] = "float32"
            facts["vae_tile_px"] = pipeline.vae.tile_sample_min_size if pipeline.vae.use_tiling else None
        return Engaged(rung, facts, undo.pop_all())


def _engage_transformer(pipeline: ZImagePipeline, rung: Rung, facts: dict[str, object], undo: ExitStack) -> None:
    transformer, dtype = pipeline.transformer, DTYPES[rung.dtype]
    wide = sensitive_blocks(transformer) if rung.float32_blocks else {}
    for block in wide.values():
        cast(block, torch.float32, undo)
        float32_inputs(block, undo)
    cast(transformer, dtype, undo, but=wide.values())
    if rung.exponent is not None:
        _exact_products(undo)
        scale_products(transformer, rung.exponent, undo)
        facts["scale"] = f"2^-{rung.exponent}"
    if rung.dtype == "float16":
        float32_residual(transformer, dtype, undo)
        facts["residual"] = "float32"
    if wide:
        facts["float32_blocks"] = list(wide)


def sensitive_blocks(transformer: ZImageTransformer2DModel) -> dict[str, nn.Module]:
    """The blocks whose activations are largest, by name: all of the noise refiner and the first two main layers."""
    refiner = {f"noise_refiner.{number}": block for number, block in enumerate(transformer.noise_refiner)}
    main = {f"layers.{number}": block for number, block in enumerate(transformer.layers[:SENSITIVE_LAYERS])}
    return refiner | main


def _exact_products(undo: ExitStack) -> None:
    """Sum float16 products in float32: partial sums in float16 overflow where the result would not."""
    matmul = torch.backends.cuda.matmul
    for name in ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation"):
        undo.callback(setattr, matmul, name, getattr(matmul, name))
        setattr(matmul, name, False)


Fit = Callable[[Rung], Callable[[], object]]


class Ladder:
    """Draws on the first rung that gives finite pictures, and stays there.

    Belongs to one loaded pipeline, and like it to one thread. Nothing is engaged until the first draw. `fit` does what
    must come after a rung is engaged (a memory profile with its offload, compiling) and returns how to take that back,
    which is called before the rung is left; with it, streaming is its business too.
    """

    def __init__(
        self,
        pipeline: ZImagePipeline,
        rungs: tuple[Rung, ...],
        *,
        tile_px: int | None = TILE_PX,
        fit: Fit | None = None,
    ) -> None:
        if not rungs:
            raise ValueError("a ladder needs a rung")
        self._pipeline = pipeline
        self._rungs = rungs
        self._tile_px = tile_px
        self._fit = fit
        self._number = 0
        self._facts: Mapping[str, object] | None = None
        self._undo = ExitStack()

    @property
    def rung(self) -> Rung:
        """Where the ladder stands."""
        return self._rungs[self._number]

    @property
    def facts(self) -> dict[str, object]:
        """What is engaged, and which rungs above it were not finite, for the recipe; empty before the first draw."""
        if self._facts is None:
            return {}
        failed = [rung.name for rung in self._rungs[: self._number]]
        return {**self._facts, **({"not_finite": failed} if failed else {})}

    def draw(self, draw: Callable[[], T]) -> T:
        """`draw()`, again on the next rung as long as it raises NonFiniteError; raised when no rung is left."""
        while True:
            self._engage()
            try:
                return draw()
            except NonFiniteError as error:
                if self._number + 1 == len(self._rungs):
                    raise
                log.warning("%s gave no finite picture (%s); trying the next rung", self.rung.name, error.key)
            self.remove()  # outside the except block: its traceback pins the failed picture's tensors
            self._number += 1

    def remove(self) -> None:
        """Give the pipeline back as it was. The next draw engages the same rung again."""
        self._facts = None
        self._undo.close()

    def _engage(self) -> None:
        if self._facts is not None:
            return
        with ExitStack() as undo:
            engaged = engage(self._pipeline, self.rung, tile_px=self._tile_px, stream=self._fit is None)
            undo.callback(engaged.remove)
            if self._fit is not None:
                undo.callback(self._fit(self.rung))
            self._facts, self._undo = engaged.facts, undo.pop_all()
