"""A replay ends in a verdict: identical, or which recorded field differs and by how much the pixels do."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from zimage_studio.core.comparison import difference_map, distance
from zimage_studio.core.metadata.png import write_png
from zimage_studio.errors import ModelError, UserError
from zimage_studio.records.progress import silent
from zimage_studio.records.verdict import Verdict
from zimage_studio.services.images import StoredImage
from zimage_studio.services.replay import read_original, recorded_differences
from zimage_studio.services.studio import Studio, build_studio

QUICK = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2, "guidance": 0, "seed": 3}
WAIT_S = 60


@pytest.fixture
def image(random_studio: Studio) -> StoredImage:
    (made,) = random_studio.generation.submit(QUICK, model="one").result(WAIT_S)
    return made


def replay(studio: Studio, image: StoredImage, **overrides: object) -> Verdict:
    original = read_original(image.path)
    job = studio.replay.start(original, silent, overrides=overrides, session="s")
    (made,) = job.result(WAIT_S)
    assert made.recipe.parent == image.recipe.outcome.pixels_sha256
    return studio.replay.verdict(original, made)


def test_the_same_request_on_the_same_stack_is_identical(random_studio, image):
    verdict = replay(random_studio, image)
    assert (verdict.verdict, verdict.differences, verdict.max_difference) == ("identical", (), 0)


def test_identical_after_a_restart_and_with_another_model_in_between(random_studio, image):
    random_studio.generation.submit(QUICK, model="two").result(WAIT_S)
    assert replay(random_studio, image).verdict == "identical"
    again = build_studio(random_studio.settings)
    again.start()
    try:
        assert replay(again, image).verdict == "identical"
    finally:
        again.begin_stop()
        again.close()


@pytest.mark.parametrize(("field", "value"), [("seed", 4), ("steps", 3), ("prompt", "a blue star"), ("guidance", 1.0)])
def test_a_changed_field_is_the_one_that_is_named(random_studio, image, field, value):
    verdict = replay(random_studio, image, **{field: value})
    assert verdict.verdict == "differs"
    named = {difference.field for difference in verdict.differences}
    assert f"request.{field}" in named
    assert named <= {f"request.{field}", "numerics.sigmas"}
    assert verdict.psnr_db is not None and verdict.psnr_db > 0
    assert verdict.ssim is not None and verdict.ssim < 1
    assert verdict.max_difference is not None and verdict.max_difference > 0


def test_another_size_differs_without_a_distance(random_studio, image):
    verdict = replay(random_studio, image, width=128)
    assert {difference.field for difference in verdict.differences} == {"request.width"}
    assert (verdict.psnr_db, verdict.ssim) == (None, None)


def test_each_recorded_field_is_told_apart(image):
    then = image.recipe
    for now, field in [
        (replace(then, stack={**then.stack, "torch": "0"}), "stack.torch"),
        (replace(then, model=replace(then.model, sha256="0" * 64)), "model.sha256"),
        (replace(then, numerics=replace(then.numerics, device="H200")), "numerics.device"),
        (replace(then, numerics=replace(then.numerics, attention_backend="flash")), "numerics.attention_backend"),
        (replace(then, request=replace(then.request, shift=2.0)), "request.shift"),
    ]:
        assert [difference.field for difference in recorded_differences(then, now)] == [field]


def test_a_file_changed_afterwards_is_found_out(random_studio, image, tmp_path):
    with Image.open(image.path) as opened:
        pixels = np.asarray(opened).copy()
    pixels[0, 0] += 128  # wraps: a difference of 128 whatever stood there
    forged = tmp_path / "forged.png"
    forged.write_bytes(write_png(pixels, image.recipe))
    verdict = replay(random_studio, replace(image, path=forged))
    assert (verdict.verdict, verdict.reason) == ("differs", "replay.edited")
    assert verdict.max_difference is not None and verdict.max_difference > 100


def test_weights_that_are_not_here_are_refused_with_their_hash(random_studio, image, tmp_path):
    recipe = image.recipe
    for model, words in [
        (replace(recipe.model, sha256="ab" * 32), ["abababababababab", "nearest", "one"]),
        (replace(recipe.model, sha256="ab" * 32, key="gone", name="Gone"), ["Gone", "abababababababab", "not here"]),
    ]:
        path = tmp_path / "x.png"
        path.write_bytes(write_png(np.zeros((64, 64, 3), np.uint8), replace(recipe, model=model)))
        with pytest.raises(ModelError) as refused:
            random_studio.replay.start(read_original(path), silent, session="s")
        for word in words:
            assert word in str(refused.value)


def test_a_picture_without_a_recipe_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="no recipe"):
        read_original(tmp_path / "x.png")


def test_distances_of_known_pictures():
    black, grey = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 51, np.uint8)
    same = distance(black, black)
    assert (same.psnr_db, same.ssim, same.max_difference) == (None, 1.0, 0)
    apart = distance(black, grey)
    assert apart.psnr_db == pytest.approx(20 * np.log10(255 / 51))
    assert apart.max_difference == 51
    changed = black.copy()
    changed[3, 4, 1] = 10
    shown, factor = difference_map(black, changed)
    assert factor == 25
    assert shown[3, 4].tolist() == [250, 250, 250] and int(shown.sum()) == 3 * 250
    shown, factor = difference_map(grey, grey)
    assert factor == 1 and not shown.any()
    with pytest.raises(ValueError, match="cannot be compared"):
        distance(black, black[:8])
