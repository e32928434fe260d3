"""Whole tiny models, made once for all tests of the core."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # imported inside the fixtures: this file is read before tests/conftest.py has prepared torch
    from diffusers import ZImagePipeline


@pytest.fixture(scope="session")
def random_pipeline() -> "ZImagePipeline":
    """A pipeline of 0.7 million random parameters. Tests must not change it."""
    from tests import tiny_random

    return tiny_random.pipeline()


@pytest.fixture(scope="session")
def random_folder(random_pipeline: "ZImagePipeline", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`random_pipeline` as a diffusers folder. Tests must not change it: copy it first."""
    folder = tmp_path_factory.mktemp("models") / "random-z-image"
    random_pipeline.save_pretrained(folder)
    return folder
