"""What a criterion said about every unit, head and block of a transformer; kept in a file beside the plan. No torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.plan import CRITERIA, STACKS, Calibration

SCHEMA = "1"
Place = tuple[str, int]
"""A block: its stack and its number there."""
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Higher means: missed more. A part that a criterion does not judge is left out.

    `ffn` holds (F,) for each block, `heads` (heads,), `blocks` one number, `dim` (D,) of the residual stream.
    `calibration` says on what it was measured, None for criteria that look at weights alone.
    """

    criterion: str
    ffn: Mapping[Place, Numbers] = field(default_factory=dict)
    heads: Mapping[Place, Numbers] = field(default_factory=dict)
    blocks: Mapping[Place, float] = field(default_factory=dict)
    dim: Numbers | None = None
    calibration: Calibration | None = None

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        arrays = {f"ffn.{stack}.{index}": values for (stack, index), values in self.ffn.items()}
        arrays |= {f"heads.{stack}.{index}": values for (stack, index), values in self.heads.items()}
        arrays |= {f"blocks.{stack}.{index}": np.array([value]) for (stack, index), value in self.blocks.items()}
        if self.dim is not None:
            arrays["dim"] = self.dim
        said = None if self.calibration is None else asdict(self.calibration)
        head = {"schema": SCHEMA, "criterion": self.criterion, "calibration": said}
        unfinished = path.with_name(f".{path.name}.part")
        ordered = {name: np.ascontiguousarray(values, dtype=np.float64) for name, values in arrays.items()}
        save_file(ordered, unfinished, metadata={"scores": json.dumps(head, ensure_ascii=False)})
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises InvalidInputError (scores_unreadable) on anything else."""
        try:
            with safe_open(path, framework="numpy") as file:
                head = json.loads((file.metadata() or {})["scores"])
                arrays = {name: np.asarray(file.get_tensor(name), dtype=np.float64) for name in file.keys()}  # noqa: SIM118
            return cls(**_read(head, arrays))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InvalidInputError("scores_unreadable", field="scores", value=path.name, why=error) from error


def _read(head: Mapping[str, Any], arrays: Mapping[str, Numbers]) -> dict[str, Any]:
    if head["schema"] != SCHEMA or head["criterion"] not in CRITERIA or set(head) != {
        "schema", "criterion", "calibration",
    }:  # fmt: skip
        raise ValueError(f"schema {head['schema']!r}, criterion {head['criterion']!r}")
    said = head["calibration"]
    parts: dict[str, dict[Place, Numbers]] = {"ffn": {}, "heads": {}, "blocks": {}}
    for name, values in arrays.items():
        if name == "dim":
            continue
        part, stack, index = name.split(".")
        if stack not in STACKS:
            raise ValueError(name)
        parts[part][stack, int(index)] = values
    return {
        "criterion": head["criterion"],
        "calibration": Calibration.from_sentence(said) if isinstance(said, str) else said and Calibration(**said),
        "ffn": parts["ffn"],
        "heads": parts["heads"],
        "blocks": {place: float(values[0]) for place, values in parts["blocks"].items()},
        "dim": arrays.get("dim"),
    }
