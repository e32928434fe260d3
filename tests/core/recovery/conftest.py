"""A random student on disk, and a few drawn pictures with captions.

Nothing is imported before the tests' conftest has prepared torch.
"""

from pathlib import Path

import pytest
from PIL import Image

SIDE = 64


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny_random

    folder = tmp_path_factory.mktemp("models") / "student"
    tiny_random.pipeline(n_layers=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of the drawn world, each with a .txt."""
    from zimage_studio.core.recovery.pictures import read_pictures

    folder = tmp_path_factory.mktemp("pictures")
    for number, drawn in enumerate(read_pictures("drawn", (SIDE, SIDE), drawn=4, held_out=0, seed=0)):
        Image.fromarray(drawn.read(SIDE, SIDE)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(drawn.captions[0], encoding="utf-8")
    return folder
