"""Understanding a model from the command line: the sensitivity map, knock-outs, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zimage_studio.cli import main
from zimage_studio.core.comparison import distance

SMALL = ("--prompt", "a fish", "--size", "64x64", "--steps", "2", "--guidance", "0", "--seed", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, whose data folder is shared by these tests."""
    from tests import tiny_random

    root = tmp_path_factory.mktemp("understand")
    tiny_random.pipeline(n_layers=2).save_pretrained(root / "models" / "random")
    return root


def run(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, Any, str]:
    common = ("--data", str(folder / "data"), "--models", str(folder / "models"), "--model", "random", "--offline")
    status = main([*arguments, *common, "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, err


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_two_pictures_and_their_distance(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    parts = ("layers.1", "noise_refiner.0.attention", "layers.0.head.1")
    status, told, _ = run(capsys, folder, "knock-out", *parts, *SMALL, "--out", str(tmp_path / "pair"))
    assert status == 0
    assert told["parts"] == ["layers.1.block", "noise_refiner.0.attention", "layers.0.head.1"]
    assert (told["model"], told["seed"]) == ("random", 3)
    assert [Path(told[name]).name for name in ("whole", "without")] == ["whole.png", "without.png"]
    measured = distance(pixels(told["whole"]), pixels(told["without"]))
    assert (told["psnr_db"], told["ssim"], told["max_difference"]) == (
        measured.psnr_db, measured.ssim, measured.max_difference,
    )  # fmt: skip
    assert measured.max_difference > 0

    before = pixels(told["without"])
    status, _, err = run(capsys, folder, "knock-out", "layers.0", *SMALL, "--out", str(tmp_path / "pair"))
    assert (status, "already" in err) == (2, True)
    assert np.array_equal(pixels(told["without"]), before)
    again = ("knock-out", "layers.0", *SMALL, "--out", str(tmp_path / "pair"), "--overwrite")
    status, other, _ = run(capsys, folder, *again)
    assert status == 0
    assert not np.array_equal(pixels(other["without"]), before)


def test_the_map_has_a_cell_for_every_half_and_the_most_sensitive_first(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    status, told, err = run(capsys, folder, "sensitivity", "--count", "1", "--by-timestep")
    assert status == 0
    assert "sensitivity map" in err  # progress
    cells = told["cells"]
    assert {"layers.0.attention", "layers.1.feed_forward", "noise_refiner.0.attention"} <= {c["part"] for c in cells}
    assert [cell["change"] for cell in cells] == sorted((cell["change"] for cell in cells), reverse=True)
    assert all(len(cell["by_step"]) == len(told["times"]) for cell in cells)
    assert (told["model"], len(told["prompts"])) == ("random", 1)
    assert Path(told["map"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["knock-out", "layers.99", *SMALL], "layers.99"),
        (["knock-out", "layers.0.head.99", *SMALL], "head is 99"),
        (["knock-out", "cellar.0", *SMALL], "cellar"),
        (["knock-out", "layers", *SMALL], "layers.2.attention"),
        (["knock-out", "layers.0.block.1", *SMALL], "Only the part"),
        (["knock-out", "layers.0", "--prompt", "a fish", "--size", "65x64"], "65"),
        (["knock-out", *SMALL], "Nothing is knocked out"),
        (["sensitivity", "--count", "0"], "0"),
        (["sensitivity", "--prompts", "/no/such/file"], "/no/such/file"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    out = ("--out", str(tmp_path / "pair")) if arguments[0] == "knock-out" else ()
    status, told, err = run(capsys, folder, *arguments, *out)
    assert (status, told) == (2, None)
    assert words in err.splitlines()[-1]
    assert not (tmp_path / "pair").exists()
