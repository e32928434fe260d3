"""What a path or id is, decided from headers: sizes, geometry, defaults, and every way to be refused."""

import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests import tiny_random
from zimage_studio.core.fingerprint import HashCache, fingerprint, manifest_of
from zimage_studio.core.model_files import (
    BASE_DEFAULTS,
    check_parts,
    defaults_of,
    identify,
    inspect,
    inspect_file,
    inspect_folder,
    is_hub_id,
)
from zimage_studio.core.weight_headers import read_safetensors_header, summary
from zimage_studio.errors import Cancelled, ModelError
from zimage_studio.records.request import ModelDefaults


@pytest.fixture
def folder(random_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(random_folder, tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(source: object) -> ModelError:
    with pytest.raises(ModelError) as caught:
        inspect(str(source))
    return caught.value


def test_reading_headers_does_not_import_torch():
    code = (
        "import sys, zimage_studio.core.model_files, zimage_studio.core.fingerprint; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- identify


def test_each_kind_is_recognised(random_pipeline, random_folder, tmp_path):
    single = tiny_random.write_comfy(random_pipeline.transformer, tmp_path / "a.safetensors")
    gguf = tiny_random.write_gguf(random_pipeline.transformer, tmp_path / "a.gguf")
    found = [identify(str(source)) for source in (random_folder, single, gguf, "Tongyi-MAI/Z-Image-Turbo")]
    assert found == ["folder", "single_file", "gguf", "hub"]


@pytest.mark.parametrize(
    "source",
    [
        "",
        " ",
        "../../etc/nothing",
        "/nowhere",
        "file:///etc",
        "http://127.0.0.1/a",
        "https://hub/a/b",
        "C:\\x",
        "a/b/c",
        "a/../b",
        "a/..",
        "-a/b",
        "a/b c",
        "a/b\n",
        "a/b--c",
        "x" * 5000,
        "a\0b",
        "~nobody-of-this-name/x",
        "org/名",
    ],
)
def test_what_is_neither_here_nor_a_hub_id_is_refused_with_one_sentence(source):
    error = refused(source)
    assert error.key == "model_path_missing"
    assert len(str(error)) < 400
    assert not is_hub_id(source)


@pytest.mark.parametrize(
    "name", ["model.ckpt", "model.pt", "model.bin", "model.pkl", "model.safetensors", "model.gguf"]
)
def test_a_pickle_is_refused_by_content_whatever_its_name(tmp_path, name):
    bare = tmp_path / name
    bare.write_bytes(pickle.dumps({"weights": list(range(100))}))
    assert refused(bare).key == "model_pickle"
    with zipfile.ZipFile(bare, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    assert refused(bare).key == "model_pickle"


def test_a_pickle_is_refused_by_name_whatever_its_content(random_pipeline, tmp_path):
    path = tiny_random.write_comfy(random_pipeline.transformer, tmp_path / "a.safetensors")
    assert refused(path.rename(tmp_path / "a.ckpt")).key == "model_pickle"


# --- sizes and geometry


def test_parameters_and_bytes_are_those_of_the_model(random_pipeline, random_folder):
    facts = inspect_folder(random_folder)
    for name in ("transformer", "vae", "text_encoder"):
        count = sum(p.numel() for p in getattr(random_pipeline, name).parameters())
        assert (facts.components[name].parameters, facts.components[name].bytes) == (count, 4 * count)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_single_file_tells_its_geometry(random_pipeline, random_folder, tmp_path, prefix):
    path = tiny_random.write_comfy(random_pipeline.transformer, tmp_path / "a.safetensors", prefix)
    facts = inspect_file(path)
    assert facts.geometry == inspect_folder(random_folder).geometry
    assert facts.parameters == sum(p.numel() for p in random_pipeline.transformer.parameters())


def test_a_quantised_gguf_has_the_parameters_of_its_model_and_fewer_bytes(random_pipeline, tmp_path):
    count = sum(p.numel() for p in random_pipeline.transformer.parameters())
    facts = inspect_file(tiny_random.write_gguf(random_pipeline.transformer, tmp_path / "a.gguf", "Q8_0"))
    assert facts.parameters == count
    assert facts.bytes < 4 * count


def test_a_vae_is_no_transformer(random_folder):
    assert refused(random_folder / "vae" / "diffusion_pytorch_model.safetensors").key == "model_no_transformer"


def test_parts_of_another_width_are_refused_naming_both(random_folder, tmp_path):
    other = tiny_random.transformer(cap_feat_dim=48)
    file = inspect_file(tiny_random.write_comfy(other, tmp_path / "other.safetensors"))
    with pytest.raises(ModelError, match=r"other\.safetensors has caption width 48, but random-z-image has 32"):
        check_parts(file, inspect_folder(random_folder))


# --- damage


def test_a_truncated_file_is_named_with_both_sizes(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1000)
    error = refused(folder)
    assert error.key == "model_truncated"
    assert (error.values["expected"], error.values["actual"]) == (size, size - 1000)
    assert "transformer/diffusion_pytorch_model.safetensors" in str(error)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\0" * 100,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b"{" * 8,
        struct.pack("<Q", 10) + b'{"a": "b"}',
        struct.pack("<Q", 5) + b"\xff\xfe\xfd{}",
        b"<!DOCTYPE html><html>404</html>",
    ],
)
def test_a_header_of_garbage_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert refused(path).key == "model_header"


def test_offsets_that_disagree_with_shapes_are_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    with pytest.raises(ModelError, match="header"):
        read_safetensors_header(path)


def test_a_truncated_gguf_is_refused(random_pipeline, tmp_path):
    path = tiny_random.write_gguf(random_pipeline.transformer, tmp_path / "a.gguf")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert refused(path).key == "model_header"


@pytest.mark.parametrize("length", [4, 10, 24, 40])
def test_a_gguf_of_nothing_but_its_beginning_is_refused(random_pipeline, tmp_path, length):
    path = tiny_random.write_gguf(random_pipeline.transformer, tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:length])
    assert refused(path).key == "model_header"


def test_a_missing_shard_is_named(folder):
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[:20]}, folder / "transformer" / "part-1.safetensors")
    weight_map = {n: "part-1.safetensors" if n in names[:20] else "part-2.safetensors" for n in names}
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    whole.unlink()
    assert "transformer/part-2.safetensors is missing" in str(refused(folder))
    save_file({n: tensors[n] for n in names[21:]}, folder / "transformer" / "part-2.safetensors")
    assert names[20] in str(refused(folder)) or refused(folder).key == "model_file_missing"
    index.write_text(json.dumps({"weight_map": {"a": "../../vae/diffusion_pytorch_model.safetensors"}}))
    assert refused(folder).key == "model_header"


