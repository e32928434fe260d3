"""Build a ZImagePipeline from a local folder, a hub snapshot, a single file or a GGUF: strictly, and in bytes.

diffusers loads a checkpoint of four layers into a config of three without a word, and leaves what is missing
uninitialised. Here every tensor's name and shape is compared, from the headers, with the model built on the meta
device, before the first weight is read.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    GGUFQuantizationConfig,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
from transformers.utils import logging as transformers_logging

from zimage_studio.core import hub
from zimage_studio.core.model_files import Facts, canonical, canonical_shapes, check_parts, inspect_file, inspect_folder
from zimage_studio.core.pruned_transformer import PrunedZImageTransformer2DModel
from zimage_studio.core.weight_headers import (
    WEIGHT_STEMS,
    Shape,
    TensorInfo,
    component_header,
    read_header,
    read_json,
    read_safetensors_header,
    short,
    summary,
    weight_files,
)
from zimage_studio.errors import ModelError, OutOfMemoryError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import Progress

PAD_TOKENS = ("x_pad_token", "cap_pad_token")
BF16_CAPABILITY = (8, 0)
REPORTS = 200
TRANSFORMERS: Mapping[str, type[ZImageTransformer2DModel]] = {
    "ZImageTransformer2DModel": ZImageTransformer2DModel,
    "PrunedZImageTransformer2DModel": PrunedZImageTransformer2DModel,
}


def load_pipeline(
    artifact: ModelArtifact,
    *,
    device: str = "auto",
    homes: Mapping[str, torch.device] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    parts: Path | None = None,
    hub_cache: Path | None = None,
    compact: Path | None = None,
    progress: Progress,
) -> ZImagePipeline:
    """Read `artifact` from disk onto `device` ("auto", "cpu", "cuda", "cuda:1").

    `homes` puts single components elsewhere (see core.memory.apply.homes). `dtypes` overrides the dtype of single
    components (see `component_dtypes`). `parts` is the complete folder that
    lends tokenizer, text encoder, VAE and scheduler to a single file. `compact` is the bfloat16 copy of the model's own
    folder (core.compact), read in its place for the components that it has and that are wanted in bfloat16.
    `progress` is called in bytes. Raises ModelError with what is wrong, OutOfMemoryError, or Cancelled from `progress`.
    """
    place = choose_device(device)
    types = component_dtypes(place, dtypes)
    places = dict.fromkeys(types, place) | dict(homes or {})
    facts = _facts(artifact, hub_cache, progress)
    lender = lender_of(artifact, facts, parts)
    stores = _stores(facts, lender, compact, types)
    meter = _Meter(progress, _bytes_to_read(facts, lender, stores))
    try:
        return _assemble(facts, lender.root, stores, places, types, meter)
    except (torch.OutOfMemoryError, MemoryError):
        pass  # its traceback pins what was loaded so far: leave the block, then raise
    raise OutOfMemoryError("model_too_large", value=artifact.name)


def _assemble(
    facts: Facts,
    folder: Path,
    stores: Mapping[str, Path],
    places: Mapping[str, torch.device],
    types: Mapping[str, torch.dtype],
    meter: "_Meter",
) -> ZImagePipeline:
    """All components, one after the other; `folder` holds all but (for a single file) the transformer.

    `stores` are the folders that the weights are read from.
    """
    tokenizer = _tokenizer(folder, meter)
    text_encoder = _text_encoder(stores["text_encoder"], types["text_encoder"], meter).to(places["text_encoder"])
    transformer = _transformer(facts, stores["transformer"], places["transformer"], types["transformer"], meter)
    vae = _vae(stores["vae"], places["vae"], types["vae"], meter)
    with _naming(folder / "scheduler"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    return ZImagePipeline(
        scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
    )


def load_component(
    folder: Path, component: str, *, device: torch.device, dtype: torch.dtype, progress: Progress
) -> Any:
    """Tokenizer, text encoder, transformer or VAE of a diffusers folder alone, as strictly as `load_pipeline`."""
    facts = inspect_folder(folder)
    meter = _Meter(progress, facts.components[component].bytes if component in facts.components else 0)
    if component == "tokenizer":
        return _tokenizer(folder, meter)
    if component == "text_encoder":
        return _text_encoder(folder, dtype, meter).to(device)
    if component == "vae":
        return _vae(folder, device, dtype, meter)
    return _transformer(facts, folder, device, dtype, meter)


def choose_device(device: str) -> torch.device:
    """The device for a wish: "auto" takes CUDA where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def component_dtypes(device: torch.device, wishes: Mapping[str, torch.dtype] | None = None) -> dict[str, torch.dtype]:
    """dtype per component: float32 on a CPU and on CUDA without bfloat16 units, else bfloat16.

    float16 is never chosen: the feed-forward products of this transformer pass 65504, and the VAE turns white.
    """
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    usual = torch.bfloat16 if capable else torch.float32
    return {name: usual for name in WEIGHT_STEMS} | dict(wishes or {})


