"""Scorers that a person brings along: read from safetensors or refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from zimage_studio.core.evaluation.clip_score import build_clip
from zimage_studio.core.evaluation.measures import bench
from zimage_studio.core.evaluation.open_clip_score import CONFIG, WEIGHTS, load_open_clip
from zimage_studio.core.evaluation.perceptual import FILE, Lpips, load_lpips
from zimage_studio.errors import ModelError
from zimage_studio.records.report import EvaluationRequest

MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


def pictures(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (96, 96, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": {}}))
    save_file({k: v.contiguous() for k, v in build_clip(MODEL).state_dict().items()}, tmp_path / WEIGHTS)
    return tmp_path


def test_a_checkpoint_of_open_clip_scores_from_its_folder(clip: Path) -> None:
    scorer = load_open_clip(str(clip))
    scores = scorer.score(pictures(3), ["a red boat", "一只猫", ""])
    assert len(scores) == 3 and all(-1 <= score <= 1 for score in scores)
    assert len(set(scores)) == 3
    assert scores == scorer.score(pictures(3), ["a red boat", "一只猫", ""])
    assert clip.name in scorer.name


def test_a_pickle_is_not_opened(clip: Path) -> None:
    (clip / WEIGHTS).rename(clip / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError) as refused:
        load_open_clip(str(clip))
    assert refused.value.key == "report.clip_file_missing"


def test_what_is_not_here_or_damaged_is_named_and_the_rest_is_measured(clip: Path) -> None:
    (clip / WEIGHTS).write_bytes(b"nothing")
    wanted = EvaluationRequest(clip=str(clip), hps="nobody/nothing", lpips=str(clip), image_reward=str(clip))
    found = bench(wanted, ["a", "b"], None, device="cpu", offline=True)
    assert {measure.name for measure in found.measures} == {"psnr_db", "ssim"}
    assert {item.name: item.reason for item in found.not_measured} == {
        "clip_score": "report.clip_damaged", "hps_v2": "report.clip_not_here", "lpips": "report.lpips_missing",
        "judge_accuracy": "report.why.other_world", "image_reward": "report.package_missing",
    }  # fmt: skip


def test_lpips_is_zero_for_equal_pictures_and_grows_with_noise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = Lpips()
    with torch.no_grad():
        for weight in made.lin:
            weight.uniform_(0, 1)
    save_file({k: v.contiguous() for k, v in made.state_dict().items()}, tmp_path / FILE)
    lpips = load_lpips(tmp_path)
    (picture,) = pictures(1)
    smooth = picture.resize((12, 12)).resize((96, 96))
    near = Image.blend(smooth, picture, 0.1)
    same, close, far = lpips([smooth] * 3, [smooth, near, picture])
    assert same == 0 < close < far
