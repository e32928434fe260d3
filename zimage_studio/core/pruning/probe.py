"""The few numbers by which ComfyUI decides whether a model may run in float16, read without loading anything."""

from pathlib import Path

import numpy as np

from zimage_studio.core.pruning.raw_tensors import read_numbers, tensor_places


def float16_probe(folder: Path, layers: int) -> tuple[float, ...]:
    """Standard deviation (n - 1, as torch counts it) of ffn_norm1.weight of each main block, in order."""
    places = tensor_places(folder)
    spreads = []
    for index in range(layers):
        values = read_numbers(places[f"layers.{index}.ffn_norm1.weight"])
        spreads.append(round(float(np.std(values, ddof=1)), 6) if len(values) > 1 else 0.0)
    return tuple(spreads)
