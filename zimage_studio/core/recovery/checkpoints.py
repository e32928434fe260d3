"""Checkpoints without pickle: every tensor in one safetensors file, the rest as JSON in its header.

What is drawn by chance is drawn from the seed and the number of the step (see `preparation.number_from`), so a
checkpoint holds no state of generators and no order of the data: the step says both.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from zimage_studio.core.recovery.store import write_tensors
from zimage_studio.errors import InvalidInputError

STATE = "state"


@dataclass(frozen=True, slots=True)
class State:
    """Where training is. `settings` is the hash of all that must not change between two starts."""

    settings: str
    step: int
    seconds: float
    loss_first: float | None
    loss_last: float | None
    finished: bool


def save(path: Path, state: State, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write beside and rename: there is always one whole checkpoint."""
    tensors = {f"{group}:{name}": tensor for group, found in groups.items() for name, tensor in found.items()}
    write_tensors(path, tensors, {STATE: json.dumps(asdict(state))})


def load(path: Path, settings: str) -> tuple[State, dict[str, dict[str, Tensor]]] | None:
    """What `save` wrote, or None where nothing is. Raises InvalidInputError when it belongs to other settings."""
    if not path.is_file():
        return None
    groups: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        state = State(**json.loads(file.metadata()[STATE]))
        if state.settings != settings:
            raise InvalidInputError("recover_other_job", field="recovery", folder=path.parent.name)
        for key in file.keys():  # noqa: SIM118 - not a dict
            group, _, name = key.partition(":")
            groups.setdefault(group, {})[name] = file.get_tensor(key)
    return state, groups
