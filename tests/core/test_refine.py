"""Variations, variety and image to image: exact at their ends, seeded, and without a trace when they are off."""

import numpy as np
import pytest
import torch

from zimage_studio.core import sampling
from zimage_studio.core.noise import start_noise, towards
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.core.sampling import Sample
from zimage_studio.core.start_picture import fitted, started_latents
from zimage_studio.core.variety import FULL_NOISE, loose_steps, loosened
from zimage_studio.records.progress import silent
from zimage_studio.records.request import GenerationRequest, Variation

SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}


def request(**changes: object) -> GenerationRequest:
    values = {"prompt": "a red circle", "seed": 5, "width": 64, "height": 96, "steps": 4, "guidance": 1.5}
    return GenerationRequest(**{**values, **changes})


@pytest.fixture(scope="module")
def draw(random_pipeline):
    random_pipeline.set_progress_bar_config(disable=True)
    to_rgb = LatentToRgb.fit(random_pipeline.vae)

    def one(wanted: GenerationRequest, source_HWC=None) -> Sample:
        return sampling.sample(
            random_pipeline, wanted, scheduler_config=SCHEDULER, to_rgb=to_rgb, progress=silent, source_HWC=source_HWC
        )

    return one


def noise(*variations: tuple[int, float], seed: int = 5) -> torch.Tensor:
    links = tuple(Variation(seed=s, strength=strength) for s, strength in variations)
    return start_noise(request(seed=seed, variations=links, width=256, height=256), 16, 8)


def test_a_variation_begins_at_the_seed_and_ends_at_the_other():
    assert torch.equal(noise((9, 0.0)), noise())
    assert torch.equal(noise((9, 1.0)), noise(seed=9))
    assert torch.equal(noise((5, 0.5)), noise())  # towards itself


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.5, 0.9])
def test_a_variation_stays_gaussian_and_moves_with_its_strength(strength):
    varied = noise((9, strength))
    assert varied.std().item() == pytest.approx(1, abs=0.02)
    similar = torch.nn.functional.cosine_similarity(varied.flatten(), noise().flatten(), dim=0).item()
    assert similar == pytest.approx(np.cos(strength * np.pi / 2), abs=0.05)  # two noises are almost orthogonal


def test_variations_are_taken_one_after_the_other():
    chained = noise((9, 0.3), (11, 0.2))
    assert torch.equal(chained, towards(noise((9, 0.3)), noise(seed=11), 0.2))
    assert not torch.equal(chained, noise((11, 0.2), (9, 0.3)))


def test_the_interpolation_is_that_of_a1111_down_each_column():
    a, b, t = noise()[0], noise(seed=9)[0], 0.3
    dot = ((a / a.norm(dim=1, keepdim=True)) * (b / b.norm(dim=1, keepdim=True))).sum(1)
    omega = dot.acos()
    wanted = (((1 - t) * omega).sin() / omega.sin()).unsqueeze(1) * a + ((t * omega).sin() / omega.sin()).unsqueeze(
        1
    ) * b
    torch.testing.assert_close(noise((9, t))[0], wanted, atol=1e-6, rtol=1e-5)


def test_without_variety_the_prompt_is_read_as_it_is(draw):
    assert draw(request(variety=0.0)).pixels_sha256 == draw(request()).pixels_sha256
    assert loose_steps(request()) == 0


def test_variety_is_seeded_and_changes_the_picture(draw):
    loose = request(variety=0.8)
    first = draw(loose)
    assert first.pixels_sha256 == draw(loose).pixels_sha256 != draw(request()).pixels_sha256
    assert draw(request(variety=0.8, guidance=0.0)).pixels_sha256 != draw(request(guidance=0.0)).pixels_sha256


def test_variety_has_a_noise_of_its_own_and_of_the_size_asked_for():
    embedding = torch.randn(50, 64) * 3
    moved = loosened(embedding, request(variety=0.5)) - embedding
    assert moved.std().item() == pytest.approx(FULL_NOISE * 0.5 * 3, rel=0.1)
    start = start_noise(request(), 4, 8).flatten()[:3200]
    assert abs(torch.corrcoef(torch.stack([start, moved.flatten()[: start.numel()]]))[0, 1].item()) < 0.1
    assert not torch.equal(moved, loosened(embedding, request(variety=0.5, seed=6)) - embedding)


def test_only_the_first_steps_read_the_prompt_loosely():
    assert [loose_steps(request(variety=0.5, steps=steps)) for steps in (1, 2, 4, 8, 28)] == [1, 1, 2, 4, 14]


def picture(height: int = 96, width: int = 64) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)


def from_picture(strength: float, **changes: object) -> GenerationRequest:
    return request(source="0" * 64, strength=strength, **changes)


def test_at_full_strength_the_picture_is_forgotten(draw):
    assert draw(from_picture(1.0), picture()).pixels_sha256 == draw(request()).pixels_sha256


def test_the_weaker_the_closer(draw):
    source = picture()
    plain = draw(from_picture(0.01, guidance=0.0), source).pixels_HWC  # one step from a nearly clean latent
    apart = [
        float(np.abs(draw(from_picture(strength, guidance=0.0), source).pixels_HWC.astype(float) - plain).mean())
        for strength in (0.01, 0.5, 1.0)
    ]
    assert apart[0] == 0 < apart[1] < apart[2]


def test_the_start_lies_between_picture_and_noise_as_the_scheduler_says(random_pipeline):
    wanted, pixels = from_picture(0.5), picture()
    random_pipeline.scheduler = sampling.fresh_scheduler(SCHEDULER, None)
    pure = start_noise(wanted, random_pipeline.transformer.config.in_channels, random_pipeline.vae_scale_factor)
    start = started_latents(random_pipeline, wanted, pure, pixels)
    clean = started_latents(random_pipeline, wanted, torch.zeros_like(pure), pixels)
    fraction = ((start - clean) / pure).median().item()  # sigma: start = (1 - sigma) clean + sigma noise
    t = 1 - wanted.skipped_steps / wanted.steps  # even times, then the shift
    assert fraction == pytest.approx(3 * t / (1 + 2 * t), abs=1e-3)


def test_progress_counts_the_steps_that_are_run(random_pipeline):
    seen: list[tuple[float, float]] = []

    def note(done: float, total: float, _note: str, /, _preview: object = None) -> None:
        seen.append((done, total))

    sampling.sample(
        random_pipeline, from_picture(0.5), scheduler_config=SCHEDULER,
        to_rgb=LatentToRgb.fit(random_pipeline.vae), progress=note, source_HWC=picture(),
    )  # fmt: skip
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_a_picture_of_another_shape_covers_the_size_and_keeps_its_centre():
    stripes = np.zeros((32, 128, 3), np.uint8)
    stripes[:, 48:80] = 255
    cut = fitted(stripes, 64, 64)
    assert cut.shape == (64, 64, 3)
    assert cut[32].mean() == pytest.approx(255, abs=3)  # 64 px of the middle: the white square
    same = picture(64, 64)
    assert fitted(same, 64, 64) is same


def test_variation_variety_and_picture_go_together(draw):
    wanted = from_picture(0.7, variety=0.5, variations=(Variation(seed=9, strength=0.4),))
    assert draw(wanted, picture()).pixels_sha256 == draw(wanted, picture()).pixels_sha256


def test_a_request_with_a_picture_is_not_drawn_without_it(draw):
    with pytest.raises(ValueError, match="start picture"):
        draw(from_picture(0.5))
    with pytest.raises(ValueError, match="start picture"):
        draw(request(), picture())
