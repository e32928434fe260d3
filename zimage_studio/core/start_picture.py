"""Image to image: a picture, brought to the noise level at which the remaining steps take it up (arXiv:2108.01073)."""

import numpy as np
import torch
from diffusers import ZImagePipeline
from diffusers.pipelines.z_image.pipeline_z_image_img2img import (
    calculate_shift,
    get_default_z_image_sigmas,
    retrieve_timesteps,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zimage_studio.records.request import GenerationRequest


def fitted(pixels_HWC: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """(height, width, 3): the picture scaled by Lanczos until it covers the size, then cut around its centre."""
    if pixels_HWC.shape[:2] == (height, width):
        return pixels_HWC
    image = Image.fromarray(pixels_HWC)
    scale = max(width / image.width, height / image.height)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(covering, Image.Resampling.LANCZOS)
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def started_latents(
    pipeline: ZImagePipeline, request: GenerationRequest, noise_1CHW: Tensor, pixels_HWC: NDArray[np.uint8]
) -> Tensor:
    """(1, C, h, w) float32: the encoded picture and `noise`, mixed as at the first step that is run.

    The mean of the VAE's posterior is taken, not a draw, so that the seed decides the noise and nothing else. At
    strength 1 the result is the noise itself. The pipeline's scheduler is left as it was found.
    """
    device = pipeline._execution_device
    x_1CHW = torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    vae = pipeline.vae
    with torch.no_grad():
        mean_1CHW = vae.encode(x_1CHW.to(device, vae.dtype)).latent_dist.mode().float()
    latents_1CHW = (mean_1CHW - vae.config.shift_factor) * vae.config.scaling_factor
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    config = scheduler.config
    mu = calculate_shift(
        noise_1CHW.shape[2] // 2 * (noise_1CHW.shape[3] // 2),
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    sigmas = get_default_z_image_sigmas(request.steps)
    timesteps, _ = retrieve_timesteps(scheduler, request.steps, device, sigmas=sigmas, mu=mu)
    first = timesteps[request.skipped_steps : request.skipped_steps + 1]
    return scheduler.scale_noise(latents_1CHW, first, noise_1CHW.to(device))
