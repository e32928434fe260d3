"""A quick look at a latent: a linear map from latent channels to RGB, fitted to the model's own VAE.

Other programs ship such factors as constants for each family of models. Studio measures them once when a model
is loaded, so any VAE gets a preview, and a preview costs one small matrix product instead of a decode.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from diffusers import AutoencoderKL
from torch import Tensor

from zimage_studio.records.progress import Preview

FIELD_PX = 128
FIELD_COUNT = 2
MAX_PREVIEW_PX = 256


@dataclass(frozen=True, slots=True)
class LatentToRgb:
    """RGB = latent @ weights + bias, per latent pixel. weights (C, 3), bias (3,), for RGB in 0..1."""

    weights_C3: Tensor
    bias_3: Tensor

    @classmethod
    def fit(cls, vae: AutoencoderKL) -> Self:
        """Least squares over encodings of smooth random colour fields (seeded, so equal models agree)."""
        generator = torch.Generator("cpu").manual_seed(0)
        coarse = torch.rand((FIELD_COUNT, 3, 6, 6), generator=generator) * 2 - 1
        fields = F.interpolate(coarse, size=(FIELD_PX, FIELD_PX), mode="bilinear", align_corners=False)
        device, dtype = next(vae.parameters()).device, vae.dtype
        with torch.no_grad():
            encoded = vae.encode(fields.to(device, dtype)).latent_dist.mode().float().cpu()
        latents = (encoded - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        rgb = F.adaptive_avg_pool2d((fields + 1) / 2, latents.shape[-2:])
        flat_latents = latents.movedim(1, -1).flatten(0, 2)
        design = torch.cat([flat_latents, torch.ones(len(flat_latents), 1)], dim=1)
        solution = torch.linalg.lstsq(design, rgb.movedim(1, -1).flatten(0, 2)).solution
        return cls(solution[:-1], solution[-1])

    def preview(self, latent_1CHW: Tensor) -> Preview:
        """The picture of `latent_1CHW`, one pixel per latent pixel, at most 256 px a side."""
        small = latent_1CHW.detach().float()
        longest = max(small.shape[-2:])
        if longest > MAX_PREVIEW_PX:
            small = F.interpolate(small, scale_factor=MAX_PREVIEW_PX / longest, mode="area")
        rgb = small[0].movedim(0, -1).cpu() @ self.weights_C3 + self.bias_3
        pixels = (rgb.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
        return Preview(width=pixels.shape[1], height=pixels.shape[0], rgb=pixels.numpy().tobytes())
