"""Carry a LoRA that was made for the parent over to the child, by what the plan keeps of each weight.

A LoRA's product B·A is added to a weight, so slicing B's rows and A's columns slices the product: what the child then
computes is what slicing the merged parent would give. Keys as peft and diffusers write them
(`transformer.layers.0.attention.to_q.lora_A.weight`), and ComfyUI's and kohya's (`diffusion_model.layers.0.attention.
qkv.lora_down.weight`, `lora_unet_layers_0_attention_out.lora_up.weight`).
"""

import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zimage_studio.core.pruning.mapping import Kept, TensorMap, tensor_maps
from zimage_studio.core.pruning.shape import tensor_shapes
from zimage_studio.core.weight_headers import Shape, read_safetensors_header, short
from zimage_studio.errors import ModelError, StorageError
from zimage_studio.records.plan import PrunePlan
from zimage_studio.records.progress import Progress, silent

PREFIXES = (
    "base_model.model.transformer.", "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.",
    "lora_unet_", "lora_transformer_", "",
)  # fmt: skip
OTHER_MODELS = ("text_encoder.", "text_encoders.", "lora_te_", "lora_te1_")
"""Keys for the text encoder, which no cut changes."""
DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight")
UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight")
WHOLE = (".diff",)
ROWS = (".diff_b", ".lora_B.bias", ".lora_B.default.bias")
FREE = (".alpha",)
TO_COMFY = (
    ("all_final_layer.2-1.", "final_layer."),
    ("all_x_embedder.2-1", "x_embedder"),
    (".attention.to_out.0", ".attention.out"),
)
PARTS = ("to_q", "to_k", "to_v")
ADAPTER_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True, slots=True)
class Carried:
    """What came over: tensors that were kept, and those that belonged to blocks that are gone."""

    path: Path
    kept: int
    dropped: int


@dataclass(frozen=True, slots=True)
class _Target:
    """A module as some program names it: its weight's shape in the parent and what stays; `to` is None when it goes."""

    parent: Shape
    to: str | None
    rows: Kept | None
    columns: Kept | None


