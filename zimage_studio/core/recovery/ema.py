"""An exponential average of the trained weights: what is validated, drawn with, and saved."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Follows `weights`. With a decay of 0 it is the weights themselves."""

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.values = {name: weight.detach().clone() for name, weight in weights.items()} if decay else {}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def follow(self, step: int) -> None:
        """After optimiser step number `step`, from 1. Young averages forget faster, or they would hold the start."""
        if self.values:
            keep = min(self._decay, step / (step + 10))
            torch._foreach_lerp_(list(self.values.values()), [w.detach() for w in self._weights.values()], 1 - keep)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average's values inside the block, and exactly its own after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self.values.items():
            weight = self._weights[name]
            self.values[name], weight.data = weight.data, value

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take the values of a checkpoint."""
        for name, value in self.values.items():
            value.copy_(values[name])