def _facts(artifact: ModelArtifact, hub_cache: Path | None, progress: Progress) -> Facts:
    path = Path(artifact.path).expanduser()
    if artifact.kind in ("single_file", "gguf"):
        return inspect_file(path)
    if artifact.kind == "hub" and not path.is_dir():
        if hub_cache is None:
            raise ModelError("model_not_here", value=artifact.path, folder="models")
        path = hub.find_or_download(artifact.path, cache=hub_cache, progress=progress)
    return inspect_folder(path)


def lender_of(artifact: ModelArtifact, facts: Facts, parts: Path | None) -> Facts:
    """The folder that the parts come from: the model's own, or `parts` when they fit."""
    if facts.kind == "folder":
        return facts
    if parts is None:
        raise ModelError("model_needs_parts", value=artifact.name)
    lender = inspect_folder(parts)
    check_parts(facts, lender)
    return lender


def _stores(facts: Facts, lender: Facts, compact: Path | None, types: Mapping[str, torch.dtype]) -> Mapping[str, Path]:
    """The folder that each component's weights are read from."""
    own = {name: lender.root for name in WEIGHT_STEMS}
    if compact is None or facts.kind != "folder":
        return own
    copied = [name for name in own if types[name] == torch.bfloat16 and (compact / name).is_dir()]
    return own | dict.fromkeys(copied, compact)


def _bytes_to_read(facts: Facts, lender: Facts, stores: Mapping[str, Path]) -> int:
    sizes = {**lender.components, "transformer": facts.components["transformer"]}
    copied = {name: store for name, store in stores.items() if store != lender.root}
    in_copies = sum(t.bytes for name, store in copied.items() for t in component_header(store, name).values())
    return in_copies + sum(size.bytes for name, size in sizes.items() if name not in copied)


