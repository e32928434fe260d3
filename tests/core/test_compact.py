"""The bfloat16 copy: bit-equal to what the model itself gives, whole or not there, and never in the model's place."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests import tiny_random
from zimage_studio.core import compact
from zimage_studio.core.engine import TorchEngine
from zimage_studio.core.loading import load_pipeline
from zimage_studio.core.model_files import inspect
from zimage_studio.core.weight_headers import component_header
from zimage_studio.core.whole_folder import sweep
from zimage_studio.errors import Cancelled, ModelError, StorageError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.memory import PRESETS, MemoryProfile
from zimage_studio.records.progress import silent

SHA = "ab" * 32
HALF = dict.fromkeys(("text_encoder", "transformer", "vae"), torch.bfloat16)


@pytest.fixture(scope="module")
def wide(random_pipeline, tmp_path_factory) -> Path:
    """As Turbo's repository: a sharded float32 transformer and VAE, a bfloat16 text encoder. Not to be changed."""
    folder = tmp_path_factory.mktemp("wide") / "turbo"
    random_pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "transformer")
    random_pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="1MB")
    encoder = tiny_random.text_encoder().to(torch.bfloat16)
    encoder.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "compact"


def artifact(folder: Path, **changes: object) -> ModelArtifact:
    return ModelArtifact(**{"key": "k", "kind": "folder", "path": str(folder), "name": "turbo", **changes})


def load(folder: Path, **options: object):
    return load_pipeline(artifact(folder), device="cpu", **{"dtypes": HALF, "progress": silent, **options})


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- identity


def test_both_load_as_the_same_bits(wide, root):
    made = compact.write(wide, root, SHA, progress=silent)
    ours, theirs = load(wide, compact=made.folder), load(wide)
    for name in HALF:
        tensors, others = getattr(ours, name).state_dict(), getattr(theirs, name).state_dict()
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in others)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_only_what_is_wide_is_copied_and_it_is_half(wide, root):
    before = digest(wide)
    made = compact.write(wide, root, SHA, progress=silent)
    assert made.components == compact.wide_components(wide) == ("transformer", "vae")
    for name in made.components:
        old, new = component_header(wide, name), component_header(made.folder, name)
        assert {key: info.shape for key, info in new.items()} == {key: info.shape for key, info in old.items()}
        assert sum(i.bytes for i in new.values()) * 2 == sum(i.bytes for i in old.values())
    assert made.bytes == sum(i.bytes for name in made.components for i in component_header(made.folder, name).values())
    assert digest(wide) == before


def test_numbers_that_are_not_wide_stay_as_they_are(wide, root, tmp_path):
    """A float16 weight and whole numbers beside float32 and float64 ones, scalars and empty tensors too."""
    from safetensors.torch import save_file

    tensors = {
        "half": torch.randn(3).half(), "count": torch.tensor(7), "double": torch.randn(5, dtype=torch.float64),
        "single": torch.tensor([1.0, float("nan"), float("inf"), 1e-40, 3.4e38]), "none": torch.zeros(0, 4),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }  # fmt: skip
    save_file(tensors, tmp_path / "odd.safetensors")
    compact._write_shard(tmp_path / "odd.safetensors", tmp_path / "out.safetensors", lambda _: None)
    with safe_open(tmp_path / "out.safetensors", framework="pt") as found:
        assert found.metadata() == {"format": "pt"}
        for name, tensor in tensors.items():
            wide_one = name in ("single", "double", "none")
            expected = tensor.bfloat16() if wide_one else tensor
            assert found.get_tensor(name).dtype == expected.dtype
            assert torch.equal(found.get_tensor(name).nan_to_num(), expected.nan_to_num())


def test_a_copy_is_not_read_where_another_precision_is_wanted(wide, root, monkeypatch):
    made = compact.write(wide, root, SHA, progress=silent)
    single = dict.fromkeys(HALF, torch.float32)
    ours, theirs = load(wide, compact=made.folder, dtypes=single), load(wide, dtypes=single)
    tensors, others = ours.transformer.state_dict(), theirs.transformer.state_dict()
    assert all(torch.equal(tensors[key], others[key]) for key in others)
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values())


def test_the_progress_of_loading_counts_the_bytes_of_the_copy(wide, root):
    made = compact.write(wide, root, SHA, progress=silent)
    seen: list[tuple[float, float]] = []
    load(wide, compact=made.folder, progress=lambda done, total, *_: seen.append((done, total)))
    encoder = sum(info.bytes for info in component_header(wide, "text_encoder").values())
    assert seen[-1] == (made.bytes + encoder, made.bytes + encoder)


# --- whole or not at all


def test_a_stop_leaves_nothing_and_the_next_try_succeeds(wide, root):
    def stop(done: float, total: float, *_: object) -> None:
        if done > total / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        compact.write(wide, root, SHA, progress=stop)
    assert list(root.iterdir()) == []
    assert compact.find(root, SHA) is None
    compact.write(wide, root, SHA, progress=silent)
    assert compact.find(root, SHA) is not None


