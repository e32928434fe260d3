"""A model's true shapes without its weights, and how many bytes its weights take under a profile."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from diffusers.quantizers.gguf.utils import GGUFParameter
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from zimage_studio.core.memory import int4
from zimage_studio.core.memory.switches_precision import DTYPES, KEEP, heavy_linears, quantised_as, stored_in_fp8
from zimage_studio.core.memory.text_cache import bare
from zimage_studio.records.memory import MemoryProfile

CASTABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)
"""The layers that diffusers casts and streams one by one, as far as these models have them."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """The three networks on the meta device, and the dtypes they are loaded in.

    `stored_bytes` is the size of the transformer's weights where they are quantised already, None for plain ones.
    """

    text_encoder: Any
    transformer: Any
    vae: Any
    dtypes: Mapping[str, torch.dtype]
    stored_bytes: int | None = None

    @classmethod
    def of_pipeline(cls, pipeline: ZImagePipeline) -> Self:
        """Those of a loaded pipeline. It is not touched."""
        encoder, transformer, vae = bare(pipeline.text_encoder), pipeline.transformer, pipeline.vae
        rounded = bool(quantised_as(transformer)) or stored_in_fp8(transformer) > 0
        return cls._empty(
            (type(transformer), transformer.config),
            encoder.config,
            vae.config,
            {"text_encoder": encoder.dtype, "transformer": transformer.dtype, "vae": vae.dtype},
            sum(live_bytes(t) for t in (*transformer.parameters(), *transformer.buffers())) if rounded else None,
        )

    @classmethod
    def of_configs(
        cls,
        transformer: Mapping[str, Any],
        text_encoder: Mapping[str, Any],
        vae: Mapping[str, Any],
        dtypes: Mapping[str, torch.dtype],
        kind: type[Any] = ZImageTransformer2DModel,
    ) -> Self:
        """Those of config.json files. `kind` is the transformer's class."""
        return cls._empty((kind, transformer), Qwen3Config(**text_encoder), vae, dtypes, None)

    @classmethod
    def _empty(
        cls,
        transformer: tuple[type[Any], Mapping[str, Any]],
        text_config: Any,
        vae_config: Mapping[str, Any],
        dtypes: Mapping[str, torch.dtype],
        stored_bytes: int | None,
    ) -> Self:
        kind, config = transformer
        with torch.device("meta"):
            return cls(
                text_encoder=Qwen3Model(text_config).eval(),
                transformer=kind.from_config(dict(config)).eval(),
                vae=AutoencoderKL.from_config(dict(vae_config)).eval(),
                dtypes=dict(dtypes),
                stored_bytes=stored_bytes,
            )

    def dtype(self, component: str, profile: MemoryProfile) -> torch.dtype:
        """What `component` computes in. The VAE never does in float16."""
        wish = DTYPES.get(str(getattr(profile, f"{component}_precision")), self.dtypes[component])
        return torch.float32 if component == "vae" and wish == torch.float16 else wish

    def recast(self, component: str, profile: MemoryProfile) -> Any:
        """`component` in the dtype that it computes in."""
        return nn.Module.to(getattr(self, component), self.dtype(component, profile))  # diffusers' own `to` warns


# --- bytes of weights -----------------------------------------------------------------------------------------------


def component_bytes(shapes: Shapes, component: str, profile: MemoryProfile) -> int:
    """All weights and buffers of a component as the profile stores them."""
    if component == "transformer" and shapes.stored_bytes is not None:
        return shapes.stored_bytes
    module = getattr(shapes, component)
    return round(sum(_sizes(shapes, component, profile, module).values()))


def _sizes(shapes: Shapes, component: str, profile: MemoryProfile, module: nn.Module) -> dict[str, float]:
    """Bytes by tensor name."""
    dtype = shapes.dtype(component, profile)
    bits = _fewer_bits(module, profile) if component == "transformer" else {}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: tensor.numel() * (bits[name] / 8 if name in bits else _itemsize(tensor, dtype))
        for name, tensor in tensors.items()
    }


