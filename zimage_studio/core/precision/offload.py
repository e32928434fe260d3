"""Stream a transformer block by block through a device that cannot hold it in float32."""

from contextlib import ExitStack

import torch
from diffusers import ZImageTransformer2DModel
from diffusers.hooks import apply_group_offloading
from torch import nn

from zimage_studio.core.memory.hooks import drop_all

HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")


def stream_blocks(transformer: ZImageTransformer2DModel, device: torch.device, undo: ExitStack) -> None:
    """Keep the weights in the computer's memory and one block (two while prefetching) on `device`.

    `undo` ends it and brings the weights to `device` again. Pinned memory is taken block by block, not for the whole
    model at once.
    """
    streams = device.type == "cuda"
    undo.callback(_end, transformer, device)
    apply_group_offloading(
        transformer,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=streams,
        low_cpu_mem_usage=streams,
    )


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate (model or sequential offload) already moves this module."""
    return getattr(module, "_hf_hook", None) is not None


def _end(transformer: ZImageTransformer2DModel, device: torch.device) -> None:
    drop_all(transformer, HOOKS)
    transformer.to(device)
