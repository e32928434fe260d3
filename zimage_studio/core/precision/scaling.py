"""float16 made exact for Z-Image: small inputs where it overflows, and the residual stream in float32.

A block adds `norm2(to_out(..))` and `norm2(w2(silu(w1 x) * w3 x))` to its stream. In float16 (at most 65504) the two
products overflow, and the RMSNorm right behind them would have made them small again. Multiplying the inputs of
`to_out` and `w3` by s = 2^-k multiplies both products by s, without rounding; with eps s^2 in place of eps the norm
gives the same numbers as before. See docs/fp16.md.

Hooks on inputs scale whatever sits there (plain, LoRA, quantised), change no weight and can be taken away again.
"""

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from torch import nn
from torch.utils.hooks import RemovableHandle

EXPONENT = 6
# Observed on Z-Image-Turbo: 9e5 behind w2 is 13.7 times what float16 holds. 2^-6 leaves 4.7 times as much room again.

Args = tuple[Any, ...]
PreHook = Callable[[nn.Module, Args], Args]


def blocks(transformer: ZImageTransformer2DModel) -> list[ZImageTransformerBlock]:
    """Every block: refiners of noise, caption and (Omni) picture, and the main layers."""
    return [module for module in transformer.modules() if isinstance(module, ZImageTransformerBlock)]


def scale_products(transformer: ZImageTransformer2DModel, exponent: int, undo: ExitStack) -> None:
    """Scale both products of every block by 2^-exponent and their norms' eps by 4^-exponent; `undo` takes it back.

    A layer that LoRA or a quantiser puts in the place of another is found at the next forward. Raises ValueError
    where `scalable` says no.
    """
    scaled = functools.partial(_scaled, 2.0**-exponent)
    if not scalable(transformer):
        raise ValueError("a layer behind the scaled inputs has a bias, which would not scale with them")
    places = []
    for block in blocks(transformer):
        places += [_Place(block.attention, "to_out.0", scaled), _Place(block.feed_forward, "w3", scaled)]
        for norm in (block.attention_norm2, block.ffn_norm2):
            undo.callback(setattr, norm, "eps", norm.eps)
            norm.eps = norm.eps * 4.0**-exponent
    _hook_places(transformer, places, undo)


def scalable(transformer: ZImageTransformer2DModel) -> bool:
    """Whether the products scale as a whole: no bias in any layer between the scaled inputs and the norms.

    Z-Image has none there; a pruned model or an unusual LoRA may.
    """
    chains = [(b.attention.to_out, b.feed_forward.w3, b.feed_forward.w2) for b in blocks(transformer)]
    names = [name for chain in chains for layer in chain for name, _ in layer.named_parameters()]
    return not any(name.rpartition(".")[2] == "bias" for name in names)


def float32_residual(transformer: ZImageTransformer2DModel, dtype: torch.dtype, undo: ExitStack) -> None:
    """Carry the sum over blocks in float32, while the layers keep computing in `dtype`; `undo` takes it back.

    Each norm gives its weight's dtype, so nothing but the sum is wider: 2 bytes more for each element of one tensor.
    """
    narrow = functools.partial(_narrowed, dtype)
    _hook(transformer, narrow, undo)  # diffusers asks the first layer for the dtype, which may be a wider one
    for block in blocks(transformer):
        _hook(block, _first_in_float32, undo)
    places = [_Place(final, "linear", narrow) for final in transformer.all_final_layer.values()]
    _hook_places(transformer, places, undo)


def float32_inputs(module: nn.Module, undo: ExitStack) -> None:
    """Give `module`, whose weights are float32, all its real inputs in float32; `undo` takes it back."""
    _hook(module, _all_in_float32, undo)


@dataclass(slots=True)
class _Place:
    """A layer by its place: `path` below `parent`. `layer` is what was found there last and has the hook."""

    parent: nn.Module
    path: str
    hook: PreHook
    layer: nn.Module | None = field(default=None)
    handle: RemovableHandle | None = field(default=None)

    def follow(self) -> None:
        layer = self.parent.get_submodule(self.path)
        if layer is self.layer:
            return
        self.let_go()
        self.layer, self.handle = layer, layer.register_forward_pre_hook(self.hook)

    def let_go(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.layer = self.handle = None


def _hook_places(transformer: nn.Module, places: Iterable[_Place], undo: ExitStack) -> None:
    kept = list(places)

    def follow_all(_module: nn.Module, _args: Args) -> None:
        for place in kept:
            place.follow()

    for place in kept:
        undo.callback(place.let_go)
        place.follow()
    undo.callback(transformer.register_forward_pre_hook(follow_all).remove)


def _hook(module: nn.Module, hook: PreHook, undo: ExitStack) -> None:
    undo.callback(module.register_forward_pre_hook(hook).remove)


def _scaled(factor: float, _module: nn.Module, args: Args) -> Args:
    return (args[0] * factor, *args[1:])


def _narrowed(dtype: torch.dtype, _module: nn.Module, args: Args) -> Args:
    return (_each_to(dtype, args[0]), *args[1:])


def _each_to(dtype: torch.dtype, value: Any) -> Any:
    """A tensor, or the tensors of a list (of lists), in `dtype`."""
    return [_each_to(dtype, item) for item in value] if isinstance(value, list) else value.to(dtype)


def _first_in_float32(_module: nn.Module, args: Args) -> Args:
    return (args[0].float(), *args[1:])


def _all_in_float32(_module: nn.Module, args: Args) -> Args:
    return tuple(
        value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in args
    )
