"""The drawing itself: equal to plain diffusers, stoppable, finite or refused."""

import numpy as np
import pytest
import torch

from zimage_studio.core import sampling
from zimage_studio.core.noise import start_noise
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.core.sampling import Sample, clean_estimate, count_tokens, sequence_length
from zimage_studio.errors import Cancelled, InvalidInputError, NonFiniteError
from zimage_studio.records.progress import Preview, silent
from zimage_studio.records.request import GenerationRequest


def request(**changes: object) -> GenerationRequest:
    values = {"prompt": "a red circle", "seed": 5, "width": 64, "height": 96, "steps": 4, "guidance": 1.5}
    return GenerationRequest(**{**values, **changes})


SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}


def sample(pipeline, request, **options) -> Sample:
    return sampling.sample(pipeline, request, scheduler_config=SCHEDULER, **options)


@pytest.fixture(scope="module")
def pipeline(random_pipeline):
    random_pipeline.set_progress_bar_config(disable=True)
    return random_pipeline


@pytest.fixture(scope="module")
def to_rgb(pipeline) -> LatentToRgb:
    return LatentToRgb.fit(pipeline.vae)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_equal_to_the_plain_diffusers_call(pipeline, to_rgb, guidance):
    ours = sample(pipeline, request(guidance=guidance), to_rgb=to_rgb, progress=silent)
    plain = pipeline(
        "a red circle", width=64, height=96, num_inference_steps=4, guidance_scale=guidance, max_sequence_length=64,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert np.array_equal(ours.pixels_HWC, np.asarray(plain))


def test_the_same_request_gives_the_same_pixels_and_another_seed_others(pipeline, to_rgb):
    first, again, other = (
        sample(pipeline, request(seed=seed), to_rgb=to_rgb, progress=silent).pixels_sha256 for seed in (5, 5, 6)
    )
    assert first == again != other


def test_a_shift_changes_this_image_and_not_the_next(pipeline, to_rgb):
    before = sample(pipeline, request(), to_rgb=to_rgb, progress=silent)
    shifted = sample(pipeline, request(shift=7.0), to_rgb=to_rgb, progress=silent)
    after = sample(pipeline, request(), to_rgb=to_rgb, progress=silent)
    assert before.pixels_sha256 == after.pixels_sha256 != shifted.pixels_sha256
    assert shifted.numerics.scheduler["shift"] == 7.0
    assert after.numerics.scheduler["shift"] == before.numerics.scheduler["shift"] != 7.0


def test_a_stop_ends_at_the_next_step_and_leaves_the_pipeline_usable(pipeline, to_rgb):
    expected = sample(pipeline, request(), to_rgb=to_rgb, progress=silent).pixels_sha256
    seen = []

    def stop_at_two(done: float, total: float, note: str, /, preview: Preview | None = None) -> None:
        seen.append((done, total, note))
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample(pipeline, request(), to_rgb=to_rgb, progress=stop_at_two)
    assert [done for done, _, _ in seen] == [0, 1, 2]
    assert sample(pipeline, request(), to_rgb=to_rgb, progress=silent).pixels_sha256 == expected


def test_nan_in_the_model_is_an_error_and_never_a_picture(pipeline, to_rgb):
    weight = pipeline.transformer.layers[1].feed_forward.w2.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] = float("nan")
        with pytest.raises(NonFiniteError, match="step 1 of 4"):
            sample(pipeline, request(), to_rgb=to_rgb, progress=silent)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_nan_in_the_decoder_is_an_error_too(pipeline, to_rgb):
    bias = pipeline.vae.decoder.conv_out.bias
    kept = bias.detach().clone()
    try:
        with torch.no_grad():
            bias.fill_(float("nan"))
        with pytest.raises(NonFiniteError):
            sample(pipeline, request(), to_rgb=to_rgb, progress=silent)
    finally:
        with torch.no_grad():
            bias.copy_(kept)


def test_the_noise_of_an_image_does_not_depend_on_its_neighbours():
    alone = start_noise(request(seed=9), 4, 8)
    assert torch.equal(alone, torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(9)))


def test_the_clean_estimate_of_an_exact_velocity_is_exact():
    clean, noise = torch.rand(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    sigmas = torch.tensor([1.0, 0.6, 0.2, 0.0])
    mix = [(1 - s) * clean + s * noise for s in sigmas]
    for index in range(3):
        assert torch.allclose(clean_estimate(mix[index], mix[index + 1], sigmas, index), clean, atol=1e-5)


def test_the_text_is_padded_to_the_next_64_and_never_cut(pipeline):
    length = count_tokens(pipeline, "a" * 100)
    assert sequence_length(pipeline, request(prompt="a" * 100)) == -(-length // 64) * 64
    with pytest.raises(InvalidInputError, match="512"):
        sequence_length(pipeline, request(prompt="猫狗 " * 400))


def test_previews_come_with_the_steps_and_look_like_the_latent(pipeline, to_rgb):
    previews = []

    def keep(done: float, total: float, note: str, /, preview: Preview | None = None) -> None:
        previews.append(preview)

    sample(pipeline, request(), to_rgb=to_rgb, progress=keep)
    shown = [preview for preview in previews if preview is not None]
    assert shown
    assert all(len(p.rgb) == p.width * p.height * 3 and (p.width, p.height) == (8, 12) for p in shown)


def test_a_preview_of_a_latent_beyond_256_is_made_smaller(to_rgb):
    preview = to_rgb.preview(torch.randn(1, len(to_rgb.weights_C3), 512, 300))
    assert max(preview.width, preview.height) == 256
