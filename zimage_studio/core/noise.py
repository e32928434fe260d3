"""The start noise of an image: drawn from its seed, turned by its variations."""

import torch
from torch import Tensor

from zimage_studio.records.request import GenerationRequest

PARALLEL = 0.9995
"""Mean cosine above which two noises count as one direction, and the sphere as flat."""


def start_noise(request: GenerationRequest, channels: int, vae_factor: int) -> Tensor:
    """Gaussian noise (1, channels, H / vae_factor, W / vae_factor), float32, drawn on the CPU.

    A CPU generator gives the same numbers on every machine; one generator per image makes image i of a batch
    equal to a single image with its seed. Each variation turns the noise towards that of another seed.
    """
    side = vae_factor * 2  # the transformer's patches are 2x2 latents
    shape = (1, channels, 2 * (request.height // side), 2 * (request.width // side))
    noise_1CHW = _drawn(request.seed, shape)
    for variation in request.variations:
        noise_1CHW = towards(noise_1CHW, _drawn(variation.seed, shape), variation.strength)
    return noise_1CHW


def towards(from_1CHW: Tensor, to_1CHW: Tensor, strength: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985): `from` at strength 0 and `to` at 1, both exactly.

    A straight mean of two noises would have too little variance, and the picture would be flat. As in A1111, the
    angle is measured down each column (C, W), so that the same pair of seeds gives the same noise there.
    """
    if strength in (0.0, 1.0):
        return to_1CHW if strength else from_1CHW
    cosine_1C1W = (_unit(from_1CHW) * _unit(to_1CHW)).sum(2, keepdim=True)
    if float(cosine_1C1W.mean()) > PARALLEL:
        return torch.lerp(from_1CHW, to_1CHW, strength)
    angle_1C1W = torch.acos(cosine_1C1W.clamp(-1, 1))
    sine_1C1W = torch.sin(angle_1C1W)
    stay_1C1W = torch.sin((1 - strength) * angle_1C1W) / sine_1C1W
    go_1C1W = torch.sin(strength * angle_1C1W) / sine_1C1W
    return stay_1C1W * from_1CHW + go_1C1W * to_1CHW


def _unit(x_1CHW: Tensor) -> Tensor:
    return x_1CHW / torch.linalg.vector_norm(x_1CHW, dim=2, keepdim=True)


def _drawn(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
