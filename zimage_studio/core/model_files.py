"""What a model path or id is, before any weight is read: kind, geometry, size, defaults, hash. No torch here.

Nothing in this file opens a pickle, follows a URL, or imports code that lies beside a model. A path is believed
only after its content agrees with its name.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from zimage_studio.core.fingerprint import MANIFEST
from zimage_studio.core.weight_headers import (
    WEIGHT_STEMS,
    Shape,
    TensorInfo,
    component_header,
    kind_of_file,
    read_header,
    read_json,
    short,
    weight_files,
)
from zimage_studio.errors import InvalidInputError, ModelError
from zimage_studio.records.artifact import Kind
from zimage_studio.records.checks import real, whole
from zimage_studio.records.request import MAX_GUIDANCE, MAX_STEPS, GenerationRequest, ModelDefaults

Family = Literal["turbo", "base", "other"]


COMPONENTS = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
LENT = ("tokenizer", "text_encoder", "vae", "scheduler")
CLASSES: Mapping[str, frozenset[str]] = {
    "tokenizer": frozenset({"Qwen2Tokenizer", "Qwen2TokenizerFast"}),
    "text_encoder": frozenset({"Qwen3Model"}),
    "transformer": frozenset({"ZImageTransformer2DModel", "PrunedZImageTransformer2DModel"}),
    "vae": frozenset({"AutoencoderKL"}),
    "scheduler": frozenset({"FlowMatchEulerDiscreteScheduler"}),
}
LIBRARIES = frozenset({"diffusers", "transformers", "zimage_studio", "zimage_studio.core.pruned_transformer"})
CONFIG_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja"})
CODE_KEYS = ("auto_map", "custom_pipeline", "trust_remote_code")
DEFAULTS = "studio_defaults.json"
BASE_DEFAULTS = ModelDefaults(steps=28, guidance=4.0)
TURBO_SHIFT, BASE_SHIFT = 3.0, 6.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)

_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_FOREIGN_PREFIXES = ("text_encoders.", "vae.", "first_stage_model.", "cond_stage_model.")
_RENAMES = (
    (re.compile(r"^final_layer\."), "all_final_layer.2-1."),
    (re.compile(r"^x_embedder\."), "all_x_embedder.2-1."),
    (re.compile(r"\.attention\.out\."), ".attention.to_out.0."),
    (re.compile(r"\.attention\.k_norm\."), ".attention.norm_k."),
    (re.compile(r"\.attention\.q_norm\."), ".attention.norm_q."),
)
_FUSED = ".attention.qkv."


@dataclass(frozen=True, slots=True)
class ComponentSize:
    """Parameters and bytes of one component, from the headers."""

    parameters: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What must agree between a transformer and the parts around it.

    `caption_width` is the text encoder's hidden size, `channels` the VAE's latent channels, `head_dim` the sum of
    the rotary axes.
    """

    dim: int
    layers: int
    refiner_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    channels: int
    caption_width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that is known of a local model without reading a weight. `files` maps relative name to path."""

    kind: Kind
    root: Path
    files: Mapping[str, Path]
    components: Mapping[str, ComponentSize]
    geometry: Geometry
    family: Family = "other"
    defaults: ModelDefaults = field(default_factory=ModelDefaults)
    parent: str | None = None

    @property
    def parameters(self) -> int:
        """Parameters of all components."""
        return sum(size.parameters for size in self.components.values())

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return sum(size.bytes for size in self.components.values())


# --- what is it -----------------------------------------------------------------------------------------------------


def identify(source: str) -> Kind:
    """Say what `source` is. Reads at most a few bytes; a local path wins over a hub id of the same spelling.

    Raises ModelError for URLs, missing paths, pickles, and anything else.
    """
    path = _existing(source)
    if path is None:
        if is_hub_id(source):
            return "hub"
        raise ModelError("model_path_missing", value=source)
    if path.is_dir():
        _pipeline_index(path)
        return "folder"
    return kind_of_file(path)


def is_hub_id(source: str) -> bool:
    """Whether `source` is spelled as `organisation/name`, and as nothing that could be a path upwards or a URL."""
    return HUB_ID.fullmatch(source) is not None and ".." not in source and "--" not in source


def _existing(source: str) -> Path | None:
    if "://" in source or "\0" in source or not source.strip():
        return None
    try:
        path = Path(source).expanduser()
        return path if path.is_dir() or path.is_file() else None
    except (OSError, RuntimeError):  # name too long, no permission, or no home for "~someone"
        return None


# --- folders --------------------------------------------------------------------------------------------------------


def _pipeline_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError("model_no_index", value=folder.name)
    index = read_json(path)
    if index.get("_class_name") != "ZImagePipeline":
        raise ModelError("model_other_pipeline", value=folder.name, found=index.get("_class_name"))
    return index


def _check_classes(folder: Path, index: Mapping[str, Any]) -> None:
    """Every component is there, from a class we know, and no other component is asked for."""
    for name in COMPONENTS:
        entry = index.get(name)
        library, found = map(str, entry) if isinstance(entry, list) and len(entry) == 2 else ("", str(entry))
        if library not in LIBRARIES or found not in CLASSES[name]:
            raise ModelError("model_foreign_class", value=folder.name, component=name, found=found)
    for name, entry in index.items():
        if not name.startswith("_") and name not in COMPONENTS and isinstance(entry, list) and entry[:1] != [None]:
            raise ModelError("model_foreign_class", value=folder.name, component=name, found=entry[-1])


def config_files(folder: Path) -> Iterator[Path]:
    """The configuration files that decide what the model draws: model_index.json and those of the components."""
    yield folder / "model_index.json"
    for name in COMPONENTS:
        if not (folder / name).is_dir():
            raise ModelError("model_file_missing", value=folder.name, file=f"{name}/")
        yield from sorted(p for p in (folder / name).iterdir() if p.suffix in CONFIG_SUFFIXES and p.is_file())


def _refuse_remote_code(path: Path) -> None:
    data = read_json(path) if path.suffix == ".json" and not path.name.endswith(".index.json") else {}
    for key in CODE_KEYS:
        if data.get(key):
            raise ModelError("model_remote_code", value=path.parent.name, file=path.name, found=key)


def inspect_folder(folder: Path) -> Facts:
    """Check a diffusers folder and read its facts. Raises ModelError with what is wrong; reads no weights."""
    index = _pipeline_index(folder)
    _check_classes(folder, index)
    files: dict[str, Path] = {}
    for path in config_files(folder):
        if path.suffix == ".json" and path.name != "vocab.json":
            _refuse_remote_code(path)
        files[path.relative_to(folder).as_posix()] = path
    components: dict[str, ComponentSize] = {}
    for name, stem in WEIGHT_STEMS.items():
        components[name] = _size(component_header(folder, name))
        files |= {file.relative_to(folder).as_posix(): file for file in weight_files(folder / name, stem)}
    geometry = _folder_geometry(folder)
    family = _family(folder.name, _shift(folder))
    return Facts(
        kind="folder", root=folder, files=files, components=components, geometry=geometry, family=family,
        defaults=defaults_of(folder, family), parent=_parent(folder),
    )  # fmt: skip


def _size(tensors: Mapping[str, TensorInfo]) -> ComponentSize:
    return ComponentSize(sum(t.parameters for t in tensors.values()), sum(t.bytes for t in tensors.values()))


def _folder_geometry(folder: Path) -> Geometry:
    config = read_json(folder / "transformer" / "config.json")
    if (found := str(config.get("_class_name"))) not in CLASSES["transformer"]:
        raise ModelError("model_foreign_class", value=folder.name, component="transformer", found=found)
    try:
        heads = int(config.get("n_heads", 30))
        dim = int(config.get("dim", 3840))
        geometry = Geometry(
            dim=dim,
            layers=int(config.get("n_layers", 30)),
            refiner_layers=int(config.get("n_refiner_layers", 2)),
            heads=heads,
            kv_heads=int(config.get("n_kv_heads", 30)),
            head_dim=sum(config.get("axes_dims", (32, 48, 48))),
            channels=int(config.get("in_channels", 16)),
            caption_width=int(config.get("cap_feat_dim", 2560)),
        )
        hidden = int(read_json(folder / "text_encoder" / "config.json")["hidden_size"])
        channels = int(read_json(folder / "vae" / "config.json")["latent_channels"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError("model_header", value=f"{folder.name}/…/config.json") from error
    _same(folder.name, "caption_width", geometry.caption_width, hidden)
    _same(folder.name, "latent_channels", geometry.channels, channels)
    return geometry


def _same(name: str, what: str, transformer: int, parts: int, owner: str | None = None) -> None:
    if transformer != parts:
        raise ModelError(
            "model_geometry", value=name, what=what, found=transformer, parts=owner or name, expected=parts
        )


def _shift(folder: Path) -> float | None:
    shift = read_json(folder / "scheduler" / "scheduler_config.json").get("shift")
    return float(shift) if isinstance(shift, int | float) else None


def _parent(folder: Path) -> str | None:
    path = folder / MANIFEST
    parent = read_json(path).get("parent") if path.is_file() else None
    return parent if isinstance(parent, str) else None


# --- single files ---------------------------------------------------------------------------------------------------


def canonical(header: Mapping[str, TensorInfo]) -> dict[str, tuple[str, int | None]]:
    """Map the transformer's tensors of a single file to diffusers' names: `{theirs: (ours, third)}`.

    `third` is None, or for a fused q/k/v which third of the rows; such a tensor is named three times over, with a
    suffix ` 0`, ` 1`, ` 2` on the key. The names are ComfyUI's and the original repository's, with or without
    prefix; other components in the same file (text encoder, VAE) are left out, as is `norm_final`, which no
    version of the model uses (diffusers drops it too).
    """
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in header)), "")
    names: dict[str, tuple[str, int | None]] = {}
    for name in header:
        if not name.startswith(prefix) or name.startswith(_FOREIGN_PREFIXES) or name.endswith("norm_final.weight"):
            continue
        ours = name.removeprefix(prefix)
        for pattern, new in _RENAMES:
            ours = pattern.sub(new, ours)
        if _FUSED in ours:
            for third, part in enumerate(("to_q", "to_k", "to_v")):
                names[f"{name} {third}"] = (ours.replace(_FUSED, f".attention.{part}."), third)
        else:
            names[name] = (ours, None)
    return names


def canonical_shapes(header: Mapping[str, TensorInfo]) -> dict[str, Shape]:
    """Shapes under diffusers' names. A pad token stored as (D,) counts as (1, D): some GGUF files have it so."""
    shapes: dict[str, Shape] = {}
    for key, (ours, third) in canonical(header).items():
        shape = header[key if third is None else key[:-2]].shape
        if third is not None:
            shape = (shape[0] // 3, *shape[1:])
        shapes[ours] = (1, *shape) if ours.endswith("pad_token") and len(shape) == 1 else shape
    return shapes


def inspect_file(path: Path) -> Facts:
    """Facts of a transformer in one file. Raises ModelError when it is damaged or no Z-Image transformer."""
    kind = kind_of_file(path)
    header = read_header(path)
    shapes = canonical_shapes(header)
    keys = {key if third is None else key[:-2] for key, (_ours, third) in canonical(header).items()}
    family = _family(path.stem, None)
    return Facts(
        kind=kind, root=path, files={f"transformer{path.suffix}": path}, geometry=_file_geometry(path, shapes),
        components={"transformer": _size({key: header[key] for key in keys})}, family=family,
        defaults=defaults_of(None, family),
    )  # fmt: skip


def _file_geometry(path: Path, shapes: Mapping[str, Shape]) -> Geometry:
    try:
        dim, patch = shapes["all_x_embedder.2-1.weight"]
        head_dim = shapes["layers.0.attention.norm_q.weight"][0]
        return Geometry(
            dim=dim,
            layers=_count(shapes, "layers"),
            refiner_layers=_count(shapes, "noise_refiner"),
            heads=shapes["layers.0.attention.to_q.weight"][0] // head_dim,
            kv_heads=shapes["layers.0.attention.to_k.weight"][0] // head_dim,
            head_dim=head_dim,
            channels=patch // 4,
            caption_width=shapes["cap_embedder.1.weight"][1],
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError("model_no_transformer", value=short(path)) from error


def _count(shapes: Mapping[str, Shape], stack: str) -> int:
    """How many layers a stack has: one more than the highest number, so that a gap shows as missing tensors."""
    numbers = [int(name.split(".")[1]) for name in shapes if name.startswith(f"{stack}.")]
    return max(numbers, default=-1) + 1


def check_parts(file: Facts, parts: Facts) -> None:
    """Whether `parts` can lend text encoder, VAE, tokenizer and scheduler to `file`. Raises ModelError naming both."""
    name, owner = short(file.root), parts.root.name
    _same(name, "caption_width", file.geometry.caption_width, parts.geometry.caption_width, owner)
    _same(name, "latent_channels", file.geometry.channels, parts.geometry.channels, owner)
    _same(name, "head_width", file.geometry.head_dim, parts.geometry.head_dim, owner)


def parts_files(parts: Facts) -> dict[str, Path]:
    """The files that a folder lends."""
    return {name: path for name, path in parts.files.items() if name.split("/")[0] in LENT}


def inspect(source: str) -> Facts:
    """Facts of anything that lies on this machine. Raises ModelError; a hub id is none of these."""
    kind = identify(source)
    path = Path(source).expanduser()
    if kind == "hub":
        raise ModelError("model_path_missing", value=source)
    return inspect_folder(path) if kind == "folder" else inspect_file(path)


# --- defaults -------------------------------------------------------------------------------------------------------


def _family(name: str, shift: float | None) -> Family:
    if "turbo" in name.lower() or shift == TURBO_SHIFT:
        return "turbo"
    if shift == BASE_SHIFT or (shift is None and re.search(r"z[-_ ]?image", name.lower())):
        return "base"
    return "other"


def family_of_name(name: str) -> Family:
    """The family a hub id or file name tells."""
    return _family(name, None)


def defaults_of(folder: Path | None, family: Family) -> ModelDefaults:
    """What the model likes: `studio_defaults.json` in its folder, else its family's values.

    Raises ModelError when the file has a key we do not know or a value that no request may have.
    """
    usual = BASE_DEFAULTS if family == "base" else ModelDefaults()
    path = folder / DEFAULTS if folder else None
    if path is None or not path.is_file():
        return usual
    data = read_json(path)
    known = {"width", "height", "steps", "guidance", "sizes"}
    if unknown := data.keys() - known - {"max_sequence_length"}:
        raise ModelError("model_bad_defaults", value=short(path), field=min(unknown), found=data[min(unknown)])
    try:
        return _checked_defaults(replace(usual, **{key: value for key, value in data.items() if key in known}), data)
    except InvalidInputError as error:
        raise ModelError(
            "model_bad_defaults", value=short(path), field=error.field, found=data.get(error.field)
        ) from error
    except (TypeError, ValueError) as error:
        raise ModelError("model_bad_defaults", value=short(path), field="sizes", found=data.get("sizes")) from error


def _checked_defaults(given: ModelDefaults, data: Mapping[str, Any]) -> ModelDefaults:
    first = GenerationRequest(
        prompt="-", seed=0, width=given.width, height=given.height,
        steps=whole("steps", given.steps, 1, MAX_STEPS), guidance=real("guidance", given.guidance, 0.0, MAX_GUIDANCE),
    )  # fmt: skip
    size = (first.width, first.height)
    if data.get("sizes") == []:
        raise ValueError("no sizes")
    sizes = [replace(first, width=w, height=h) for w, h in data.get("sizes", [size])]
    return ModelDefaults(
        width=first.width, height=first.height, steps=first.steps, guidance=first.guidance,
        sizes=tuple((s.width, s.height) for s in sizes),
    )  # fmt: skip
