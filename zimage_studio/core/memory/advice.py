"""The planner over a model that lies on disk: its true shapes from its own configs, and what is free on this device."""

from dataclasses import replace
from pathlib import Path

import torch

from zimage_studio.core import hub
from zimage_studio.core.loading import (
    BF16_CAPABILITY,
    choose_device,
    component_dtypes,
    derived_config,
    lender_of,
    transformer_class,
)
from zimage_studio.core.memory import host
from zimage_studio.core.memory.estimate import Estimator
from zimage_studio.core.memory.planner import Room, Scene, plan
from zimage_studio.core.memory.shapes import Shapes
from zimage_studio.core.model_files import inspect_file, inspect_folder
from zimage_studio.core.weight_headers import read_header, read_json
from zimage_studio.errors import ModelError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.memory import GIB, Estimate, MemoryProfile, Plan

PLENTY = 4
PLENTY_BYTES = 2 * GIB


def plainly_fits(stored_bytes: int | None, *, accelerated: bool) -> bool:
    """Whether so much is free that no estimate is needed: four times the weights on disk, and 2 GiB.

    Stored in 16 bits, they are at most twice as large when computed with in 32.
    """
    free = _room(choose_device("cuda" if accelerated else "cpu"), 0).free_bytes
    return stored_bytes is not None and PLENTY * stored_bytes + PLENTY_BYTES <= free


class Advisor:
    """Plans for one model on one device. No weight is read; traces are remembered.

    `device` is `auto`, `cpu` or `cuda`; another than this computer has may be asked about with `free_bytes` given.
    Not thread-safe.
    """

    def __init__(
        self, artifact: ModelArtifact, *, parts: Path | None, hub_cache: Path | None, device: str = "auto"
    ) -> None:
        self._device = choose_device(device)
        self._estimator = Estimator(read_shapes(artifact, self._device, parts, hub_cache), self._device)

    def plan(self, scene: Scene, *, free_bytes: int | None = None, held_bytes: int = 0) -> Plan:
        """The least lossy profile that fits into `free_bytes`, on None into what is free now.

        `held_bytes` of RAM are a model's that would make room.
        """
        room = _room(self._device, held_bytes)
        if free_bytes is not None:
            room = replace(room, free_bytes=free_bytes)
        return plan(self._estimator, scene, room, bf16=_computes_bfloat16(self._device))

    def estimate(self, profile: MemoryProfile, scene: Scene) -> Estimate:
        """What one picture would need under `profile`."""
        return self._estimator.estimate(
            profile, scene.width, scene.height, guidance=scene.guidance, tokens=scene.tokens
        )


def read_shapes(artifact: ModelArtifact, device: torch.device, parts: Path | None, hub_cache: Path | None) -> Shapes:
    """The three networks of a model on disk, as they would be loaded onto `device`.

    Raises ModelError when it is not here, or not a model that Studio loads.
    """
    path = Path(artifact.path).expanduser()
    if artifact.kind == "hub" and not path.is_dir():
        found = hub.cached(artifact.path, hub_cache)
        if found is None:
            raise ModelError("model_not_here", value=artifact.path, folder="models")
        path = found
    facts = inspect_file(path) if artifact.kind in ("single_file", "gguf") else inspect_folder(path)
    folder = lender_of(artifact, facts, parts).root
    config = read_json(folder / "transformer" / "config.json")
    if facts.kind != "folder":
        config |= derived_config(facts)
    shapes = Shapes.of_configs(
        config,
        read_json(folder / "text_encoder" / "config.json"),
        read_json(folder / "vae" / "config.json"),
        component_dtypes(device),
        transformer_class(config, folder),
    )
    if facts.kind != "gguf":
        return shapes
    return replace(shapes, stored_bytes=sum(tensor.bytes for tensor in read_header(path).values()))


def _room(device: torch.device, held_bytes: int) -> Room:
    """What a model could take: what is free, and what the one in memory would give back."""
    available = host.ram()[1] or 0
    if device.type != "cuda" or not torch.cuda.is_available():
        return Room(available + held_bytes)
    free, _ = torch.cuda.mem_get_info(device)
    return Room(int(free) + torch.cuda.memory_reserved(device), available)


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda" or not torch.cuda.is_available():
        return True
    return bool(torch.cuda.get_device_capability(device) >= BF16_CAPABILITY)
