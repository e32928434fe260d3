"""Checkpoints without pickle: every tensor in one safetensors file, the rest in its JSON header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer


def save(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimisers: Mapping[str, Optimizer],
    generator: torch.Generator,
    step: int,
    log: list[dict[str, Any]],
) -> None:
    """Write everything that `resume` needs, whole or not at all."""
    tensors: dict[str, Tensor] = {"generator": generator.get_state()}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimiser in optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimiser/{name}/{index}/{key}"] = torch.as_tensor(value)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "log": json.dumps(log)})
    temporary.replace(path)


def resume(
    path: Path, modules: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer], generator: torch.Generator
) -> tuple[int, list[dict[str, Any]]]:
    """Load what `save` wrote into the given objects; (0, []) when there is no checkpoint yet."""
    if not path.exists():
        return 0, []
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        metadata = file.metadata()
    generator.set_state(tensors.pop("generator"))
    for name, module in modules.items():
        prefix = f"module/{name}/"
        module.load_state_dict({key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)})
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimiser/{name}/"
        for key in [key for key in tensors if key.startswith(prefix)]:
            index, _, field = key.removeprefix(prefix).partition("/")
            state.setdefault(int(index), {})[field] = tensors[key]
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(metadata["step"]), json.loads(metadata["log"])


def save_modules(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Only the weights, in the same format."""
    tensors = {
        f"module/{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
    }
    temporary = path.with_suffix(".tmp")
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, temporary)
    temporary.replace(path)


def load_modules(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Read weights that `save` or `save_modules` wrote; every key of each module must be there."""
    with safe_open(path, framework="pt") as file:
        for name, module in modules.items():
            module.load_state_dict({key: file.get_tensor(f"module/{name}/{key}") for key in module.state_dict()})
