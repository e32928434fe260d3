"""The recovered model as a folder of its own beside the student: it appears whole or not at all."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from huggingface_hub import split_torch_state_dict_into_shards

from zimage_studio.core.fingerprint import MANIFEST
from zimage_studio.core.model_files import Facts, inspect_folder
from zimage_studio.core.recovery import lora
from zimage_studio.core.recovery.store import write_tensors, write_text
from zimage_studio.core.weight_headers import component_header, read_json
from zimage_studio.core.whole_folder import beside, flush

SCHEMA = 1
RECOVERY = "recovery.json"
LORA_FOLDER = "lora"
WEIGHTS = "diffusion_pytorch_model{suffix}.safetensors"
SHARD_SIZE = "5GB"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def write_folder(
    student: Path,
    out: Path,
    transformer: ZImageTransformer2DModel,
    *,
    parent: str,
    parent_name: str,
    facts_of_run: Mapping[str, Any],
) -> None:
    """The student's folder with the trained transformer, in the dtype the student is stored in.

    `parent` is the hash of the model that training began with, `parent_name` what it is called. The transformer is
    used up: an adapter is merged. Raises StorageError.
    """
    facts = inspect_folder(student)
    with beside(out, sum(size.bytes for size in facts.components.values())) as folder:
        _copy_rest(student, facts, folder)
        if getattr(transformer, "_hf_peft_config_loaded", False):
            lora.save(transformer, folder / LORA_FOLDER)
            lora.merge(transformer)
        _write_transformer(transformer, student, folder / "transformer")
        run = {"schema": SCHEMA, "parent": parent, **facts_of_run, "before": _before(student)}
        write_text(folder / RECOVERY, json.dumps(run, ensure_ascii=False, indent=1) + "\n")
        _write_manifest(folder, parent, parent_name)
        for path in folder.rglob("*"):
            flush(path)


def _copy_rest(student: Path, facts: Facts, folder: Path) -> None:
    """All but the transformer; of the files that lie loose: plan, defaults and the like."""
    files = {name: path for name, path in facts.files.items() if not name.startswith("transformer/")}
    files |= {path.name: path for path in student.glob("*.json") if path.name not in (MANIFEST, RECOVERY)}
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def _write_transformer(transformer: ZImageTransformer2DModel, student: Path, folder: Path) -> None:
    """Config and weights, each rounded as the student's; one file's worth of rounded weights at a time."""
    header = component_header(student, "transformer")
    transformer.save_config(folder)
    tensors = transformer.state_dict()
    split = split_torch_state_dict_into_shards(tensors, filename_pattern=WEIGHTS, max_shard_size=SHARD_SIZE)
    for file, names in split.filename_to_tensors.items():
        rounded = {name: tensors[name].to("cpu", DTYPES[header[name].dtype]) for name in names}
        write_tensors(folder / file, rounded, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_text(folder / f"{WEIGHTS.format(suffix='')}.index.json", json.dumps(index, indent=2) + "\n")


def _before(student: Path) -> list[Any]:
    """The recoveries that the student went through itself, oldest first."""
    path = student / RECOVERY
    if not path.is_file():
        return []
    run = read_json(path)
    return [*run.pop("before", []), run]


def _write_manifest(folder: Path, parent: str, name: str) -> None:
    hashes = {file: file_sha256(path) for file, path in sorted(inspect_folder(folder).files.items())}
    made = {"schema": SCHEMA, "made_by": "recover", "parent": parent, "parent_name": name, "files": hashes}
    write_text(folder / MANIFEST, json.dumps(made, ensure_ascii=False, indent=2) + "\n")


def file_sha256(path: Path) -> str:
    """The hash of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