@pytest.mark.parametrize("gone", ["transformer", "tokenizer", "vae/config.json", "scheduler/scheduler_config.json"])
def test_what_is_missing_from_a_folder_is_named(folder, gone):
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    error = refused(folder)
    assert error.key == "model_file_missing"
    assert gone.split("/")[-1] in str(error)


def test_a_folder_with_pickled_weights_only_is_refused(folder):
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    whole.rename(whole.with_suffix(".bin"))
    assert refused(folder).key == "model_pickle"


# --- foreign code


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("transformer/config.json", "auto_map"),
        ("text_encoder/config.json", "auto_map"),
        ("tokenizer/tokenizer_config.json", "auto_map"),
        ("model_index.json", "custom_pipeline"),
    ],
)
def test_a_folder_that_wants_its_own_code_run_is_refused(folder, file, key):
    edit(folder / file, **{key: {"AutoModel": "evil.Model"}})
    error = refused(folder)
    assert error.key == "model_remote_code"
    assert key in str(error)


@pytest.mark.parametrize(
    ("component", "entry"),
    [
        ("transformer", ["evil_module", "ZImageTransformer2DModel"]),
        ("transformer", ["diffusers", "FluxTransformer2DModel"]),
        ("vae", ["transformers", "CLIPModel"]),
        ("safety_checker", ["evil", "Checker"]),
        ("tokenizer", None),
        ("tokenizer", [[], {}]),
    ],
)
def test_classes_that_we_do_not_know_are_refused(folder, component, entry):
    edit(folder / "model_index.json", **{component: entry})
    assert refused(folder).key == "model_foreign_class"


def test_another_pipeline_is_refused_by_its_name(folder):
    edit(folder / "model_index.json", _class_name="FluxPipeline")
    assert "FluxPipeline" in str(refused(folder))


def test_a_folder_without_index_is_refused(tmp_path):
    assert refused(tmp_path).key == "model_no_index"


def test_a_text_encoder_of_another_width_is_refused(folder):
    edit(folder / "text_encoder" / "config.json", hidden_size=64)
    assert refused(folder).key == "model_geometry"


# --- defaults


