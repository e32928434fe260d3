"""Make a model's overflow real without changing what it computes, and clamp it as other programs do."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn

from zimage_studio.core.precision.scaling import blocks

LIMIT = 65504.0
VALUES_PEAK = 1000.0
TIMES = (0.05, 0.5, 0.9)
PROMPT = "a red circle on a blue background"

Forward = Callable[[ZImageTransformer2DModel], Tensor]


@dataclass(slots=True)
class Peaks:
    """Largest magnitude seen in one block: the gated product, behind w2, the values, behind to_out."""

    gated: float = 0.0
    feed_forward: float = 0.0
    values: float = 0.0
    attention: float = 0.0

    @property
    def products(self) -> float:
        """The larger of the two that Z-Image overflows at."""
        return max(self.gated, self.feed_forward, self.attention)


def measure_peaks(transformer: ZImageTransformer2DModel, forward: Forward) -> list[Peaks]:
    """Peaks of every block during `forward`."""
    found = []
    with ExitStack() as hooks:
        for block in blocks(transformer):
            peaks = Peaks()
            found.append(peaks)
            places = ((block.feed_forward.w2, "feed_forward"), (block.attention.to_v, "values"))
            for layer, name in (*places, (block.attention.to_out[0], "attention")):
                hooks.callback(layer.register_forward_hook(_Recorder(peaks, name)).remove)
            gated = _Recorder(peaks, "gated")
            hooks.callback(block.feed_forward.w2.register_forward_pre_hook(gated.before).remove)
        forward(transformer)
    return found


@dataclass(slots=True)
class _Recorder:
    peaks: Peaks
    name: str

    def __call__(self, _module: nn.Module, _args: object, output: Tensor) -> None:
        setattr(self.peaks, self.name, max(getattr(self.peaks, self.name), float(output.abs().max())))

    def before(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self(module, (), args[0])


def make_overflow(
    transformer: ZImageTransformer2DModel, strength: float, forward: Forward, *, only_largest: bool = False
) -> float:
    """Grow the products of every block (or of the one where they are largest) to `strength` times float16's limit.

    In place, by powers of two (so within a factor of 1.5), and without changing the function. Returns the largest
    product now, over the limit.
    """
    found = measure_peaks(transformer, forward)
    chosen = list(zip(blocks(transformer), found, strict=True))
    if only_largest:
        chosen = [max(chosen, key=lambda pair: pair[1].products)]
    with torch.no_grad():
        for block, peaks in chosen:
            _grow(block, peaks, strength * LIMIT)
    return max(peaks.products for peaks in measure_peaks(transformer, forward)) / LIMIT


def _grow(block: nn.Module, peaks: Peaks, target: float) -> None:
    ff, attention = block.feed_forward, block.attention
    gated, behind = _power(target / peaks.gated), _power(target / peaks.feed_forward)
    ff.w3.weight.mul_(gated)
    ff.w2.weight.mul_(behind / gated)
    block.ffn_norm2.eps *= behind**2
    values, behind = _power(VALUES_PEAK / peaks.values), _power(target / peaks.attention)
    attention.to_v.weight.mul_(values)  # not to the limit: no one has seen Z-Image overflow there
    attention.to_out[0].weight.mul_(behind / values)
    block.attention_norm2.eps *= behind**2


def _power(factor: float) -> float:
    return 2.0 ** round(math.log2(factor))


@dataclass(slots=True)
class Clamped:
    """How many values were beyond the limit, of how many."""

    beyond: int = 0
    all: int = 0

    @property
    def share(self) -> float:
        """0..1; 0 before anything was seen."""
        return self.beyond / self.all if self.all else 0.0

    def __call__(self, values: Tensor) -> Tensor:
        self.beyond += int((~torch.isfinite(values)).sum())
        self.all += values.numel()
        return torch.nan_to_num(values, nan=0.0, posinf=LIMIT, neginf=-LIMIT)


@contextmanager
def clamped(transformer: ZImageTransformer2DModel) -> Iterator[Clamped]:
    """What others do: NaN becomes 0 and infinity 65504 in the gated product and behind both halves of a block."""
    clamp = Clamped()
    with ExitStack() as hooks:
        for block in blocks(transformer):
            w2 = block.feed_forward.w2
            hooks.callback(w2.register_forward_pre_hook(lambda _module, args: (clamp(args[0]),)).remove)
            for half in (block.feed_forward, block.attention):
                hooks.callback(half.register_forward_hook(lambda _module, _args, output: clamp(output)).remove)
        yield clamp


def forward_on(pipeline: ZImagePipeline, prompt: str = PROMPT, side: int = 16) -> Forward:
    """The velocities of `pipeline`'s transformer for fixed noise (side x side latents) and three times, float32."""
    captions, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=64)
    channels = pipeline.transformer.config.in_channels
    noise_CFHW = torch.randn(channels, 1, side, side, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def forward(transformer: ZImageTransformer2DModel) -> Tensor:
        dtype = transformer.dtype
        calls = [
            transformer([noise_CFHW.to(dtype)], torch.tensor([time]), [captions[0].to(dtype)], return_dict=False)
            for time in TIMES
        ]
        return torch.stack([call[0][0].float() for call in calls])

    return forward


def error(found: Tensor, exact: Tensor) -> float:
    """Relative distance |found - exact| / |exact|; infinite when anything is not finite."""
    if not bool(torch.isfinite(found).all()):
        return math.inf
    return float((found - exact).norm() / exact.norm())
