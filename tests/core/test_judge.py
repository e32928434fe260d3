"""The judge: right on fresh drawings, honest about its format."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from zimage_studio.core.drawn.drawings import render, sample_scene
from zimage_studio.core.drawn.questions import truth
from zimage_studio.core.evaluation.judge import Judge

FOLDER = Path(__file__).parents[2] / "zimage_studio" / "tiny" / "judge"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(FOLDER)


def fresh(count: int):
    rng = random.Random(77)
    scenes = [sample_scene(rng, two_share=0.0, held_out=None) for _ in range(count)]
    return [Image.fromarray(render(scene)) for scene in scenes], [truth(scene) for scene in scenes]


def test_it_is_right_on_fresh_drawings(judge):
    images, truths = fresh(200)
    wrong = [(seen, right) for seen, right in zip(judge(images), truths, strict=True) if seen != right]
    assert len(wrong) <= 2, wrong


def test_it_takes_other_sizes_and_any_number_of_pictures(judge):
    images, _ = fresh(3)
    large = [image.resize((256, 256), Image.Resampling.NEAREST) for image in images]
    assert judge(large) == judge(images, batch=2)
    assert judge([]) == []


def test_what_it_saves_it_loads(judge, tmp_path):
    judge.save(tmp_path)
    images, _ = fresh(10)
    assert Judge.load(tmp_path)(images) == judge(images)


def test_another_schema_is_refused(judge, tmp_path):
    judge.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "schema": 9}))
    with pytest.raises(ValueError, match="schema 9; this version reads 1"):
        Judge.load(tmp_path)
