"""Switches that move weights out of the device's memory: text encoder eviction, model offload, group offload."""

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline
from diffusers.hooks import apply_group_offloading
from torch import nn

from zimage_studio.core.memory.hooks import drop_all, each_hook, tidy_forward
from zimage_studio.core.memory.site import COMPONENTS, OFF, Answer, Site, applied, idle
from zimage_studio.core.memory.switches_precision import PACKED, quantised_as
from zimage_studio.core.memory.text_cache import bare
from zimage_studio.records.memory import MemoryProfile

GROUP_HOOK = "group_offloading"
HOOKS = (GROUP_HOOK, "layer_execution_tracker", "lazy_prefetch_group_offloading")
CPU = torch.device("cpu")


def put_placement(site: Site, undo: ExitStack) -> None:
    """Bring to the device whatever no switch below keeps off it."""
    if not site.accelerated:
        return
    for name in COMPONENTS:
        module = bare(site.component(name))
        undo.callback(module.to, module.device)
        if not stays_away(site.profile, name):
            module.to(site.device)


def stays_away(profile: MemoryProfile, component: str) -> bool:
    """Whether the profile keeps a component's weights off an accelerator."""
    streamed = {"text_encoder": profile.evict_text_encoder, "transformer": profile.group_offload != "none"}
    return profile.model_offload or streamed.get(component, False)


# --- text encoder eviction ------------------------------------------------------------------------------------------


def put_eviction(site: Site, undo: ExitStack) -> None:
    """Stream the text encoder through, so that it is never whole on the device, not even while it reads.

    Layer by layer beside an accelerator; on a CPU block by block from disk, which is the only place that is not RAM.
    """
    if not site.profile.evict_text_encoder or (site.profile.model_offload and site.accelerated):
        return
    module = bare(site.pipeline.text_encoder)
    if site.accelerated:
        _stream(module, site, undo, leaf=True, blocks=None, stream=site.device.type == "cuda", folder=None)
    elif site.scratch is not None:
        _stream(module, site, undo, leaf=False, blocks=1, stream=False, folder=_fresh(site.scratch, undo))


def look_eviction(site: Site) -> Answer:
    """Read from the live hooks."""
    config = group_config(bare(site.pipeline.text_encoder))
    if config is not None:
        return applied("memory.evict.disk" if config.offload_to_disk_path else "memory.evict.streamed")
    if not site.profile.evict_text_encoder:
        return OFF
    return applied("memory.evict.in_turn") if in_turn(site) else idle("memory.no_accelerator")


# --- model offload --------------------------------------------------------------------------------------------------


def put_model_offload(site: Site, undo: ExitStack) -> None:
    """accelerate's: one whole component at a time on the device."""
    if not site.profile.model_offload or not site.accelerated:
        return
    undo.callback(end_model_offload, site.pipeline)
    site.pipeline.enable_model_cpu_offload(device=site.device)


def end_model_offload(pipeline: ZImagePipeline) -> None:
    """Take accelerate's hooks off."""
    pipeline.remove_all_hooks()
    for name in COMPONENTS:
        for module in (getattr(pipeline, name), bare(getattr(pipeline, name))):
            tidy_forward(module)


def look_model_offload(site: Site) -> Answer:
    """Read from the live hooks."""
    if in_turn(site):
        return applied("memory.model_offload.is")
    return idle("memory.no_accelerator") if site.profile.model_offload else OFF


def in_turn(site: Site) -> bool:
    """Whether accelerate's hooks are on the live components."""
    return bool(getattr(site.pipeline, "_all_hooks", None))


# --- group offload --------------------------------------------------------------------------------------------------


def put_group_offload(site: Site, undo: ExitStack) -> None:
    """diffusers' group offload of the transformer."""
    profile = site.profile
    if profile.group_offload == "none":
        return
    if profile.group_offload_disk and (refusal := _why_not_to_disk(site)):
        for switch in ("group_offload", "group_offload_disk"):
            site.refuse(switch, refusal[0], **refusal[1])
        return
    if not site.accelerated and not profile.group_offload_disk:
        return
    folder = _fresh(site.scratch, undo) if profile.group_offload_disk and site.scratch is not None else None
    leaf = profile.group_offload == "leaf"
    _stream(
        site.pipeline.transformer,
        site,
        undo,
        leaf=leaf,
        blocks=None if leaf else profile.group_offload_blocks,
        stream=profile.group_offload_stream and site.device.type == "cuda",
        folder=folder,
    )


def _why_not_to_disk(site: Site) -> tuple[str, dict[str, object]] | None:
    """diffusers writes plain tensors only, as safetensors."""
    if site.scratch is None:
        return "memory.no_scratch", {}
    packed = quantised_as(site.pipeline.transformer)
    return ("memory.packed_to_disk", {"value": packed}) if packed in PACKED else None


def look_group_offload(site: Site) -> Answer:
    """Whether the live transformer is streamed, and in which pieces."""
    config = group_config(site.pipeline.transformer)
    if config is None:
        return OFF if site.profile.group_offload == "none" else idle("memory.no_accelerator")
    if config.offload_type == "leaf_level":
        return applied("memory.group.leaves")
    return applied("memory.group.blocks", value=config.num_blocks_per_group)


def look_group_blocks(site: Site) -> Answer:
    """How many blocks go together."""
    config = group_config(site.pipeline.transformer)
    if config is None or config.num_blocks_per_group in (None, 1):
        return OFF if site.profile.group_offload_blocks == 1 else idle("memory.group.not_blocks")
    return applied("memory.group.blocks", value=config.num_blocks_per_group)


def look_group_stream(site: Site) -> Answer:
    """Whether weights travel on a stream of their own."""
    config = group_config(site.pipeline.transformer)
    if config is not None and config.stream is not None:
        return applied("memory.group.stream")
    return idle("memory.group.no_stream") if site.profile.group_offload_stream else OFF


def look_group_disk(site: Site) -> Answer:
    """Whether the weights lie on disk."""
    config = group_config(site.pipeline.transformer)
    return applied("memory.group.disk") if config is not None and config.offload_to_disk_path else OFF


def group_config(module: nn.Module) -> Any:
    """The live configuration of group offload, or None."""
    hooks = each_hook(module, GROUP_HOOK)
    return hooks[0].config if hooks else None


def _stream(
    module: nn.Module,
    site: Site,
    undo: ExitStack,
    *,
    leaf: bool,
    blocks: int | None,
    stream: bool,
    folder: Path | None,
) -> None:
    undo.callback(end_streaming, module)
    apply_group_offloading(
        module,
        onload_device=site.device,
        offload_device=CPU,
        offload_type="leaf_level" if leaf else "block_level",
        num_blocks_per_group=blocks,
        use_stream=stream,
        offload_to_disk_path=None if folder is None else str(folder),
    )


def end_streaming(module: nn.Module) -> None:
    """Take group offload off and leave the weights in RAM, the same bits as before."""
    for hook in each_hook(module, GROUP_HOOK):
        if hook.group.offload_to_disk_path:
            hook.group.onload_()
    drop_all(module, HOOKS)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.to(CPU, copy=tensor.device.type == "cpu")


def _fresh(scratch: Path, undo: ExitStack) -> Path:
    """A folder of its own for each component and each time.

    diffusers names its files after the place of the blocks alone and reads whatever lies there under that name: in a
    shared folder one model would silently get the weights of another.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="weights-", dir=scratch))
    undo.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder
