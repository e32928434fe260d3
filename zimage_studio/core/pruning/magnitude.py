"""Criteria that look at weights alone: random, l1, group_l2. Read from disk in pieces of 16 MiB, no torch.

A unit of a feed-forward is the group of its row in w1, its row in w3 and its column in w2; a head is its rows in q, k
and v and its columns in the output. Scores are the mean over the group of sums of |w| or w², as torch-pruning's
GroupMagnitudeImportance has them (arXiv:2301.12900).

The normalisation at the end of each half takes the size of its branch away: multiplied by anything, w2 and the output
of the attention do the same. So these scores say nothing about one block against another. What a block adds is scaled
by the weights of the two closing normalisations (and by its gates, which depend on the time): their mean size is the
score of a block, a weak hint and no more.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zimage_studio.core.pruning.mapping import axes_of
from zimage_studio.core.pruning.raw_tensors import TensorPlace, read_rows, tensor_places
from zimage_studio.core.pruning.scores import Numbers, Place, Scores
from zimage_studio.core.pruning.shape import transformer_shape
from zimage_studio.records.plan import STACKS, BlockShape, Criterion, TransformerShape
from zimage_studio.records.progress import Progress, silent

POWERS: Mapping[str, int] = {"l1": 1, "group_l2": 2}
WEIGHT_ONLY: frozenset[Criterion] = frozenset({"random", "l1", "group_l2"})

FFN_GROUP: Mapping[str, int] = {"feed_forward.w1": 0, "feed_forward.w3": 0, "feed_forward.w2": 1}
HEAD_GROUP: Mapping[str, int] = {
    "attention.to_q": 0, "attention.to_k": 0, "attention.to_v": 0, "attention.to_out.0": 1,
}  # fmt: skip
"""The matrices of a unit's group, and the axis along which the units lie."""
CLOSING = ("attention_norm2", "ffn_norm2")
"""The normalisations that close the halves of a block: with their weights at zero it passes its input on."""


def random_scores(folder: Path, seed: int) -> Scores:
    """Scores by lot, the same for the same shape and seed."""
    shape = transformer_shape(folder)

    def lot(block: BlockShape, kind: int, count: int) -> Numbers:
        return np.random.default_rng((seed, STACKS.index(block.stack), block.index, kind)).random(count)

    places: dict[Place, BlockShape] = {(block.stack, block.index): block for block in shape.blocks}
    return Scores(
        criterion="random",
        ffn={place: lot(block, 0, block.ffn) for place, block in places.items()},
        heads={place: lot(block, 1, block.heads) for place, block in places.items()},
        blocks={place: float(lot(block, 2, 1)[0]) for place, block in places.items()},
        dim=np.random.default_rng((seed, len(STACKS))).random(shape.dim),
    )


def magnitude_scores(folder: Path, criterion: Criterion, progress: Progress = silent) -> Scores:
    """`l1` or `group_l2`. A channel of the residual stream counts in each matrix as a share of that matrix.

    Raises ModelError for a folder that holds no such transformer, Cancelled from `progress`.
    """
    shape, places = transformer_shape(folder), tensor_places(folder)
    tally = _Tally(shape, POWERS[criterion])
    total = sum(place.bytes for place in places.values())
    done = 0
    for name, place in places.items():
        for rows in _pieces(name, place, tally):
            done += rows
            progress(done, total, "note.scoring")
    return tally.scores(criterion)


@dataclass(slots=True)
class _Tally:
    """Sums of powers along both axes of every matrix, one matrix after the other."""

    shape: TransformerShape
    power: int
    found: dict[str, Numbers] = field(default_factory=dict)
    dim: list[Numbers] = field(default_factory=list)

    def add(self, name: str, rows: Numbers, columns: Numbers) -> None:
        """Take in a whole matrix: the sums over each of its rows and each of its columns."""
        axes = axes_of(name)
        if len(axes) == 2:
            for axis, values in zip(axes, (rows, columns), strict=True):
                if axis in ("ffn", "heads"):
                    self.found[name] = values
                elif axis == "dim" and (mean := float(values.mean())):
                    self.dim.append(values / mean)
        elif name.rpartition(".")[0].endswith(CLOSING):
            self.found[name] = rows

    def scores(self, criterion: Criterion) -> Scores:
        """When all matrices are in."""
        places: dict[Place, BlockShape] = {(block.stack, block.index): block for block in self.shape.blocks}
        return Scores(
            criterion=criterion,
            ffn={place: self._mean(place, FFN_GROUP) for place in places},
            heads={place: by_head(self._mean(place, HEAD_GROUP), block.heads) for place, block in places.items()},
            blocks={place: float(self._mean(place, CLOSING).mean()) for place in places},
            dim=np.mean(self.dim, axis=0),
        )

    def _mean(self, place: Place, parts: Mapping[str, int] | tuple[str, ...]) -> Numbers:
        """Over the members of a group."""
        mean: Numbers = np.mean([self.found[f"{place[0]}.{place[1]}.{part}.weight"] for part in parts], axis=0)
        return mean


def by_head(channels: Numbers, heads: int) -> Numbers:
    """One score a head: the mean over its channels."""
    mean: Numbers = channels.reshape(heads, -1).mean(axis=1)
    return mean


def _pieces(name: str, place: TensorPlace, tally: _Tally) -> Iterator[int]:
    """Read a tensor and tell it to the tally; the bytes of each piece as it is done."""
    rows: list[Numbers] = []
    columns: Numbers = np.zeros(place.shape[-1])
    for piece in read_rows(place):
        powers: NDArray[np.float32] = np.abs(piece) if tally.power == 1 else np.square(piece)
        if piece.ndim == 1:
            rows.append(powers.astype(np.float64))
        else:
            rows.append(powers.sum(axis=1, dtype=np.float64))
            columns += powers.sum(axis=0, dtype=np.float64)
        yield piece.size * place.item_bytes
    tally.add(name, np.concatenate(rows), columns)
