"""Loading: the same pipeline from a folder, a single file and a GGUF; strict about names; progress and stop."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import load_file, save_file

from tests import tiny_random
from zimage_studio.core.loading import _way_to_read, choose_device, component_dtypes, load_pipeline
from zimage_studio.core.model_files import inspect
from zimage_studio.core.weight_headers import TensorInfo
from zimage_studio.errors import Cancelled, ModelError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import silent


def artifact(path: Path) -> ModelArtifact:
    return ModelArtifact(key="k", kind=inspect(str(path)).kind, path=str(path), name=path.name)


def load(path: Path, parts: Path | None = None, **options: object) -> ZImagePipeline:
    return load_pipeline(artifact(path), device="cpu", parts=parts, **{"progress": silent, **options})


@pytest.fixture(scope="module")
def expected(random_pipeline) -> torch.Tensor:
    return tiny_random.draw(random_pipeline)


@pytest.fixture
def folder(random_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_folder, tmp_path / "copy"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# --- the same pipeline


def test_a_folder_draws_what_the_saved_pipeline_draws_and_what_diffusers_loads(random_folder, expected):
    ours = load(random_folder)
    theirs = ZImagePipeline.from_pretrained(random_folder, local_files_only=True)
    assert torch.equal(tiny_random.draw(ours), expected)
    assert torch.equal(tiny_random.draw(theirs), expected)
    assert {name: type(part) for name, part in ours.components.items()} == {
        name: type(part) for name, part in theirs.components.items()
    }
    assert not any(part.training for part in (ours.transformer, ours.text_encoder, ours.vae))


def test_a_sharded_transformer_is_put_together(random_pipeline, folder, expected):
    shutil.rmtree(folder / "transformer")
    random_pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="1MB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    assert torch.equal(tiny_random.draw(load(folder)), expected)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_comfyui_file_draws_the_same(random_pipeline, random_folder, tmp_path, expected, prefix):
    path = tiny_random.write_comfy(random_pipeline.transformer, tmp_path / "z.safetensors", prefix)
    assert torch.equal(tiny_random.draw(load(path, random_folder)), expected)


def test_our_reading_of_a_comfyui_file_is_that_of_diffusers(random_pipeline, random_folder, tmp_path):
    path = tiny_random.write_comfy(random_pipeline.transformer, tmp_path / "z.safetensors", "model.diffusion_model.")
    ours = load(path, random_folder).transformer.state_dict()
    theirs = ZImageTransformer2DModel.from_single_file(
        str(path), config=str(random_folder / "transformer")
    ).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_single_file_in_diffusers_own_names_draws_the_same(random_folder, tmp_path, expected):
    path = tmp_path / "z.safetensors"
    shutil.copy(random_folder / "transformer" / "diffusion_pytorch_model.safetensors", path)
    assert torch.equal(tiny_random.draw(load(path, random_folder)), expected)


def test_a_checkpoint_with_other_components_inside_is_read_for_its_transformer(
    random_pipeline, random_folder, tmp_path, expected
):
    tensors = tiny_random.comfy_tensors(random_pipeline.transformer, "model.diffusion_model.")
    tensors |= {"vae.decoder.conv_in.weight": torch.zeros(3), "text_encoders.qwen3_4b.transformer.w": torch.zeros(3)}
    save_file(tensors, tmp_path / "all.safetensors")
    assert torch.equal(tiny_random.draw(load(tmp_path / "all.safetensors", random_folder)), expected)


@pytest.mark.parametrize(
    ("kind", "bound"), [("F32", 1e-6), ("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_0", 0.2)]
)
def test_a_gguf_draws_nearly_the_same(random_pipeline, random_folder, tmp_path, expected, kind, bound):
    path = tiny_random.write_gguf(random_pipeline.transformer, tmp_path / "z.gguf", kind)
    assert distance(tiny_random.draw(load(path, random_folder)), expected) < bound


def test_pad_tokens_without_their_first_axis_are_understood(random_pipeline, random_folder, tmp_path, expected):
    path = tiny_random.write_gguf(random_pipeline.transformer, tmp_path / "z.gguf", flat_pads=True)
    assert torch.equal(tiny_random.draw(load(path, random_folder)), expected)


def test_a_file_with_fewer_layers_than_the_lender_keeps_its_own_depth(random_folder, tmp_path):
    shallow = tiny_random.pipeline(n_layers=2)
    path = tiny_random.write_comfy(shallow.transformer, tmp_path / "z.safetensors")
    loaded = load(path, random_folder)
    assert len(loaded.transformer.layers) == 2
    assert torch.equal(tiny_random.draw(loaded), tiny_random.draw(shallow))


def test_a_dtype_may_be_wished_for_per_component(random_folder):
    loaded = load(random_folder, dtypes={"transformer": torch.bfloat16})
    assert (loaded.transformer.dtype, loaded.vae.dtype) == (torch.bfloat16, torch.float32)


# --- refusals


@pytest.mark.parametrize(("layers", "side"), [(2, "left over layers.2"), (4, "missing layers.3")])
def test_a_config_of_another_depth_is_refused_naming_the_layers(folder, layers, side):
    edit_config(folder, n_layers=layers)
    with pytest.raises(ModelError, match=side) as caught:
        load(folder)
    assert caught.value.key == "model_layers"


def test_four_layers_are_not_loaded_as_three(tmp_path):
    folder = tmp_path / "four"
    tiny_random.pipeline(n_layers=4).save_pretrained(folder)
    edit_config(folder, n_layers=3)
    with pytest.raises(ModelError, match=r"left over layers\.3 \(15\)"):
        load(folder)
    edit_config(folder, n_layers=5)
    with pytest.raises(ModelError, match=r"missing layers\.4 \(15\)"):
        load(folder)


def test_a_config_of_another_width_is_refused_naming_a_tensor(folder):
    edit_config(folder, in_channels=8)
    vae = folder / "vae" / "config.json"
    vae.write_text(json.dumps(json.loads(vae.read_text()) | {"latent_channels": 8}))
    with pytest.raises(ModelError, match="the config says"):
        load(folder)


@pytest.mark.parametrize(
    "changes", [{"dim": 65}, {"axes_dims": [8, 4]}, {"n_heads": 0}, {"n_layers": "three"}, {"dim": None}]
)
def test_a_config_that_makes_no_model_is_refused_with_a_sentence(folder, changes):
    edit_config(folder, **changes)
    with pytest.raises(ModelError):
        load(folder)


@pytest.mark.parametrize("component", ["vae", "text_encoder"])
def test_a_missing_tensor_is_noticed_in_every_component(folder, component):
    path = next((folder / component).glob("*.safetensors"))
    tensors = load_file(path)
    gone = sorted(tensors)[3]
    del tensors[gone]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert caught.value.key == "model_layers"


@pytest.mark.parametrize("name", ["x_pad_token", "cap_pad_token"])
def test_pad_tokens_must_come_from_the_file_and_be_numbers(folder, name):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, path)
    with pytest.raises(ModelError, match=name):
        load(folder)
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=f"missing {name}"):
        load(folder)


def test_a_single_file_without_parts_says_what_to_do(random_pipeline, tmp_path):
    path = tiny_random.write_comfy(random_pipeline.transformer, tmp_path / "z.safetensors")
    with pytest.raises(ModelError) as caught:
        load(path)
    assert caught.value.key == "model_needs_parts"


def test_a_class_of_the_future_is_refused_by_name(folder):
    edit_config(folder, _class_name="ZImageTransformer3DModel")
    with pytest.raises(ModelError, match="ZImageTransformer3DModel"):
        load(folder)


# --- progress and policy


def test_progress_counts_the_bytes_of_the_weights_component_by_component(random_folder):
    seen: list[tuple[float, float, str]] = []
    load(random_folder, progress=lambda *call: seen.append(call))
    total = inspect(str(random_folder)).bytes
    assert seen[-1][:2] == (total, total)
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    notes = list(dict.fromkeys(note for *_, note in seen))
    assert notes == [f"note.loading_{name}" for name in ("tokenizer", "text_encoder", "transformer", "vae")]
    assert len(seen) < 500


@pytest.mark.parametrize("at", ["tokenizer", "text_encoder", "transformer", "vae"])
def test_loading_can_be_stopped_anywhere(random_folder, at):
    def stop(_done: float, _total: float, note: str, /, preview: object = None) -> None:
        if note.endswith(at):
            raise Cancelled

    with pytest.raises(Cancelled):
        load(random_folder, progress=stop)


def test_a_cpu_gets_float32_and_never_float16(monkeypatch):
    assert set(component_dtypes(torch.device("cpu")).values()) == {torch.float32}
    for capability, dtype in (((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16), ((7, 5), torch.float32)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, c=capability: c)
        assert set(component_dtypes(torch.device("cuda")).values()) == {dtype}


def test_auto_takes_cuda_where_there_is_one(monkeypatch):
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto").type == name


@pytest.mark.parametrize(
    ("stored", "device", "wanted", "way"),
    [
        ("F32", "cpu", torch.float32, "mmap"),
        ("BF16", "cpu", torch.bfloat16, "mmap"),
        ("F32", "cpu", torch.bfloat16, "pread"),
        ("BF16", "cuda", torch.bfloat16, "pread"),
        ("F64", "cpu", torch.float32, "pread"),
    ],
)
def test_only_what_stays_as_it_is_stored_is_mapped(stored, device, wanted, way):
    header = {"w": TensorInfo(stored, (2, 2), 16), "b": TensorInfo(stored, (2,), 8)}
    assert _way_to_read(header, torch.device(device), wanted) == way


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mapped_or_read_the_weights_are_those_of_diffusers(random_pipeline, random_folder, tmp_path, dtype):
    path = tiny_random.write_comfy(random_pipeline.transformer, tmp_path / "z.safetensors")
    theirs = ZImageTransformer2DModel.from_pretrained(random_folder / "transformer", torch_dtype=dtype).state_dict()
    for ours in (
        load(random_folder, dtypes={"transformer": dtype}),
        load(path, random_folder, dtypes={"transformer": dtype}),
    ):
        tensors = ours.transformer.state_dict()
        assert all(torch.equal(tensors[name], theirs[name]) for name in theirs)
