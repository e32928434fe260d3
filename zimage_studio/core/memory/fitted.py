"""A loaded pipeline under a memory profile: its switches, and the ladder of precisions where float16 was asked for."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import ZImagePipeline

from zimage_studio.core.loading import BF16_CAPABILITY
from zimage_studio.core.memory.apply import Size, apply
from zimage_studio.core.precision.decoding import TILE_PX
from zimage_studio.core.precision.ladder import DTYPES, LADDER, Ladder, Rung, rungs
from zimage_studio.core.precision.scaling import scalable
from zimage_studio.records.memory import MemoryProfile, SwitchState

T = TypeVar("T")
MADE_FOR_A_DTYPE = ("int8", "fp8")
"""torchao's weights compute in the dtype that they were made for; the rungs below float16 would need others."""


class Fitted:
    """A pipeline under `profile` until `undo()`.

    Where the transformer is to compute in float16 it stands on the ladder of core.precision, and the profile is put
    on again for every rung. Raises what `apply` raises, and leaves the pipeline as it was then.
    """

    def __init__(
        self, pipeline: ZImagePipeline, profile: MemoryProfile, device: torch.device, scratch: Path | None = None
    ) -> None:
        self.profile = profile
        self._pipeline = pipeline
        self._device = device
        self._scratch = scratch
        self._ladder = self._new_ladder() if profile.transformer_precision == "fp16" else None
        if self._ladder is None:
            self._applied = apply(pipeline, profile, device=device, scratch=scratch)
        else:
            self._ladder.draw(_nothing)

    def draw(self, draw: Callable[[], T], *, start: str = "") -> tuple[T, dict[str, object]]:
        """`draw()` and the facts of the rung it was made on, for the recipe; no facts without a ladder.

        `start` is the rung to begin with, "" for the first that gave a finite picture. Raises what `draw` raises.
        """
        own = self._ladder
        if own is None:
            return draw(), {}
        if start in ("", own.rung.name):
            return own.draw(draw), {"ladder": own.facts}
        own.remove()
        with ExitStack() as undo:
            undo.callback(own.draw, _nothing)
            other = self._new_ladder(start)
            undo.callback(other.remove)
            return other.draw(draw), {"ladder": other.facts}

    def look(self, size: Size | None) -> tuple[SwitchState, ...]:
        """Every switch, read from the live pipeline; see Applied.look."""
        states = self._applied.look(size)
        if self._ladder is None:
            return states
        asked = self.profile.switches
        return tuple(
            self._of_ladder(state) if state.name == "transformer_precision" else replace(state, requested=asked[name])
            for state in states
            for name in (state.name,)
        )

    def forget_prompts(self) -> None:
        """See Applied.forget_prompts."""
        self._applied.forget_prompts()

    def undo(self) -> tuple[str, ...]:
        """Give the pipeline back. Returns the switches whose loss stays; see Applied.undo."""
        if self._ladder is not None:
            self._ladder.remove()
        return self._applied.undo()

    def _new_ladder(self, start: str = "") -> Ladder:
        return Ladder(self._pipeline, self._rungs(start), tile_px=self.profile.vae_tile_px or TILE_PX, fit=self._under)

    def _rungs(self, start: str) -> tuple[Rung, ...]:
        capable = self._device.type != "cuda" or torch.cuda.get_device_capability(self._device) >= BF16_CAPABILITY
        possible = rungs("float16", bfloat16=capable, scalable=scalable(self._pipeline.transformer))
        if self.profile.quantization in MADE_FOR_A_DTYPE:
            return possible[:1]
        names = [rung.name for rung in LADDER]
        first = names.index(start) if start in names else 0  # type: ignore[arg-type]
        return tuple(rung for rung in possible if names.index(rung.name) >= first)

    def _under(self, rung: Rung) -> Callable[[], object]:
        """The rest of the profile, once the rung has decided the precisions."""
        rest = replace(self.profile, transformer_precision="auto", vae_precision="auto")
        if rung.streamed and self._device.type != "cpu" and rest.group_offload == "none" and not rest.model_offload:
            rest = replace(rest, group_offload="block", group_offload_blocks=1, group_offload_stream=True)
        self._applied = apply(self._pipeline, rest, device=self._device, scratch=self._scratch)
        return self._applied.undo

    def _of_ladder(self, state: SwitchState) -> SwitchState:
        rung = LADDER[0] if self._ladder is None else self._ladder.rung
        values: Mapping[str, object] = {"value": rung.dtype}
        if DTYPES[rung.dtype] != torch.float16:
            return SwitchState(state.name, "fp16", "refused", "memory.precision.fell", values)
        return SwitchState(state.name, "fp16", "applied", f"rung.{rung.name}")


def _nothing() -> None:
    """Drawing nothing engages the ladder."""
