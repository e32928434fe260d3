"""Linear layers with weights of 4 bits in groups, each with its own scale and offset; on any device."""

import torch
from torch import Tensor, nn
from torch.nn import functional

# Shapes: O outputs, I inputs, G groups of a row, S numbers in a group (GROUP)

GROUP = 32
LEVELS = 15
BITS = 4 + 2 * 16 / GROUP
"""Bits for one weight, with a 16-bit scale and offset for each group."""


class Int4Linear(nn.Module):
    """`weight = level * scale + offset`, rounded to the nearest of 16 levels between the least and largest of a group.

    The weight is expanded in each forward, one layer at a time, so only memory is saved, no time. Rounding to nearest
    without calibration, as GGUF's Q4_1 does it.
    """

    packed_OI: Tensor
    scale_OG1: Tensor
    offset_OG1: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight.detach()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = weight_OI.dtype
        groups_OGS = weight_OI.float().unflatten(1, (-1, GROUP))
        low_OG1, high_OG1 = groups_OGS.amin(2, keepdim=True), groups_OGS.amax(2, keepdim=True)
        scale_OG1 = ((high_OG1 - low_OG1) / LEVELS).clamp_min(torch.finfo(torch.float16).tiny).half()
        offset_OG1 = low_OG1.half()
        level = ((groups_OGS - offset_OG1.float()) / scale_OG1.float()).round().clamp(0, LEVELS).to(torch.uint8)
        low_bits, high_bits = level.flatten(1).unflatten(1, (-1, 2)).unbind(2)
        self.register_buffer("packed_OI", low_bits | high_bits << 4)
        self.register_buffer("scale_OG1", scale_OG1)
        self.register_buffer("offset_OG1", offset_OG1)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    @property
    def weight(self) -> Tensor:
        """The expanded weight, (O, I)."""
        levels_OGS = torch.stack((self.packed_OI & 15, self.packed_OI >> 4), 2).flatten(1).unflatten(1, (-1, GROUP))
        wide_OGS = levels_OGS.to(self.dtype)
        return wide_OGS.mul_(self.scale_OG1.to(self.dtype)).add_(self.offset_OG1.to(self.dtype)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return functional.linear(x, self.weight, self.bias)


def fits(linear: nn.Linear) -> bool:
    """Whether the rows of `linear` divide into groups."""
    return int(linear.in_features) % GROUP == 0