def _itemsize(tensor: Tensor, dtype: torch.dtype) -> int:
    return int(dtype.itemsize if tensor.is_floating_point() else tensor.element_size())


def _fewer_bits(transformer: nn.Module, profile: MemoryProfile) -> dict[str, float]:
    """Bits for one number of each weight that the profile rounds."""
    if profile.fp8_storage:
        cast = [
            name
            for name, module in transformer.named_modules()
            if isinstance(module, CASTABLE) and not any(kept in name for kept in KEEP)
        ]
        return {f"{name}.{leaf}": 8.0 for name in cast for leaf in ("weight", "bias")}
    if profile.quantization == "none":
        return {}
    heavy = {id(linear) for _, _, linear in heavy_linears(transformer)}
    return {
        f"{name}.weight": _bits_of(module, profile.quantization)
        for name, module in transformer.named_modules()
        if id(module) in heavy and (profile.quantization != "int4" or int4.fits(module))
    }


def _bits_of(linear: nn.Module, quantization: str) -> float:
    """torchao keeps one scale of 32 bits (or less) for each row."""
    return int4.BITS if quantization == "int4" else 8 + 32 / int(linear.in_features)


def live_bytes(tensor: Tensor) -> int:
    """The bytes behind a live tensor, also of torchao's, which wrap several."""
    if isinstance(tensor, GGUFParameter) or not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.numel() * tensor.element_size())
    names = tensor.__tensor_flatten__()[0]
    return sum(live_bytes(getattr(tensor, name)) for name in names)


# --- what is on the device while streaming --------------------------------------------------------------------------


def leaf_stream_bytes(shapes: Shapes, component: str, profile: MemoryProfile, *, ahead: bool) -> int:
    """The most that lies on the device while `component` passes through layer by layer; `ahead`: the next one too."""
    sizes = _grouped(shapes, component, profile, _leaves(getattr(shapes, component)))
    return _largest(sizes, ahead=ahead)


def block_stream_bytes(shapes: Shapes, component: str, profile: MemoryProfile, *, blocks: int, ahead: bool) -> int:
    """The same, `blocks` blocks at a time; what is in no list of blocks stays for the whole forward."""
    module = getattr(shapes, component)
    lists = {n: part for n, part in module.named_children() if isinstance(part, nn.ModuleList | nn.Sequential)}
    places = {f"{name}.{i}": f"{name}.{i // blocks}" for name, part in lists.items() for i in range(len(part))}
    sizes = _grouped(shapes, component, profile, {place: place for place in places})
    together: dict[str, float] = {}
    for place, size in sizes.items():
        if place:
            together[places[place]] = together.get(places[place], 0.0) + size
    return round(sizes.get("", 0.0)) + _largest(together, ahead=ahead)


def _leaves(module: nn.Module) -> dict[str, str]:
    """Each castable layer is its own group; any other parameter goes with the module that owns it."""
    return {name: name for name, part in module.named_modules() if name and not list(part.children())}


def _grouped(shapes: Shapes, component: str, profile: MemoryProfile, places: Mapping[str, str]) -> dict[str, float]:
    """Bytes by the innermost of `places` that a tensor lies in; "" for the rest."""
    module = getattr(shapes, component)
    sizes: dict[str, float] = {}
    stored = 1.0
    if component == "transformer" and shapes.stored_bytes is not None:
        plain = sum(t.numel() * _itemsize(t, shapes.dtype(component, profile)) for t in module.parameters())
        stored = shapes.stored_bytes / plain
    for name, size in _sizes(shapes, component, profile, module).items():
        parts = name.split(".")
        inside = (".".join(parts[:cut]) for cut in range(len(parts) - 1, 0, -1))
        place = next((places[path] for path in inside if path in places), "")
        sizes[place] = sizes.get(place, 0.0) + size * stored
    return sizes


def _largest(sizes: Mapping[str, float], *, ahead: bool) -> int:
    """The largest group, or the largest pair of neighbours in order."""
    values = list(sizes.values()) or [0.0]
    if not ahead:
        return round(max(values))
    return round(max(one + other for one, other in zip(values, [*values[1:], 0.0], strict=True)))
