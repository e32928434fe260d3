"""Make a pipeline what a profile asks for, say what is really there, and take it back."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from diffusers import ZImagePipeline

from zimage_studio.core.memory import (
    switches_attention,
    switches_offload,
    switches_precision,
    switches_transformer,
    switches_vae,
    text_cache,
)
from zimage_studio.core.memory.site import COMPONENTS, Answer, Site
from zimage_studio.records.memory import MemoryProfile, SwitchState

Size = tuple[int, int]
Put = Callable[[Site, ExitStack], None]

PUTS: tuple[Put, ...] = (
    # numbers first, moving last: hooks that move weights keep hold of the tensors they found
    switches_precision.put_precision,
    switches_precision.put_quantization,
    switches_precision.put_fp8_storage,
    switches_attention.put_attention,
    switches_attention.put_slicing,
    switches_transformer.put_chunks,
    switches_transformer.put_checkpointing,
    switches_vae.put_tiling,
    switches_vae.put_slicing,
    switches_transformer.put_compile,
    text_cache.put_cache,
    switches_offload.put_placement,
    switches_offload.put_eviction,
    switches_offload.put_model_offload,
    switches_offload.put_group_offload,
)

LOOKS: Mapping[str, Callable[[Site, Size | None], Answer]] = {
    "text_encoder_precision": lambda site, _: switches_precision.look_precision(site, "text_encoder"),
    "transformer_precision": lambda site, _: switches_precision.look_precision(site, "transformer"),
    "vae_precision": lambda site, _: switches_precision.look_precision(site, "vae"),
    "attention_backend": lambda site, _: switches_attention.look_backend(site),
    "attention_slicing": lambda site, _: switches_attention.look_slicing(site),
    "attention_query_chunk": lambda site, _: switches_attention.look_query_chunk(site),
    "feed_forward_chunks": lambda site, _: switches_transformer.look_chunks(site),
    "vae_tile_px": switches_vae.look_tiling,
    "vae_slicing": lambda site, _: switches_vae.look_slicing(site),
    "gradient_checkpointing": lambda site, _: switches_transformer.look_checkpointing(site),
    "evict_text_encoder": lambda site, _: switches_offload.look_eviction(site),
    "embedding_cache": lambda site, _: text_cache.look_cache(site),
    "model_offload": lambda site, _: switches_offload.look_model_offload(site),
    "group_offload": lambda site, _: switches_offload.look_group_offload(site),
    "group_offload_blocks": lambda site, _: switches_offload.look_group_blocks(site),
    "group_offload_stream": lambda site, _: switches_offload.look_group_stream(site),
    "group_offload_disk": lambda site, _: switches_offload.look_group_disk(site),
    "fp8_storage": lambda site, _: switches_precision.look_fp8_storage(site),
    "quantization": lambda site, _: switches_precision.look_quantization(site),
    "compile": lambda site, _: switches_transformer.look_compile(site),
}


class Applied:
    """A pipeline under a profile, until `undo()`."""

    def __init__(self, site: Site, undo: ExitStack) -> None:
        self._site = site
        self._undo = undo

    @property
    def profile(self) -> MemoryProfile:
        """What was asked for."""
        return self._site.profile

    @property
    def states(self) -> tuple[SwitchState, ...]:
        """What every switch does, read from the live pipeline now."""
        return self.look(None)

    def look(self, size: Size | None) -> tuple[SwitchState, ...]:
        """As `states`, for a picture of `size` (width, height) in px: tiling does nothing to a small one."""
        return tuple(self._state(name, value, size) for name, value in self.profile.switches.items())

    def forget_prompts(self) -> None:
        """Let the remembered prompts go, so that the next image reads its prompt."""
        live = self._site.pipeline.text_encoder
        if isinstance(live, text_cache.CachingTextEncoder):
            live.forget()

    def undo(self) -> tuple[str, ...]:
        """Give the pipeline back: the same hooks, flags, objects and bits as before.

        Returns the switches whose loss stays, because weights were rounded: load the model again to lose it. A second
        call changes nothing.
        """
        self._undo.close()
        stays = {
            "fp8_storage": switches_precision.look_fp8_storage(self._site)[0] == "applied",
            "quantization": switches_precision.quantised_as(self._site.pipeline.transformer) not in ("", "gguf"),
        }
        return tuple(name for name, stayed in stays.items() if stayed)

    def _state(self, name: str, requested: object, size: Size | None) -> SwitchState:
        state, reason, values = self._site.refused.get(name) or LOOKS[name](self._site, size)
        return SwitchState(name, requested, state, reason, values)


def apply(
    pipeline: ZImagePipeline,
    profile: MemoryProfile,
    *,
    device: torch.device | None = None,
    scratch: Path | None = None,
) -> Applied:
    """Make `pipeline` what `profile` asks for and read every switch's state back from it.

    `device` is where to compute, the pipeline's own when None; weights that were loaded elsewhere are brought there
    unless a switch keeps them off. `scratch` is a folder for weights on disk. A switch that cannot be had is refused
    in its state and never an exception. What does raise (running out of memory above all) leaves the pipeline as it
    was. Apply to a pipeline under no other profile: `undo()` that first.
    """
    site = Site(pipeline, profile, device or torch.device(pipeline._execution_device), scratch)
    with ExitStack() as undo:
        for put in PUTS:
            put(site, undo)
        return Applied(site, undo.pop_all())


def homes(profile: MemoryProfile, device: torch.device) -> dict[str, torch.device]:
    """Where to load each component, so that `apply` moves nothing: offloaded ones into RAM."""
    away = {name: switches_offload.stays_away(profile, name) for name in COMPONENTS}
    return {name: torch.device("cpu") if off else device for name, off in away.items()}
