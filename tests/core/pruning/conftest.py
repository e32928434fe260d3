"""A parent with five main blocks, in memory and on the disk."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # imported inside the fixtures: this file is read before tests/conftest.py has prepared torch
    import torch
    from diffusers import ZImagePipeline


@pytest.fixture(scope="session")
def parent_pipeline() -> "ZImagePipeline":
    """Not to be changed."""
    from tests import tiny_random

    return tiny_random.pipeline(n_layers=5)


@pytest.fixture(scope="session")
def parent(parent_pipeline: "ZImagePipeline", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("parents") / "parent"
    parent_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def inputs() -> "tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]":
    """Two pictures and captions of different lengths, with their times."""
    import torch

    from tests import tiny_random

    generator = torch.Generator().manual_seed(3)
    pictures = [torch.randn(4, 1, 8, 8, generator=generator) for _ in range(2)]
    captions = [torch.randn(length, tiny_random.CAPTION_WIDTH, generator=generator) for length in (5, 9)]
    return pictures, torch.tensor([0.2, 0.7]), captions