def carry_over(lora_file: Path, plan: PrunePlan, out: Path, *, progress: Progress = silent) -> Carried:
    """Write the LoRA for the plan's child as the new file `out`; alpha and rank stay.

    Raises ModelError for a file that is no LoRA, one with keys that are not understood, one made for another shape, or
    one of which nothing would be left; StorageError when `out` is there already or cannot be written.
    """
    if out.exists():
        raise StorageError("cannot_write", folder=out.parent, why=os.strerror(errno.EEXIST))
    targets = _targets(plan)
    header = read_safetensors_header(lora_file)
    made: dict[str, Tensor] = {}
    try:
        with safe_open(lora_file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            for number, key in enumerate(header):
                progress(number, len(header), "note.carrying_lora")
                if (carried := _carried(key, opened.get_tensor(key), targets, lora_file)) is not None:
                    made[carried[0]] = carried[1]
    except SafetensorError as error:
        raise ModelError("lora_unreadable", value=short(lora_file), why=error) from error
    if not made:
        raise ModelError("lora_nothing_left", value=short(lora_file))
    _write(made, _carried_metadata(metadata, targets), out)
    progress(1, 1, "note.carrying_lora")
    return Carried(out, len(made), len(header) - len(made))


def _carried(key: str, tensor: Tensor, targets: Mapping[str, _Target], file: Path) -> tuple[str, Tensor] | None:
    """The tensor under its new key; None when its block is gone."""
    if key.startswith(OTHER_MODELS):
        return key, tensor
    suffix = next((s for s in (*DOWN, *UP, *WHOLE, *ROWS, *FREE) if key.endswith(s)), None)
    prefix, target = _found(key.removesuffix(suffix), targets) if suffix else ("", None)
    if suffix is None or target is None:
        raise ModelError("lora_unreadable", value=short(file), why=key)
    rows, columns = _axes(suffix)
    for axis, part in ((rows, 0), (columns, 1)):
        if axis is not None and (tensor.ndim <= axis or tensor.shape[axis] != target.parent[part]):
            raise ModelError(
                "lora_shape", value=short(file), tensor=key, found=tuple(tensor.shape), expected=target.parent[part]
            )
    if target.to is None:
        return None
    for axis, kept in ((rows, target.rows), (columns, target.columns)):
        if axis is not None and kept is not None:
            tensor = tensor.index_select(axis, torch.from_numpy(kept))
    return f"{prefix}{target.to}{suffix}", tensor.contiguous()


def _axes(suffix: str) -> tuple[int | None, int | None]:
    """Which axes of a tensor with this suffix are the weight's rows and columns."""
    if suffix in DOWN:
        return None, 1
    if suffix in UP or suffix in ROWS:
        return 0, None
    return (0, 1) if suffix in WHOLE else (None, None)


def _found(module: str, targets: Mapping[str, _Target]) -> tuple[str, _Target | None]:
    for prefix in PREFIXES:
        if module.startswith(prefix) and (target := targets.get(module.removeprefix(prefix))) is not None:
            return prefix, target
    return "", None


# --- names ----------------------------------------------------------------------------------------------------------


def _targets(plan: PrunePlan) -> dict[str, _Target]:
    """Every module with a weight matrix, under each name that a LoRA may call it."""
    maps = tensor_maps(plan)
    found: dict[str, _Target] = {}
    for name, shape in tensor_shapes(plan.before).items():
        if name.endswith(".weight") and len(shape) == 2:
            for called in _spellings():
                old = called(name.removesuffix(".weight"))
                found[old] = _target(shape, maps.get(name), called)
            if ".to_q." in name:
                for called in (_fused, _underscored(_fused)):
                    found[called(name.removesuffix(".weight"))] = _fused_target(shape, maps.get(name), called)
    return found


def _target(shape: Shape, where: TensorMap | None, called: Callable[[str], str]) -> _Target:
    if where is None:
        return _Target(shape, None, None, None)
    return _Target(shape, called(where.name.removesuffix(".weight")), where.kept[0], where.kept[1])


def _fused_target(shape: Shape, where: TensorMap | None, called: Callable[[str], str]) -> _Target:
    """q, k and v below each other; their heads are cut alike."""
    single = _target(shape, where, called)
    rows = single.rows
    if rows is not None:
        rows = np.concatenate([rows + part * shape[0] for part in range(len(PARTS))])
    return _Target((len(PARTS) * shape[0], shape[1]), single.to, rows, single.columns)


def _spellings() -> Iterator[Callable[[str], str]]:
    for called in (str, _comfy):
        yield called
        yield _underscored(called)


def _comfy(module: str) -> str:
    for ours, theirs in TO_COMFY:
        module = module.replace(ours, theirs)
    return module


def _fused(module: str) -> str:
    return _comfy(module).replace(".to_q", ".qkv")


def _underscored(called: Callable[[str], str]) -> Callable[[str], str]:
    return lambda module: called(module).replace(".", "_")


# --- metadata -------------------------------------------------------------------------------------------------------


def _carried_metadata(metadata: Mapping[str, str], targets: Mapping[str, _Target]) -> dict[str, str]:
    """The file's notes; diffusers' one on the adapter names modules, which are renumbered too."""
    made = {"format": "pt", **metadata}
    if ADAPTER_METADATA in made:
        try:
            made[ADAPTER_METADATA] = json.dumps(_renamed(json.loads(made[ADAPTER_METADATA]), targets), sort_keys=True)
        except ValueError:
            del made[ADAPTER_METADATA]  # diffusers guesses what it does not find here, and refuses what is no JSON
    return made


def _renamed(value: object, targets: Mapping[str, _Target]) -> object:
    """Names of modules in the keys of patterns and in lists, renumbered; those of blocks that are gone left out."""
    if isinstance(value, dict):
        pairs = ((_new_name(name, targets), _renamed(item, targets)) for name, item in value.items())
        return {name: item for name, item in pairs if name is not None}
    if isinstance(value, list):
        names = (_new_name(item, targets) if isinstance(item, str) else item for item in value)
        return [name for name in names if name is not None]
    return value


def _new_name(name: str, targets: Mapping[str, _Target]) -> str | None:
    prefix, target = _found(name, targets)
    if target is None:
        return name
    return None if target.to is None else f"{prefix}{target.to}"


def _write(tensors: dict[str, Tensor], metadata: dict[str, str], out: Path) -> None:
    """Beside, flushed, then renamed."""
    beside = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, beside, metadata=metadata)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.rename(out)
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise StorageError("cannot_write", folder=out.parent, why=why or error) from error
    finally:
        beside.unlink(missing_ok=True)
