"""Variety: seeds that differ more, by reading the prompt loosely while the composition is decided.

Distilled models draw nearly the same picture for every seed. The composition is settled in the first steps; seeded
noise on the text embedding in these, and the true embedding afterwards, changes it while the prompt is still
followed. Known for Z-Image-Turbo as seed variance enhancement (ComfyUI node of that name; InvokeAI pull request 8753);
condition noise goes back to CADS (Sadat et al. 2024, arXiv:2310.17347).
"""

import hashlib

import torch
from torch import Tensor

from zimage_studio.records.request import GenerationRequest

LOOSE_SHARE = 0.5
"""Share of the steps that read the prompt loosely; at least one."""
FULL_NOISE = 0.4
"""Noise at variety 1, in standard deviations of the embedding."""


def loose_steps(request: GenerationRequest) -> int:
    """How many of the steps that are run read the prompt loosely; 0 without variety."""
    if request.variety == 0:
        return 0
    return max(1, round(LOOSE_SHARE * (request.steps - request.skipped_steps)))


def loosened(embedding_LD: Tensor, request: GenerationRequest) -> Tensor:
    """The embedding (L, D) of the prompt with Gaussian noise of `variety` x its standard deviation, from the seed."""
    noise_LD = torch.randn(embedding_LD.shape, generator=_generator(request.seed), dtype=torch.float32)
    strength = FULL_NOISE * request.variety * embedding_LD.float().std()
    return embedding_LD + (noise_LD.to(embedding_LD.device) * strength).to(embedding_LD.dtype)


def _generator(seed: int) -> torch.Generator:
    """A stream of its own: the start noise has taken the one of the bare seed."""
    own_seed = int.from_bytes(hashlib.sha256(f"variety {seed}".encode()).digest()[:8])
    return torch.Generator("cpu").manual_seed(own_seed)
