"""The two losses of recovery, and how noisy the pictures are made."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SIGMA_STD = 1.0


def noise_levels(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """sigma (count,) in (0, 1): logit-normal, shifted as the model's scheduler shifts (arXiv:2403.03206).

    Shifting sigma by s, to s sigma / (1 + (s - 1) sigma), adds log s to its logit.
    """
    return torch.sigmoid(torch.randn(count, generator=generator) * SIGMA_STD + math.log(shift))


def even_levels(count: int, shift: float) -> Tensor:
    """sigma (count,): the quantiles of the same distribution, for validation without chance."""
    middle = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.sigmoid(torch.special.ndtri(middle) * SIGMA_STD + math.log(shift)).float()


def noised(clean_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """The pictures on their straight way to noise."""
    level = sigma_B[:, None, None, None]
    return (1 - level) * clean_BCHW + level * noise_BCHW


def flow_loss(predicted_BCHW: Tensor, clean_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """Mean squared error of the velocity (arXiv:2210.02747); Z-Image predicts clean minus noise."""
    return F.mse_loss(predicted_BCHW, (clean_BCHW - noise_BCHW).to(predicted_BCHW.device))


def distillation_loss(predicted_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Mean squared difference to the teacher's velocity at the same point."""
    return F.mse_loss(predicted_BCHW, teacher_BCHW.to(predicted_BCHW.device))
