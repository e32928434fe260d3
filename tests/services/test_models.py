"""The list of models: keys, folders, what is remembered, hashes, and who lends parts to whom."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests import tiny_random
from zimage_studio.errors import Cancelled, ModelError, UserError
from zimage_studio.records.progress import silent
from zimage_studio.services.models import ModelService


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder, with its transformer once more as a single file and as a GGUF beside it. Not to be changed."""
    models = tmp_path_factory.mktemp("saved")
    pipeline = tiny_random.pipeline()
    pipeline.save_pretrained(models / "Random Z-Image")
    tiny_random.write_comfy(pipeline.transformer, models / "z_image_turbo_bf16.safetensors")
    tiny_random.write_gguf(pipeline.transformer, models / "z-image-q8.gguf", "Q8_0")
    return models


@pytest.fixture
def models(saved: Path, tmp_path: Path) -> Path:
    """A --models folder that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "models"))


def service(tmp_path: Path, *folders: Path, embedded: Path | None = None) -> ModelService:
    return ModelService(
        data=tmp_path / "data", folders=folders, embedded=embedded or tmp_path / "nothing", offline=True
    )


def keys(models: ModelService) -> list[str]:
    return [artifact.key for artifact in models.list()]


def test_importing_the_service_does_not_import_torch():
    code = "import sys, zimage_studio.services.models; sys.exit('torch' in sys.modules or 'gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_list_is_the_embedded_model_then_the_hub_then_the_folder(models, tmp_path):
    listed = service(tmp_path, models, embedded=models / "Random Z-Image").list()
    assert [a.key for a in listed] == ["tiny", "z-image-turbo", "z-image", "z-image-q8", "z_image_turbo_bf16"]
    assert [a.kind for a in listed] == ["folder", "hub", "hub", "gguf", "single_file"]
    assert [a.missing for a in listed[:3]] == ["", "missing.not_downloaded", "missing.not_downloaded"]
    assert [a.defaults.steps for a in listed[1:3]] == [8, 28]


def test_an_embedded_model_that_is_not_there_is_listed_as_gone_and_refused_with_a_sentence(tmp_path):
    models = service(tmp_path)
    tiny = models.get("tiny")
    assert tiny.missing == "missing.gone"
    with pytest.raises(ModelError) as caught:
        models.identity(tiny, silent)
    assert caught.value.key == "model_path_missing"


def test_the_folder_itself_may_be_the_model(models, tmp_path):
    assert "random-z-image" in keys(service(tmp_path, models / "Random Z-Image"))


def test_a_folder_that_does_not_exist_is_an_empty_one(tmp_path):
    assert len(service(tmp_path, tmp_path / "nowhere").list()) == 3


def test_keys_are_unique_and_readable(models, saved, tmp_path):
    shutil.copytree(saved / "Random Z-Image", models / "tiny")
    shutil.copytree(saved / "Random Z-Image", models / "画家 模型")
    shutil.copytree(saved / "Random Z-Image", models / "Z-Image")
    found = keys(service(tmp_path, models))
    assert len(set(found)) == len(found)
    assert {"tiny", "tiny-2", "z-image", "z-image-2", "画家-模型"} <= set(found)


def test_a_model_is_found_by_key_and_by_name(models, tmp_path):
    listed = service(tmp_path, models)
    assert listed.get("random-z-image") == listed.get("Random Z-Image") == listed.get("random z-image")


@pytest.mark.parametrize(
    "key", ["../../etc", "/etc", "file:///", "http://127.0.0.1", "C:\\x", "", "a" * 9000, "\0", None, 7, ["tiny"], {}]
)
def test_what_is_no_key_is_refused_and_no_path_is_touched(models, tmp_path, monkeypatch, key):
    listed = service(tmp_path, models)
    listed.list()
    monkeypatch.setattr("zimage_studio.services.models.identify", lambda source: pytest.fail(f"looked at {source}"))
    with pytest.raises(UserError) as caught:
        listed.get(key)
    assert caught.value.key == "unknown_model"
    assert "tiny" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_path_is_taken_only_where_paths_are_allowed(models, tmp_path):
    listed = service(tmp_path)
    path = models / "Random Z-Image"
    with pytest.raises(UserError, match="no model called"):
        listed.get(str(path))
    artifact = listed.get(str(path), allow_paths=True)
    assert artifact == listed.get(artifact.key)
    assert artifact.parameters
    assert not (tmp_path / "data" / "models.json").exists()
    for wrong in (tmp_path / "nothing", models):
        with pytest.raises(ModelError):
            listed.get(str(wrong), allow_paths=True)


def test_a_hub_id_is_taken_where_paths_are_allowed(tmp_path):
    artifact = service(tmp_path).get("someone/other-z-image", allow_paths=True)
    assert (artifact.kind, artifact.key, artifact.missing) == ("hub", "other-z-image", "missing.not_downloaded")


def test_an_added_model_is_remembered_once(models, tmp_path):
    path = models / "Random Z-Image"
    artifact = service(tmp_path).add(str(path))
    again = service(tmp_path)
    assert again.add(str(path)) == artifact == again.get(artifact.key)
    assert keys(again).count("random-z-image") == 1
    assert not list((tmp_path / "data").glob(".*tmp"))
    shutil.rmtree(path)
    assert service(tmp_path).get("random-z-image").missing == "missing.gone"


def test_what_is_no_model_is_not_added(models, tmp_path):
    (models / "notes.txt").write_text("hello")
    for wrong in (models, models / "notes.txt", tmp_path / "nothing"):
        with pytest.raises(ModelError):
            service(tmp_path).add(str(wrong))
    assert not (tmp_path / "data" / "models.json").exists()


def test_files_that_are_no_model_are_passed_over_and_damaged_models_are_shown(models, tmp_path):
    vae = models / "Random Z-Image" / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(vae, models / "some_vae.safetensors")
    (models / "readme.md").write_text("x")
    (models / "empty").mkdir()
    vae.write_bytes(vae.read_bytes()[:-10])
    listed = service(tmp_path, models)
    assert keys(listed)[3:] == ["random-z-image", "z-image-q8", "z_image_turbo_bf16"]
    damaged = listed.get("random-z-image")
    assert damaged.missing == "missing.damaged"
    with pytest.raises(ModelError, match="promises"):
        listed.identity(damaged, silent)


def test_a_mended_model_is_seen_without_a_restart(models, saved, tmp_path):
    vae = models / "Random Z-Image" / "vae" / "diffusion_pytorch_model.safetensors"
    vae.write_bytes(vae.read_bytes()[:-10])
    listed = service(tmp_path, models)
    assert listed.get("random-z-image").missing
    shutil.copy(saved / "Random Z-Image" / "vae" / vae.name, vae)
    assert not listed.get("random-z-image").missing


def test_the_identity_does_not_depend_on_place_or_name(models, saved, tmp_path):
    shutil.copytree(saved / "Random Z-Image", models / "other name")
    listed = service(tmp_path, models)
    a, b = (listed.identity(listed.get(key), silent) for key in ("random-z-image", "other-name"))
    assert a.sha256 == b.sha256 != None  # noqa: E711
    assert len(a.sha256 or "") == 64


def test_the_identity_notices_the_manifest_and_can_be_stopped(models, tmp_path):
    folder = models / "Random Z-Image"
    (folder / "manifest.json").write_text(json.dumps({"files": {"vae/config.json": "0" * 64}, "parent": "abc"}))
    listed = service(tmp_path, models)
    artifact = listed.get("random-z-image")
    assert artifact.parent == "abc"

    def stop(*_: object) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        listed.identity(artifact, stop)
    with pytest.raises(ModelError, match=r"vae/config\.json is damaged"):
        listed.identity(artifact, silent)


def test_parts_come_from_a_complete_folder_of_the_same_geometry(models, tmp_path):
    listed = service(tmp_path, models)
    folder = models / "Random Z-Image"
    for key in ("z-image-q8", "z_image_turbo_bf16"):
        assert listed.parts_for(listed.get(key)) == folder
    assert listed.parts_for(listed.get("random-z-image")) is None
    shutil.rmtree(folder)
    assert listed.parts_for(listed.get("z-image-q8")) is None


def test_parts_of_another_width_are_not_lent(models, tmp_path):
    other = tiny_random.transformer(cap_feat_dim=48)
    path = tiny_random.write_comfy(other, tmp_path / "other.safetensors")
    listed = service(tmp_path, models)
    assert listed.parts_for(listed.get(str(path), allow_paths=True)) is None


def test_the_identity_of_a_single_file_covers_the_parts_lent_to_it(models, tmp_path):
    listed = service(tmp_path, models)
    before = listed.identity(listed.get("z_image_turbo_bf16"), silent)
    config = models / "Random Z-Image" / "vae" / "config.json"
    config.write_text(config.read_text() + " ")
    assert listed.identity(listed.get("z_image_turbo_bf16"), silent).sha256 != before.sha256


def test_a_hub_model_offline_says_so_at_once(tmp_path):
    listed = service(tmp_path)
    started = time.perf_counter()
    with pytest.raises(ModelError, match="Tongyi-MAI/Z-Image-Turbo is not on this machine") as caught:
        listed.identity(listed.get("z-image-turbo"), silent)
    assert time.perf_counter() - started < 5
    assert caught.value.key == "model_not_here"


def test_a_spoiled_memory_of_added_models_is_set_aside(models, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "models.json").write_text('{"schema": 9}')
    listed = service(tmp_path)
    assert len(listed.list()) == 3
    assert (tmp_path / "data" / "models.json.damaged").read_text() == '{"schema": 9}'
    listed.add(str(models / "Random Z-Image"))
    assert len(listed.list()) == 4


def test_a_single_file_without_a_family_is_drawn_like_its_lender(models, tmp_path):
    folder = models / "Random Z-Image"
    (folder / "studio_defaults.json").write_text('{"width": 128, "height": 128, "steps": 6, "sizes": [[128, 128]]}')
    (models / "z-image-q8.gguf").rename(models / "mine.gguf")
    listed = service(tmp_path, models)
    assert listed.get("mine").defaults == listed.get("random-z-image").defaults
    assert listed.get("mine").defaults.steps == 6


@pytest.fixture
def hub_copy(saved: Path, tmp_path: Path) -> Path:
    """Z-Image-Turbo as huggingface_hub keeps it: blobs under their hashes, and a snapshot of links."""
    repository = tmp_path / "data" / "hub" / "models--Tongyi-MAI--Z-Image-Turbo"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for path in (p for p in (saved / "Random Z-Image").rglob("*") if p.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(saved / "Random Z-Image")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def test_a_cached_hub_model_is_ready_offline_and_lends_its_parts(hub_copy, models, tmp_path):
    listed = service(tmp_path, models / "z-image-q8.gguf", models)
    turbo = listed.get("z-image-turbo")
    assert (turbo.missing, turbo.path) == ("", "Tongyi-MAI/Z-Image-Turbo")
    local = listed.identity(turbo, silent)
    assert (local.path, local.kind, local.key) == (str(hub_copy), "hub", "z-image-turbo")
    assert listed.identity(listed.get("random-z-image"), silent).sha256 == local.sha256
    assert listed.parts_for(listed.get("z_image_turbo_bf16")) == hub_copy


def test_a_flipped_bit_in_a_hub_model_is_noticed_by_the_hash_the_hub_published(hub_copy, tmp_path):
    listed = service(tmp_path)
    weights = (hub_copy / "vae" / "diffusion_pytorch_model.safetensors").resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"vae/diffusion_pytorch_model\.safetensors is damaged"):
        listed.identity(listed.get("z-image-turbo"), silent)


def test_what_is_printed_is_the_contract_of_the_command_line(models, tmp_path):
    listed = service(tmp_path, models)
    printed = listed.identity(listed.get("random-z-image"), silent).public()
    assert {"key", "kind", "path", "sha256", "parent", "parameters", "bytes"} <= printed.keys()
    json.dumps(printed)


# --- the bfloat16 copy


def test_a_bfloat16_copy_is_written_below_the_data_and_the_model_keeps_its_identity(models, tmp_path):
    listed = service(tmp_path, models)
    before = listed.identity(listed.get("random-z-image"), silent)
    made = listed.compact(listed.get("random-z-image"), silent)
    assert made.path == tmp_path / "data" / "compact" / before.sha256
    assert made.components == ("text_encoder", "transformer", "vae")
    assert made.bytes_after * 2 == made.bytes_before == before.bytes
    assert listed.compact(listed.get("random-z-image"), silent) == made
    again = service(tmp_path, models)
    assert again.identity(again.get("random-z-image"), silent) == before
    assert [a.key for a in again.list()] == [a.key for a in listed.list()]


def test_a_hub_models_copy_has_the_key_of_its_content(hub_copy, models, tmp_path):
    listed = service(tmp_path, models)
    made = listed.compact(listed.get("z-image-turbo"), silent)
    assert made == replace(listed.compact(listed.get("random-z-image"), silent), model="z-image-turbo")


def test_a_single_file_has_no_copy(models, tmp_path):
    listed = service(tmp_path, models / "z-image-q8.gguf", models)
    with pytest.raises(ModelError, match="single file"):
        listed.compact(listed.get("z-image-q8"), silent)
