"""Criteria that listen to a forward pass: how strongly units and heads speak, and how far a block turns its input.

Hooks add up over all batches, in float32 or wider.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from zimage_studio.core.pruning.calibration import Batch, Predictor
from zimage_studio.core.pruning.scores import Numbers, Place
from zimage_studio.records.plan import STACKS
from zimage_studio.records.progress import Progress

STATES_AT_ONCE = 8


@dataclass(slots=True)
class Mean:
    """A running mean over tokens."""

    total: Tensor | None = None
    count: int = 0

    def add(self, values_TX: Tensor) -> None:
        """Of (tokens, anything)."""
        added = values_TX.sum(0).double().cpu()
        self.total = added if self.total is None else self.total + added
        self.count += len(values_TX)

    @property
    def value(self) -> Tensor:
        """The mean so far."""
        if self.total is None:
            raise ValueError("nothing was heard")
        return self.total / self.count


@dataclass(frozen=True, slots=True)
class Heard:
    """Mean squares of what enters `w2` and `to_out` and of the residual stream, and the influence of each block."""

    units: dict[Place, Mean] = field(default_factory=dict)
    channels: dict[Place, Mean] = field(default_factory=dict)
    stream: dict[Place, Mean] = field(default_factory=dict)
    influence: dict[Place, Mean] = field(default_factory=dict)


@torch.no_grad()  # type: ignore[untyped-decorator]
def listen(transformer: ZImageTransformer2DModel, batch: Batch, progress: Progress) -> Heard:
    """Run all states through diffusers' own forward and listen."""
    heard = Heard()
    predict = Predictor(transformer, official=True)  # the batched one does not call whole blocks
    parts = list(batch.parts(STATES_AT_ONCE))
    with _listening(transformer, heard):
        for number, part in enumerate(parts):
            progress(number, len(parts), "note.scoring")
            predict(part.latents_BCHW, part.time_B, part.captions)
    return heard


@contextmanager
def _listening(transformer: ZImageTransformer2DModel, heard: Heard) -> Iterator[None]:
    with ExitStack() as undo:
        for stack in STACKS:
            for index, block in enumerate(getattr(transformer, stack)):
                place = (stack, index)
                heard.units[place], heard.channels[place] = Mean(), Mean()
                heard.stream[place], heard.influence[place] = Mean(), Mean()
                into = block.feed_forward.w2.register_forward_pre_hook(_squares(heard.units[place]))
                undo.callback(into.remove)
                into = block.attention.to_out[0].register_forward_pre_hook(_squares(heard.channels[place]))
                undo.callback(into.remove)
                undo.callback(block.register_forward_hook(_turn(heard.stream[place], heard.influence[place])).remove)
        yield


def _squares(mean: Mean) -> Callable[[nn.Module, Any], None]:
    def hook(_module: nn.Module, inputs: Any) -> None:
        mean.add(inputs[0].float().square().flatten(0, -2))

    return hook


def _turn(stream: Mean, influence: Mean) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_module: nn.Module, inputs: Any, output: Tensor) -> None:
        before_TD, after_TD = inputs[0].float().flatten(0, -2), output.float().flatten(0, -2)
        stream.add(after_TD.square())
        influence.add(1 - F.cosine_similarity(before_TD, after_TD, dim=-1)[:, None])

    return hook


def unit_strengths(transformer: ZImageTransformer2DModel, heard: Heard) -> tuple[dict[Place, Numbers], ...]:
    """What each unit and each head adds to its half's output: root mean square times the norm of its column.

    The column's norm is what Wanda adds to plain activations (arXiv:2306.11695); without it a unit that nobody reads
    would count.
    """
    ffn: dict[Place, Numbers] = {}
    heads: dict[Place, Numbers] = {}
    for place in heard.units:
        block = getattr(transformer, place[0])[place[1]]
        ffn[place] = _adds(block.feed_forward.w2, heard.units[place]).sqrt().numpy()
        channels = _adds(block.attention.to_out[0], heard.channels[place])
        heads[place] = channels.reshape(block.attention.heads, -1).sum(1).sqrt().numpy()
    return ffn, heads


def _adds(layer: nn.Linear, mean: Mean) -> Tensor:
    return mean.value * layer.weight.detach().float().square().sum(0).double().cpu()


def block_influence(heard: Heard) -> dict[Place, float]:
    """1 - cosine between what enters a block and what leaves it, mean over tokens (ShortGPT, arXiv:2403.03853)."""
    return {place: float(mean.value) for place, mean in heard.influence.items()}


def stream_strength(heard: Heard, places: Sequence[Place]) -> Numbers:
    """Root mean square of each channel of the residual stream, every block counting as much."""
    shares = [heard.stream[place].value.sqrt() for place in places]
    strength: Numbers = torch.stack([share / share.mean() for share in shares]).mean(0).numpy()
    return strength
