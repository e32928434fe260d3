"""Pictures to start from: found by the hash of their pixels, refused when they are none, replayed bit for bit."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.records.progress import silent
from zimage_studio.services import sources
from zimage_studio.services.replay import read_original
from zimage_studio.services.studio import Studio

BASE = {"prompt": "a red circle on a white background", "seed": 7, "width": 64, "height": 64, "steps": 4, "guidance": 0}


def picture(folder: Path, name: str = "p.png", size: tuple[int, int] = (96, 48), **options: object) -> Path:
    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def test_a_picture_is_found_by_its_pixels_whatever_file_it_came_in(studio: Studio, tmp_path: Path):
    kept = studio.sources.keep(picture(tmp_path))
    again = studio.sources.keep(picture(tmp_path, "q.webp", lossless=True))
    assert kept == again == hashlib.sha256(studio.sources.pixels(kept).tobytes()).hexdigest()


def test_an_image_of_the_history_is_not_kept_twice(studio: Studio):
    made = studio.generation.submit(BASE, model="tiny").result(60)[0]
    assert studio.sources.keep(made.path) == made.recipe.outcome.pixels_sha256
    assert not list(studio.settings.data.glob("sources/*"))


def test_an_image_from_a_picture_names_it_as_parent_and_is_replayed_bit_for_bit(studio: Studio, tmp_path: Path):
    source = studio.sources.keep(picture(tmp_path))
    made = studio.generation.submit({**BASE, "source": source, "strength": 0.6}, model="tiny").result(60)[0]
    assert made.recipe.parent == made.recipe.request.source == source
    original = read_original(made.path)
    again = studio.replay.start(original, silent, session="x").result(60)[0]
    assert again.recipe.outcome.pixels_sha256 == made.recipe.outcome.pixels_sha256


def test_enlarging_keeps_the_picture_and_changes_the_size(studio: Studio):
    small = studio.generation.submit(BASE, model="tiny").result(60)[0]
    sha = small.recipe.outcome.pixels_sha256
    values = {**small.recipe.request.to_dict(), "width": 128, "height": 128, "source": sha, "strength": 0.25}
    large = studio.generation.submit(values, model="tiny").result(60)[0]
    with Image.open(large.path) as image:
        assert image.size == (128, 128)
        shrunk = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX), float)
    with Image.open(small.path) as image:
        wanted = np.asarray(image.convert("RGB"), float)
    assert np.abs(shrunk - wanted).mean() < 25  # the same picture, not another one


def test_a_picture_that_is_not_here_is_named_before_anything_runs(studio: Studio):
    with pytest.raises(UserError, match="0123456789abcdef"):
        studio.generation.submit({**BASE, "source": "0123456789abcdef" * 4, "strength": 0.5}, model="tiny")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "abc", "strength": 0.5}, "64 hexadecimal"),
        ({"source": "0" * 64}, "no strength"),
        ({"strength": 0.5}, "no start picture"),
        ({"source": "0" * 64, "strength": 0}, "0.01"),
        ({"source": "0" * 64, "strength": 1.5}, "1.5"),
    ],
)
def test_half_a_wish_is_refused(studio: Studio, values: dict[str, object], words: str):
    with pytest.raises(InvalidInputError, match=words):
        studio.generation.submit({**BASE, **values}, model="tiny")


def test_a_changed_file_is_not_the_picture_any_more(studio: Studio, tmp_path: Path):
    kept = studio.sources.keep(picture(tmp_path))
    path = studio.sources.path(kept)
    Image.new("RGB", (96, 48), "red").save(path)
    with pytest.raises(UserError, match="not here"):
        studio.sources.pixels(kept)


def test_what_is_no_picture_is_refused(studio: Studio, tmp_path: Path):
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    with pytest.raises(UserError, match=r"notes\.png"):
        studio.sources.keep(text)
    gif = tmp_path / "moving.gif"
    Image.new("RGB", (8, 8)).save(gif)
    with pytest.raises(UserError, match=r"moving\.gif"):
        studio.sources.keep(gif)
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture(tmp_path).read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut\.png"):
        studio.sources.keep(cut)
    assert not list(studio.settings.data.glob("sources/*"))


def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path: Path):
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(UserError, match="200000000"):
        sources.read_pixels(path)


def test_transparency_is_laid_on_white_and_orientation_is_applied(tmp_path: Path):
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (8, 4), (255, 0, 0, 0)).save(clear)
    assert (sources.read_pixels(clear) == 255).all()
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.new("RGB", (8, 4)).save(turned, exif=exif)
    assert sources.read_pixels(turned).shape == (8, 4, 3)
