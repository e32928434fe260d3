"""Feed-forward layers over one piece of the sequence after another: the same result, a part of the memory."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from zimage_studio.core.memory.hooks import add_hook
from zimage_studio.core.memory.site import feed_forwards

HOOK = "studio_feed_forward_chunks"
ROW_STEP = 32
"""Z-Image pads sequences to multiples of 32, and products over aligned rows are computed alike, bit for bit."""


class FeedForwardChunks(ModelHook):
    """Runs the layer's own forward on `chunks` pieces of the sequence. Tokens do not see each other in it."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks

    def new_forward(self, _module: nn.Module, x_BLE: Tensor) -> Tensor:
        """(B, L, E) -> (B, L, E). The result is written in place, so that pieces and whole never stand side by side."""
        forward: Callable[[Tensor], Tensor] = self.fn_ref.original_forward
        length = x_BLE.shape[1]
        step = -(-length // (self.chunks * ROW_STEP)) * ROW_STEP
        if step >= length:
            return forward(x_BLE)
        first_BSE = forward(x_BLE[:, :step])
        out_BLE = torch.empty((x_BLE.shape[0], length, first_BSE.shape[2]), dtype=first_BSE.dtype, device=x_BLE.device)
        out_BLE[:, :step] = first_BSE
        del first_BSE
        for start in range(step, length, step):
            out_BLE[:, start : start + step] = forward(x_BLE[:, start : start + step])
        return out_BLE


def chunk_feed_forward(transformer: nn.Module, chunks: int, undo: ExitStack) -> None:
    """Hook every feed-forward layer; LoRA, quantised layers and other hooks stay inside."""
    for layer in feed_forwards(transformer):
        add_hook(layer, FeedForwardChunks(chunks), HOOK, undo)
