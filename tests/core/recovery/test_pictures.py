"""Data sets: three layouts give the same pictures; whatever is wrong is named, with the remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from zimage_studio.core.recovery.pictures import Picture, check_sizes, read_pictures
from zimage_studio.errors import InvalidInputError

SIZE = (64, 64)


def read(folder: Path) -> list[Picture]:
    found = read_pictures(str(folder), SIZE, drawn=0, held_out=1, seed=0)
    check_sizes(found, SIZE)
    for picture in found:
        picture.read(*SIZE)
    return found


@pytest.fixture
def copy(pictures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "data"))


def test_folder_metadata_and_shards_give_the_same(pictures: Path, copy: Path, tmp_path: Path) -> None:
    plain = read(pictures)
    lines = [{"file_name": f"{n}.png", "text": picture.captions[0]} for n, picture in enumerate(plain)]
    (copy / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    for text in copy.glob("*.txt"):
        text.unlink()
    shards = tmp_path / "shards"
    shards.mkdir()
    for start in (0, 2):
        with webdataset.TarWriter(str(shards / f"{start}.tar")) as writer:
            for number in (start, start + 1):
                picture = plain[number]
                writer.write({"__key__": f"{number:04d}", "png": picture.read(*SIZE), "txt": picture.captions[0]})
    for other in (read(copy), read(shards)):
        assert [picture.captions for picture in other] == [picture.captions for picture in plain]
        assert [picture.held_out for picture in other] == [picture.held_out for picture in plain]
        for one, two in zip(plain, other, strict=True):
            assert np.array_equal(one.read(*SIZE), two.read(*SIZE))
    assert sum(bool(picture.held_out) for picture in plain) == 1
    assert len(read(shards / "0.tar")) == 2


def test_larger_pictures_are_scaled_and_transparent_ones_get_white(tmp_path: Path) -> None:
    Image.new("RGBA", (200, 100), (255, 0, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("nothing")
    (picture,) = read(tmp_path)
    assert picture.read(*SIZE).shape == (64, 64, 3)
    assert picture.read(*SIZE).min() == 255


def no_text(folder: Path) -> None:
    (folder / "2.txt").unlink()


def blank_text(folder: Path) -> None:
    (folder / "2.txt").write_text(" \n")


def cut_off(folder: Path) -> None:
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[: len(content) // 2])


def not_a_picture(folder: Path) -> None:
    (folder / "2.png").write_bytes(b"hello")


def too_small(folder: Path) -> None:
    Image.new("RGB", (63, 80)).save(folder / "2.png")


def outside(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "../2.png", "text": "a"}\n')


def missing(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n{"file_name": "22.png", "text": "a"}')


def no_caption_key(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "2.png", "label": 3}\n')


def not_json(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "2.png", "text": "a"\n')


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


WRONG = [
    (no_text, "data_no_caption", "2.png"),
    (blank_text, "data_no_caption", "2.png"),
    (cut_off, "data_corrupt", "2.png"),
    (not_a_picture, "data_corrupt", "2.png"),
    (too_small, "data_small", "2.png"),
    (outside, "data_outside", ":1"),
    (missing, "data_missing", ":2"),
    (no_caption_key, "data_no_caption_key", ":1"),
    (not_json, "data_bad_line", ":1"),
    (empty, "data_empty", "data"),
]


@pytest.mark.parametrize(("harm", "key", "named"), WRONG, ids=[harm.__name__ for harm, _, _ in WRONG])
def test_what_is_wrong_is_named(copy: Path, harm: Callable[[Path], None], key: str, named: str) -> None:
    harm(copy)
    with pytest.raises(InvalidInputError) as caught:
        read(copy)
    assert caught.value.key == key
    assert named in str(caught.value.values["value"])


def test_an_unknown_data_set_and_a_broken_shard_are_refused(tmp_path: Path) -> None:
    for name, content in (("data.zip", b""), ("data.tar", b"x" * 2000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"data\.(zip|tar)"):
            read(tmp_path / name)
    with pytest.raises(InvalidInputError):
        read(tmp_path / "nowhere")


def test_drawn_pictures_are_the_same_each_time_and_hold_out_other_scenes() -> None:
    one, two = (read_pictures("drawn", SIZE, drawn=6, held_out=3, seed=5) for _ in range(2))
    assert [picture.captions for picture in one] == [picture.captions for picture in two]
    assert [picture.held_out for picture in one] == [False] * 6 + [True] * 3
    assert np.array_equal(one[0].read(*SIZE), two[0].read(*SIZE))
