"""The tiny CLIP: high on matching captions, near zero on others, lower when one word is wrong."""

import random
from pathlib import Path

import pytest
from PIL import Image

from scripts.train_tiny.train_clip import ONE_WORD_WRONG, figures
from zimage_studio.core.drawn.drawings import render, sample_scene
from zimage_studio.core.evaluation.clip_score import ClipScorer, tokenize

FOLDER = Path(__file__).parents[2] / "zimage_studio" / "tiny" / "clip"


@pytest.fixture(scope="module")
def scorer() -> ClipScorer:
    return ClipScorer.load(FOLDER)


def test_it_tells_right_captions_from_wrong_ones(scorer):
    rng = random.Random(9)
    row = figures(scorer, [sample_scene(rng, held_out=True) for _ in range(100)], rng)
    assert row["matched"] > 0.8
    assert abs(row["shuffled"]) < 0.1
    assert row["caption_found_for_picture"] > 0.9
    for word in ONE_WORD_WRONG:
        assert row[f"wrong_{word.replace(' ', '_')}"] < row["matched"] - 0.1, word


def test_the_score_is_the_mean_cosine_of_pairs(scorer):
    rng = random.Random(2)
    images = [Image.fromarray(render(sample_scene(rng))) for _ in range(3)]
    captions = ["a red circle", "一个蓝色的星星", "green fish"]
    cosines = scorer.similarities(images, captions)
    assert cosines.shape == (3, 3)
    assert scorer.score(images, captions) == pytest.approx(cosines.diagonal().mean().item())
    assert scorer.score(images[:1], captions[:1]) == pytest.approx(cosines[0, 0].item(), abs=1e-5)


def test_pictures_without_captions_are_refused(scorer):
    with pytest.raises(ValueError, match="1 pictures and 0 captions"):
        scorer.score([Image.new("RGB", (128, 128))], [])


def test_a_long_caption_is_cut_but_keeps_its_end_token(scorer):
    tokenizer = scorer._tokenizer
    ids = tokenize(tokenizer, ["red " * 100, ""], 44)
    assert ids.shape == (2, 44)
    assert ids.argmax(1).tolist() == [43, 0]


def test_what_it_saves_it_loads(scorer, tmp_path):
    scorer.save(tmp_path)
    images = [Image.new("RGB", (128, 128), "red")]
    assert ClipScorer.load(tmp_path).score(images, ["red"]) == scorer.score(images, ["red"])