class _Meter:
    """Bytes read so far, out of all that will be read."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = float(total)
        self._done = 0.0
        self._told = -1.0
        self._component = ""

    def add(self, count: float, component: str) -> None:
        """`count` more bytes of `component`; told when a component begins and every half percent. Raises Cancelled."""
        self._done += count
        new = component != self._component
        if new or self._done >= self._total or self._done - self._told >= self._total / REPORTS:
            self._told, self._component = self._done, component
            self._progress(self._done, self._total, f"note.loading_{component}")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what the libraries raise for a bad file into a sentence that names it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        ArithmeticError,
        AssertionError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ModelError("model_damaged", value=short(path), why=error) from error


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' own progress bar off the terminal; ours tells more."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


# --- components -----------------------------------------------------------------------------------------------------


def _tokenizer(folder: Path, meter: _Meter) -> Qwen2Tokenizer:
    meter.add(0, "tokenizer")
    with _naming(folder / "tokenizer"):
        return Qwen2Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def _text_encoder(folder: Path, dtype: torch.dtype, meter: _Meter) -> Qwen3Model:
    path = folder / "text_encoder"
    meter.add(0, "text_encoder")
    header = component_header(folder, "text_encoder")
    with _naming(path), init_empty_weights():
        model = Qwen3Model(Qwen3Config.from_pretrained(path, local_files_only=True))
    found = {name.removeprefix("model."): tensor.shape for name, tensor in header.items() if name != "lm_head.weight"}
    require_same(found, _shapes(model), path)
    with _naming(path), _no_bars():
        model = Qwen3Model.from_pretrained(path, dtype=dtype, local_files_only=True, use_safetensors=True)
    meter.add(sum(tensor.bytes for tensor in header.values()), "text_encoder")
    return model.eval()


def _vae(folder: Path, device: torch.device, dtype: torch.dtype, meter: _Meter) -> AutoencoderKL:
    config = read_json(folder / "vae" / "config.json")
    model = _empty(AutoencoderKL, config, folder / "vae")
    require_same(_header_shapes(component_header(folder, "vae")), _shapes(model), folder / "vae")
    _fill_from_folder(model, folder, "vae", device, dtype, meter)
    return model.eval()


def _transformer(
    facts: Facts, folder: Path, device: torch.device, dtype: torch.dtype, meter: _Meter
) -> ZImageTransformer2DModel:
    config = read_json(folder / "transformer" / "config.json")
    if facts.kind != "folder":
        config |= derived_config(facts)
    model = _empty(transformer_class(config, folder), config, folder / "transformer")
    if facts.kind == "folder":
        require_same(_header_shapes(component_header(folder, "transformer")), _shapes(model), folder / "transformer")
        _fill_from_folder(model, folder, "transformer", device, dtype, meter)
    else:
        require_same(canonical_shapes(read_header(facts.root)), _shapes(model), facts.root)
        if facts.kind == "gguf":
            model = _from_gguf(type(model), facts.root, dict(model.config), dtype, meter).to(device)
        else:
            _fill(model, _single_file_tensors(facts.root, device, dtype), device, dtype, meter, "transformer")
    _refuse_nan(model, facts.root)
    return model.eval()


def transformer_class(config: Mapping[str, Any], folder: Path) -> type[ZImageTransformer2DModel]:
    """The class that `config` names. Raises ModelError for one that Studio does not load."""
    name = str(config.get("_class_name"))
    if name not in TRANSFORMERS:
        raise ModelError("model_foreign_class", value=folder.name, component="transformer", found=name)
    return TRANSFORMERS[name]


def derived_config(facts: Facts) -> dict[str, int]:
    """What a single file's own tensors say about its config; the rest is taken from the parts'."""
    shape = facts.geometry
    return {
        "dim": shape.dim,
        "n_layers": shape.layers,
        "n_refiner_layers": shape.refiner_layers,
        "n_heads": shape.heads,
        "n_kv_heads": shape.kv_heads,
    }


def _empty(kind: type[Any], config: Mapping[str, Any], path: Path) -> Any:
    """A model without memory behind its weights. Buffers that are computed, not stored, are real."""
    with _naming(path), init_empty_weights():
        return kind.from_config(dict(config))


# --- names and shapes -----------------------------------------------------------------------------------------------


def _shapes(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _header_shapes(header: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in header.items()}


def require_same(found: Mapping[str, Shape], expected: Mapping[str, Shape], path: Path) -> None:
    """Refuse a file whose tensors are not exactly the model's. Raises ModelError naming layers or the tensor."""
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or extra:
        raise ModelError("model_layers", value=short(path), missing=summary(missing), extra=summary(extra))
    for name, shape in sorted(found.items()):
        if shape != expected[name]:
            raise ModelError(
                "model_shape", value=short(path), tensor=name, found=_spelled(shape), expected=_spelled(expected[name])
            )


