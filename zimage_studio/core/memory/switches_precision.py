"""Switches of numbers and bits: precision, float8 storage, quantised weights."""

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from diffusers.quantizers.gguf.utils import GGUFLinear
from torch import nn

from zimage_studio.core.memory.int4 import Int4Linear, fits
from zimage_studio.core.memory.site import OFF, Answer, Site, applied, blocks, dtype_name, why
from zimage_studio.core.memory.text_cache import bare
from zimage_studio.core.precision.casting import cast

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FLOAT8 = torch.float8_e4m3fn
KEEP = ("norm", "t_embedder", "cap_embedder", "x_embedder", "final_layer", "adaLN_modulation", "pad_token")
"""Small and sensitive: 3 % of the weights, and float8 without scales is worst where numbers are small."""
FP8_CAPABILITY = (8, 9)
PACKED = frozenset({"gguf", "int8", "fp8"})
"""Kinds whose weights are tensors of classes of their own, which safetensors cannot write."""
CANNOT_QUANTISE = (ImportError, RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError)


# --- precision ------------------------------------------------------------------------------------------------------


def put_precision(site: Site, undo: ExitStack) -> None:
    """Cast what was loaded otherwise. The loader does better: it rounds once and keeps no second copy."""
    for name in ("text_encoder", "transformer", "vae"):
        switch = f"{name}_precision"
        wish = DTYPES.get(str(getattr(site.profile, switch)))
        module = bare(site.component(name))
        if wish is None or module.dtype == wish:
            continue
        if name == "vae" and wish == torch.float16:
            cast(module, torch.float32, undo)
            site.refuse(switch, "memory.precision.white", value=dtype_name(torch.float32))
        elif name == "transformer" and (kind := quantised_as(module)):
            site.refuse(switch, "memory.precision.quantised", value=kind)
        else:
            cast(module, wish, undo)


def look_precision(site: Site, name: str) -> Answer:
    """The dtype that the live component computes in."""
    dtype: torch.dtype = bare(site.component(name)).dtype
    if name == "transformer" and dtype == torch.float16 and not _scaled(site.pipeline.transformer):
        return applied("memory.precision.unscaled", value=dtype_name(dtype))
    return applied("memory.precision.is", value=dtype_name(dtype))


def _scaled(transformer: nn.Module) -> bool:
    """Whether the products that overflow in float16 have a hook that makes them small (core.precision)."""
    return all(len(block.feed_forward.w3._forward_pre_hooks) > 0 for block in blocks(transformer))


# --- float8 storage -------------------------------------------------------------------------------------------------


def put_fp8_storage(site: Site, _undo: ExitStack) -> None:
    """diffusers' layerwise casting. It rounds the weights for good."""
    transformer = site.pipeline.transformer
    if not site.profile.fp8_storage or stored_in_fp8(transformer):
        return
    if kind := quantised_as(transformer):
        site.refuse("fp8_storage", "memory.already_quantised", value=kind)
        return
    transformer.enable_layerwise_casting(
        storage_dtype=FLOAT8, compute_dtype=transformer.dtype, skip_modules_pattern=KEEP
    )


def look_fp8_storage(site: Site) -> Answer:
    """The share of the live weights that is in float8."""
    share = stored_in_fp8(site.pipeline.transformer)
    return applied("memory.fp8_storage.is", value=round(100 * share)) if share else OFF


def stored_in_fp8(transformer: nn.Module) -> float:
    """Share of the parameters that lie in float8, 0..1."""
    sizes = [(int(p.numel()), p.dtype == FLOAT8) for p in transformer.parameters()]
    return sum(count for count, small in sizes if small) / max(1, sum(count for count, _ in sizes))


# --- quantised weights ----------------------------------------------------------------------------------------------


def put_quantization(site: Site, _undo: ExitStack) -> None:
    """Replace the linear layers of the blocks. It rounds the weights for good."""
    transformer, kind = site.pipeline.transformer, site.profile.quantization
    found = quantised_as(transformer)
    if kind == "none" or found == kind:
        return
    if found:
        site.refuse("quantization", "memory.already_quantised", value=found)
        return
    try:
        _quantise(site, kind)
    except CANNOT_QUANTISE as error:
        site.refuse("quantization", "memory.quantise_failed", value=kind, why=why(error))


def _quantise(site: Site, kind: str) -> None:
    if kind == "int4":
        for parent, name, linear in heavy_linears(site.pipeline.transformer):
            if fits(linear):
                setattr(parent, name, Int4Linear(linear))
        return
    if importlib.util.find_spec("torchao") is None:
        site.refuse("quantization", "memory.torchao_missing", value=kind)
        return
    quantization = importlib.import_module("torchao.quantization")
    heavy = {id(linear) for _, _, linear in heavy_linears(site.pipeline.transformer)}
    config = _torchao_config(quantization, kind, fast=site.profile.compile and _fast_here(site.device, kind))
    quantization.quantize_(
        site.pipeline.transformer, config, filter_fn=lambda module, _name: id(module) in heavy, device=None
    )


def _torchao_config(quantization: Any, kind: str, *, fast: bool) -> Any:
    """Weights only saves memory everywhere; 8-bit products too (`fast`) save time, but only where they are compiled."""
    if kind == "int8":
        make = quantization.Int8DynamicActivationInt8WeightConfig if fast else quantization.Int8WeightOnlyConfig
        return make(version=2)
    if fast:
        return quantization.Float8DynamicActivationFloat8WeightConfig(granularity=quantization.PerRow())
    return quantization.Float8WeightOnlyConfig()


def _fast_here(device: torch.device, kind: str) -> bool:
    if device.type != "cuda":
        return False
    return kind == "int8" or torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def heavy_linears(transformer: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer) of the linear layers in the blocks, but for the modulation: 97 % of the weights."""
    places = []
    for block in blocks(transformer):
        for path, module in block.named_modules():
            parent, _, name = path.rpartition(".")
            if isinstance(module, nn.Linear) and not any(kept in path for kept in KEEP):
                places.append((block.get_submodule(parent), name, module))
    return places


def look_quantization(site: Site) -> Answer:
    """What the live layers hold."""
    kind = quantised_as(site.pipeline.transformer)
    return applied("memory.quantised", value=kind) if kind else OFF


def quantised_as(transformer: nn.Module) -> str:
    """`int4`, `int8`, `fp8` (torchao), `gguf`, or an empty text for plain weights."""
    for module in transformer.modules():
        for kind, test in _KINDS.items():
            if test(module):
                return kind
    return ""


def _holds(kind: str) -> Callable[[nn.Module], bool]:
    """torchao keeps a plain nn.Linear and makes its weight a tensor of another class."""

    def test(module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and type(module.weight.data).__name__ == kind

    return test


_KINDS: dict[str, Callable[[nn.Module], bool]] = {
    "int4": lambda module: isinstance(module, Int4Linear),
    "gguf": lambda module: isinstance(module, GGUFLinear),
    "int8": _holds("Int8Tensor"),
    "fp8": _holds("Float8Tensor"),
}
