"""Training on a random model of half a million parameters: it learns, it stops and resumes, and it says what it did."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline
from PIL import Image

from tests import tiny_random
from tests.core.recovery.conftest import SIDE
from zimage_studio.core.fingerprint import fingerprint, manifest_of
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.recovery.folder import LORA_FOLDER, RECOVERY
from zimage_studio.core.recovery.log import Line, read_log
from zimage_studio.core.recovery.lora import FILE
from zimage_studio.core.recovery.recover import Recovered, recover
from zimage_studio.core.weight_headers import component_header
from zimage_studio.errors import Cancelled, InvalidInputError
from zimage_studio.records.recover import RecoveryConfig

QUICK = RecoveryConfig(
    steps=6, batch=2, size=SIDE, gradient_checkpointing=False, trajectories=4, samples=1, lr=2e-3, held_out=2
)


def train(student: Path, out: Path, config: RecoveryConfig, data: Path, **more: object) -> Recovered:
    job = out.parent / f"{out.name}-job"
    return recover(student, out, config, data=str(data), checkpoint_dir=job, device="cpu", **more)  # type: ignore[arg-type]


def validations(job: Path) -> list[float]:
    return [line.validation for line in read_log(job / "log.jsonl") if line.validation is not None]


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_it_learns_a_few_pictures_by_heart(student: Path, pictures: Path, tmp_path: Path, optimiser: str) -> None:
    config = replace(QUICK, steps=60, batch=4, optimiser=optimiser, muon_lr=0.02, lr=5e-3, caption_dropout=0.0)
    lines: list[Line] = []
    done = train(student, tmp_path / "out", config, pictures, on_log=lines.append)
    assert done.steps == 60
    before, *_, after = validations(tmp_path / "out-job")
    losses = [line.loss for line in lines if line.loss is not None]
    assert losses[-1] < 0.6 * losses[0]
    assert after < before
    assert [line.step for line in lines] == sorted(line.step for line in lines)


def test_the_new_folder_is_a_model_with_its_origin(student: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(student, out, QUICK, pictures)
    facts = inspect_folder(out)
    assert facts.parent == fingerprint(inspect_folder(student).files)
    assert fingerprint(facts.files, manifest=manifest_of(out)) != facts.parent
    assert component_header(out, "transformer").keys() == component_header(student, "transformer").keys()
    run = json.loads((out / RECOVERY).read_text())
    assert RecoveryConfig.from_dict(run["config"]).steps == 6
    for kept in ("vae", "text_encoder"):
        for file in (student / kept).iterdir():
            assert (out / kept / file.name).read_bytes() == file.read_bytes()
    assert tiny_random.draw(ZImagePipeline.from_pretrained(out)).isfinite().all()
    assert {path.name for path in (tmp_path / "out-job").iterdir()} == {"log.jsonl", "samples"}
    with Image.open(tmp_path / "out-job" / "samples" / "recover-000006-0.png") as sample:
        assert sample.size == (SIDE, SIDE)


def test_the_stored_precision_is_kept(student: Path, pictures: Path, tmp_path: Path) -> None:
    ZImagePipeline.from_pretrained(student, dtype=torch.bfloat16).save_pretrained(tmp_path / "bf16")
    train(tmp_path / "bf16", tmp_path / "out", replace(QUICK, steps=1), pictures)
    assert {info.dtype for info in component_header(tmp_path / "out", "transformer").values()} == {"BF16"}


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(student: Path, tmp_path: Path) -> None:
    config = replace(QUICK, method="distil", data_set="", prompts=("a red fish", "一只猫"), weight_decay=0.0, ema=0.0)
    done = recover(student, tmp_path / "out", config, teacher=student, checkpoint_dir=tmp_path / "job", device="cpu")
    assert done.loss_first is not None
    assert done.loss_first < 1e-9
    assert validations(tmp_path / "job")[0] < 1e-9


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns_from_its_teacher(student: Path, tmp_path: Path, checkpointing: bool) -> None:
    """From prompts alone, at a size that takes the batched forward, with and without gradient checkpointing."""
    teacher = tmp_path / "teacher"
    pipe = tiny_random.pipeline(n_layers=2)
    with torch.no_grad():
        pipe.transformer.layers[0].ffn_norm2.weight.mul_(3)
    pipe.save_pretrained(teacher)
    config = replace(
        QUICK, method="distil", data_set="", prompts=("a red fish",), steps=20, size=128, samples=0, trajectories=3,
        gradient_checkpointing=checkpointing, ema=0.0, lr=3e-4,
    )  # fmt: skip
    recover(student, tmp_path / "out", config, teacher=teacher, checkpoint_dir=tmp_path / "job", device="cpu")
    before, *_, after = validations(tmp_path / "job")
    assert after < 0.9 * before


def test_gradient_checkpointing_changes_nothing(student: Path, pictures: Path, tmp_path: Path) -> None:
    made = []
    for name, value in (("off", False), ("on", True)):
        train(student, tmp_path / name, replace(QUICK, steps=2, gradient_checkpointing=value, samples=0), pictures)
        made.append((tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes())
    assert made[0] == made[1]


def test_accumulation_is_the_larger_batch(student: Path, pictures: Path, tmp_path: Path) -> None:
    """Two batches of 2 are the pictures of one batch of 4; noise is drawn for each batch, so only losses are close."""
    one = train(student, tmp_path / "one", replace(QUICK, steps=2, batch=4, samples=0), pictures)
    two = train(student, tmp_path / "two", replace(QUICK, steps=2, accumulation=2, samples=0), pictures)
    assert one.steps == two.steps == 2
    assert two.loss_first == pytest.approx(one.loss_first, rel=0.3)


def test_lora_is_saved_merged_and_equal(student: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = replace(QUICK, trainable="lora", lora_rank=4, lr=2e-2)
    train(student, out, config, pictures)
    with_adapter = ZImagePipeline.from_pretrained(student)
    before = tiny_random.draw(with_adapter)
    with_adapter.load_lora_weights(out / LORA_FOLDER, weight_name=FILE)
    merged = tiny_random.draw(ZImagePipeline.from_pretrained(out))
    assert torch.allclose(tiny_random.draw(with_adapter), merged, atol=1e-4)
    assert not torch.allclose(before, merged, atol=1e-3)


def test_stopped_and_resumed_is_as_never_stopped(student: Path, pictures: Path, tmp_path: Path) -> None:
    """Also where the data set is gone meanwhile: the cache has it."""

    def stop_at_three(done: float, total: float, note: str, /, preview: object = None) -> None:
        if note == "note.recover_train" and done == 3:
            raise Cancelled

    config = replace(QUICK, method="both", optimiser="muon")
    train(student, tmp_path / "whole", config, pictures, teacher=student)
    with pytest.raises(Cancelled):
        train(student, tmp_path / "out", config, pictures, teacher=student, progress=stop_at_three)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidInputError, match="other recovery settings"):
        train(student, tmp_path / "out", replace(config, lr=1e-3), pictures, teacher=student)
    done = train(student, tmp_path / "out", config, pictures, teacher=student)
    assert done.steps == 6
    for path in (tmp_path / "whole" / "transformer").iterdir():
        assert (tmp_path / "out" / "transformer" / path.name).read_bytes() == path.read_bytes()
    again = train(student, tmp_path / "out", config, pictures, teacher=student)
    assert again == done
    with pytest.raises(InvalidInputError, match="already a model"):
        train(student, tmp_path / "out", replace(config, seed=1), pictures, teacher=student)


def test_minutes_are_a_budget_too(student: Path, pictures: Path, tmp_path: Path) -> None:
    done = train(student, tmp_path / "out", replace(QUICK, steps=None, minutes=0.01, samples=0), pictures)
    assert done.steps > 1
    assert read_log(tmp_path / "out-job" / "log.jsonl")[-1].share == 1.0


def test_refused_before_anything_is_written(student: Path, pictures: Path, tmp_path: Path) -> None:
    for config, key in (
        (replace(QUICK, optimiser="adamw8bit"), "recover_8bit"),
        (replace(QUICK, method="distil"), "recover_no_teacher"),
        (replace(QUICK, cuts=(0.5,)), "recover_no_cutter"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            train(student, tmp_path / "out", config, pictures)
        assert caught.value.key == key
    assert list(tmp_path.iterdir()) == []
