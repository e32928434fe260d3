"""Switches of the attention: backend, slicing, query chunks."""

from contextlib import ExitStack
from typing import Any

import torch
from diffusers.models.attention_dispatch import _check_attention_backend_requirements
from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor
from torch import nn

from zimage_studio.core.memory.attention import (
    BACKENDS,
    MASKLESS,
    PiecewiseAttention,
    attentions,
    backend_of,
    kernel_of,
    probe,
)
from zimage_studio.core.memory.site import OFF, Answer, Site, applied, idle, why

# What a kernel that is missing, too old or on the wrong device has been seen to raise.
CANNOT_RUN = (ImportError, RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError)


def put_attention(site: Site, undo: ExitStack) -> None:
    """Backend and query chunks, which share one processor. Nothing is installed where neither would act."""
    transformer, profile = site.pipeline.transformer, site.profile
    backend = profile.attention_backend
    if backend != "auto" and not _can_run(site, backend):
        backend = "auto"
    live = backend_of(transformer) if backend == "auto" else backend
    kernel = kernel_of(live, site.device, _dtype(transformer), _head_dim(transformer))
    chunk = profile.attention_query_chunk if kernel == "math" else 0
    if backend == "auto" and not chunk:
        return
    foreign = {type(a.processor).__name__ for a in attentions(transformer)} - {ZSingleStreamAttnProcessor.__name__}
    if foreign:
        for name, wanted in (("attention_backend", backend != "auto"), ("attention_query_chunk", chunk)):
            if wanted:
                site.refuse(name, "memory.foreign_attention", value=min(foreign))
        return
    set_processors(transformer, None if backend == "auto" else backend, chunk, undo)


def set_processors(transformer: nn.Module, backend: str | None, chunk: int, undo: ExitStack) -> None:
    """Our processor on every block; `undo` puts back the very objects that were there."""
    for attention in attentions(transformer):
        before = attention.processor
        undo.callback(attention.set_processor, before)
        kept = before._attention_backend if backend is None else BACKENDS[backend]
        attention.set_processor(PiecewiseAttention(kept, chunk))


def _can_run(site: Site, backend: str) -> bool:
    transformer = site.pipeline.transformer
    try:
        _check_attention_backend_requirements(BACKENDS[backend])
        with torch.no_grad():
            probe(BACKENDS[backend], site.device, _dtype(transformer), _head_dim(transformer))
    except CANNOT_RUN as error:
        site.refuse("attention_backend", "memory.backend.refused", value=backend, why=why(error))
        return False
    return True


def _dtype(transformer: Any) -> torch.dtype:
    dtype: torch.dtype = transformer.dtype
    return dtype


def _head_dim(transformer: Any) -> int:
    return int(transformer.config.dim // transformer.config.n_heads)


def look_backend(site: Site) -> Answer:
    """The live backend and the kernel behind it."""
    transformer = site.pipeline.transformer
    backend = backend_of(transformer)
    if backend in MASKLESS:
        return applied("memory.backend.no_mask", value=backend)
    kernel = kernel_of(backend, site.device, _dtype(transformer), _head_dim(transformer))
    return applied("memory.backend.is", value=backend, kernel=kernel)


def look_query_chunk(site: Site) -> Answer:
    """Whether the live processors cut; where they do not, why not."""
    transformer = site.pipeline.transformer
    cut = {getattr(attention.processor, "query_chunk", 0) for attention in attentions(transformer)}
    if cut != {0}:
        return applied("memory.query_chunk.is", value=max(cut))
    if not site.profile.attention_query_chunk:
        return OFF
    kernel = kernel_of(backend_of(transformer), site.device, _dtype(transformer), _head_dim(transformer))
    return idle("memory.query_chunk.linear", kernel=kernel)


def put_slicing(site: Site, undo: ExitStack) -> None:
    """diffusers' own switch, as everybody calls it."""
    if site.profile.attention_slicing:
        undo.callback(site.pipeline.disable_attention_slicing)
        site.pipeline.enable_attention_slicing()


def look_slicing(site: Site) -> Answer:
    """diffusers reaches components with `set_attention_slice` only, and no component of Z-Image has one."""
    reached = [name for name, part in site.pipeline.components.items() if hasattr(part, "set_attention_slice")]
    if site.profile.attention_slicing:
        return applied("memory.on") if reached else idle("memory.slicing.no_hook")
    return OFF