def _spelled(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "1"


def _refuse_nan(model: ZImageTransformer2DModel, path: Path) -> None:
    """The pad tokens are drawn on at every position that is padded: one NaN there blackens every image."""
    for name in PAD_TOKENS:
        if not torch.isfinite(model.get_parameter(name)).all():
            raise ModelError("model_damaged", value=short(path), why=f"{name} = NaN")


# --- weights --------------------------------------------------------------------------------------------------------


def _fill_from_folder(
    model: nn.Module, folder: Path, component: str, device: torch.device, dtype: torch.dtype, meter: _Meter
) -> None:
    for file in weight_files(folder / component, WEIGHT_STEMS[component]):
        _fill(model, _tensors(file, device, dtype), device, dtype, meter, component)


STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def _way_to_read(header: Mapping[str, TensorInfo], device: torch.device, dtype: torch.dtype) -> str:
    """`mmap` for what stays in RAM as it is stored: nothing is copied. Else `pread`, tensor by tensor.

    What is converted or moved is read once from end to end; through a mapping, page by page, that took two to three
    times as long from a cold disk (docs/loading.md).
    """
    as_stored = all(info.dtype == STORED_AS.get(dtype) for info in header.values())
    return "mmap" if device.type == "cpu" and as_stored else "pread"


def _tensors(file: Path, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, int]]:
    """Name, tensor and bytes, for weights that will lie on `device` in `dtype`."""
    header = read_safetensors_header(file)
    way = _way_to_read(header, device, dtype)
    with _naming(file), safe_open(file, framework="pt", backend=way) as opened:
        for name, info in header.items():
            yield name, opened.get_tensor(name), info.bytes


def _single_file_tensors(file: Path, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, int]]:
    """The transformer's tensors of a single file under diffusers' names. What is fused is read once for all three."""
    header = read_safetensors_header(file)
    way = _way_to_read(header, device, dtype)
    with _naming(file), safe_open(file, framework="pt", backend=way) as opened:
        read, whole = "", torch.empty(0)
        for key, (ours, third) in canonical(header).items():
            name = key if third is None else key[:-2]
            if name != read:
                read, whole = name, opened.get_tensor(name)
            tensor = whole
            share = header[name].bytes
            if third is not None:
                tensor, share = tensor.chunk(3)[third], share // 3
            yield ours, _as_row(ours, tensor), share


def _as_row(name: str, tensor: Tensor) -> Tensor:
    """A pad token as (1, D); some exporters write (D,)."""
    return tensor[None] if name.endswith("pad_token") and tensor.ndim == 1 else tensor


def _fill(
    model: nn.Module,
    tensors: Iterator[tuple[str, Tensor, int]],
    device: torch.device,
    dtype: torch.dtype,
    meter: _Meter,
    component: str,
) -> None:
    """Give each weight its place on `device`, one after the other: no second copy of the model is ever held."""
    with contextlib.closing(tensors):  # type: ignore[type-var]
        for name, tensor, size in tensors:
            set_module_tensor_to_device(model, name, device, value=tensor.to(device=device, dtype=dtype), dtype=dtype)
            meter.add(size, component)


def _from_gguf(
    kind: type[ZImageTransformer2DModel], file: Path, config: dict[str, Any], dtype: torch.dtype, meter: _Meter
) -> ZImageTransformer2DModel:
    """Through diffusers, which keeps the weights quantised and expands them in each forward."""
    meter.add(0, "transformer")
    with _naming(file):
        tensors = {
            name.removeprefix("model.diffusion_model."): t for name, t in load_gguf_checkpoint(str(file)).items()
        }
        checkpoint = {name: _as_row(name, tensor) for name, tensor in tensors.items()}
        with tempfile.TemporaryDirectory() as folder:  # diffusers takes a config only from a folder
            _write_config(kind, config, Path(folder))
            model = kind.from_single_file(
                checkpoint,
                config=folder,
                local_files_only=True,
                torch_dtype=dtype,
                quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            )
    meter.add(sum(info.bytes for info in read_header(file).values()), "transformer")
    return model


def _write_config(kind: type[ZImageTransformer2DModel], config: dict[str, Any], folder: Path) -> None:
    with init_empty_weights():
        kind.from_config(config).save_config(folder)
