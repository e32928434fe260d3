"""What torch's allocator holds on each GPU. Apart from telemetry.py, which must not import torch."""

import torch

from zimage_studio.records.telemetry import TorchUsage


def torch_usage() -> tuple[TorchUsage, ...]:
    """One entry for each GPU that torch sees; nothing before torch uses CUDA: asking must not make a CUDA context."""
    if not torch.cuda.is_initialized():
        return ()
    return tuple(
        TorchUsage(
            id=f"GPU-{torch.cuda.get_device_properties(index).uuid}",
            allocated_bytes=torch.cuda.memory_allocated(index),
            reserved_bytes=torch.cuda.memory_reserved(index),
        )
        for index in range(torch.cuda.device_count())
    )