def test_defaults_are_read_from_the_folder(folder):
    values = {"width": 128, "height": 128, "steps": 10, "guidance": 2, "sizes": [[128, 128], [160, 96]]}
    (folder / "studio_defaults.json").write_text(json.dumps(values | {"max_sequence_length": 64}))
    expected = ModelDefaults(width=128, height=128, steps=10, guidance=2.0, sizes=((128, 128), (160, 96)))
    assert inspect_folder(folder).defaults == expected


@pytest.mark.parametrize(
    "values",
    [
        {"width": 100},
        {"steps": 0},
        {"steps": True},
        {"guidance": "many"},
        {"sizes": [[128]]},
        {"sizes": [[128, 100]]},
        {"sizes": 7},
        {"sizes": []},
        {"colour": "red"},
        {"width": None},
    ],
)
def test_defaults_that_no_request_may_have_are_refused(folder, values):
    (folder / "studio_defaults.json").write_text(json.dumps(values))
    assert refused(folder).key == "model_bad_defaults"


@pytest.mark.parametrize(
    ("name", "shift", "family", "steps", "guidance"),
    [
        ("Z-Image-Turbo", 6.0, "turbo", 8, 0.0),
        ("foo", 3.0, "turbo", 8, 0.0),
        ("foo", 6.0, "base", 28, 4.0),
        ("foo", 2.0, "other", 8, 0.0),
    ],
)
def test_the_family_decides_where_the_folder_is_silent(folder, name, shift, family, steps, guidance):
    folder = folder.rename(folder.with_name(name))
    edit(folder / "scheduler" / "scheduler_config.json", shift=shift)
    facts = inspect_folder(folder)
    assert (facts.family, facts.defaults.steps, facts.defaults.guidance) == (family, steps, guidance)


def test_the_sizes_of_the_base_are_the_usual_ones():
    assert defaults_of(None, "base") == BASE_DEFAULTS
    assert BASE_DEFAULTS.sizes == ModelDefaults().sizes


# --- fingerprint


def test_one_flipped_bit_changes_the_fingerprint_and_the_cache_notices(folder, tmp_path):
    facts = inspect_folder(folder)
    cache = HashCache(tmp_path / "data" / "hashes.json")
    before = fingerprint(facts.files, cache=cache)
    assert before == fingerprint(facts.files, cache=cache) == fingerprint(facts.files)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(facts.files, cache=cache) != before


def test_hashing_reports_bytes_reads_each_file_once_and_can_be_stopped(folder, tmp_path):
    facts = inspect_folder(folder)
    cache = HashCache(tmp_path / "hashes.json")
    seen: list[tuple[float, float, str]] = []
    fingerprint(facts.files, cache=cache, progress=lambda *call: seen.append(call))
    total = sum(path.stat().st_size for path in facts.files.values())
    assert seen[-1] == (total, total, "note.hashing")
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    again: list[object] = []
    fingerprint(facts.files, cache=cache, progress=lambda *call: again.append(call))
    assert len(again) == 1

    def stop(*_: object) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        fingerprint(facts.files, progress=stop)


def test_a_spoiled_hash_cache_costs_only_time(folder, tmp_path):
    files = inspect_folder(folder).files
    (tmp_path / "hashes.json").write_text("{not json")
    assert fingerprint(files, cache=HashCache(tmp_path / "hashes.json")) == fingerprint(files)
    (tmp_path / "hashes.json").write_text("[1]")
    assert fingerprint(files, cache=HashCache(tmp_path / "hashes.json")) == fingerprint(files)


def test_a_file_that_differs_from_the_manifest_is_named(folder):
    import hashlib

    facts = inspect_folder(folder)
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in facts.files.items()}
    (folder / "manifest.json").write_text(json.dumps({"files": hashes}))
    fingerprint(facts.files, manifest=manifest_of(folder))
    edit(folder / "vae" / "config.json", scaling_factor=1.5)
    with pytest.raises(ModelError, match=r"vae/config\.json is damaged") as caught:
        fingerprint(facts.files, manifest=manifest_of(folder))
    assert caught.value.key == "model_damaged"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_a_manifest_cannot_point_outside_its_folder(folder, name):
    (folder / "manifest.json").write_text(json.dumps({"files": {name: "0"}}))
    with pytest.raises(ModelError):
        manifest_of(folder)


def test_tensor_names_are_summed_up_by_layer():
    names = [f"layers.{i}.w{j}" for i in (3, 4) for j in range(15)] + ["x_pad_token"]
    assert summary(names) == "layers.3 (15), layers.4 (15), x_pad_token"
    assert summary([f"layers.{i}.w" for i in range(9)]).endswith("+6")