def test_the_manifest_lists_every_file_and_nothing_else_stays(wide, root):
    made = compact.write(wide, root, SHA, progress=silent)
    manifest = json.loads((made.folder / "manifest.json").read_text())
    found = digest(made.folder)
    del found["manifest.json"]
    assert manifest == {"schema": 1, "of": SHA, "precision": "bfloat16", "files": found}
    assert sorted(path.name for path in root.iterdir()) == [SHA, "hashes.json"]


def test_a_copy_that_is_there_is_kept(wide, root):
    made = compact.write(wide, root, SHA, progress=silent)
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    assert compact.write(wide, root, SHA, progress=silent) == made == compact.find(root, SHA)
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before


@pytest.mark.parametrize("harm", ["flip", "cut", "lose", "manifest", "other"])
def test_a_harmed_copy_is_not_used_and_is_written_anew(wide, root, harm):
    made = compact.write(wide, root, SHA, progress=silent)
    victim = made.folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = victim.read_bytes()
    if harm == "flip":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "cut":
        victim.write_bytes(content[:-100])
    elif harm == "lose":
        victim.unlink()
    elif harm == "manifest":
        (made.folder / "manifest.json").write_text("{}")
    else:
        manifest = json.loads((made.folder / "manifest.json").read_text())
        (made.folder / "manifest.json").write_text(json.dumps(manifest | {"of": "cd" * 32}))
    assert compact.find(root, SHA) is None
    again = compact.write(wide, root, SHA, progress=silent)
    assert compact.find(root, SHA) == again
    assert victim.read_bytes() == content


def test_a_full_disk_is_said_before_anything_is_written(wide, root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - 10**8, 10**8))
    with pytest.raises(StorageError, match=r"100 MB free; at least 5\d\d MB are needed"):
        compact.write(wide, root, SHA, progress=silent)
    assert list(root.iterdir()) == []


def test_what_a_crash_left_is_swept_and_what_runs_is_left_alone(root):
    import os

    root.mkdir()
    for pid in (os.getpid(), 2**22 + 1):
        (root / f".{SHA}.{pid}-0011aabb.partial").mkdir()
    sweep(root)
    assert [path.name.split(".")[2].split("-")[0] for path in root.iterdir()] == [str(os.getpid())]


def test_a_damaged_model_is_named_and_leaves_no_copy(wide, root, tmp_path):
    folder = Path(shutil.copytree(wide, tmp_path / "copy"))
    shard = next((folder / "transformer").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ModelError, match="damaged"):
        compact.write(folder, root, SHA, progress=silent)
    assert not (root / SHA).exists()


# --- the engine


def weights_path(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Which copy each loading was given."""
    from zimage_studio.core import engine

    given: list[Path | None] = []
    real = engine.load_pipeline

    def spy(*arguments: object, **options: object):
        given.append(options["compact"])
        return real(*arguments, **options)

    monkeypatch.setattr(engine, "load_pipeline", spy)
    return given


def test_a_hub_model_gets_its_copy_at_the_first_loading_in_bfloat16_and_only_then(wide, root, monkeypatch):
    given, notes = weights_path(monkeypatch), []
    engine = TorchEngine(device="cpu", compacts=root)
    hub = artifact(wide, kind="hub", sha256=SHA)

    def load(model: ModelArtifact, profile: MemoryProfile) -> None:
        notes.append(set())
        engine.load(model, None, lambda _done, _total, note, *_: notes[-1].add(note), profile)

    load(hub, PRESETS["exact"])  # float32 on a CPU
    load(artifact(wide, sha256=SHA), PRESETS["bf16"])  # the user's own folder: on request only
    assert given == [None, None] and not root.exists()
    load(hub, PRESETS["bf16"])
    load(hub, PRESETS["bf16"])
    load(artifact(wide, sha256=SHA), PRESETS["bf16"])
    assert given[2:] == [root / SHA] * 3
    assert ["note.compacting" in seen for seen in notes] == [False, False, True, False, False]


def test_without_room_a_hub_model_is_loaded_all_the_same(wide, root, monkeypatch):
    given = weights_path(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 0))
    engine = TorchEngine(device="cpu", compacts=root)
    engine.load(artifact(wide, kind="hub", sha256=SHA), None, silent, PRESETS["bf16"])
    assert given == [None]


def test_a_model_that_is_narrow_already_gets_none(wide, root, tmp_path):
    made = compact.write(wide, root, SHA, progress=silent)
    folder = Path(shutil.copytree(wide, tmp_path / "narrow"))
    for name in made.components:
        shutil.rmtree(folder / name)
        shutil.copytree(made.folder / name, folder / name)
    assert (
        inspect(str(folder)).components["transformer"].bytes * 2 == inspect(str(wide)).components["transformer"].bytes
    )
    assert compact.wide_components(folder) == ()
    other = tmp_path / "other"
    assert compact.for_loading(replace(artifact(folder), kind="hub", sha256=SHA), other, silent) is None
    assert not other.exists()
