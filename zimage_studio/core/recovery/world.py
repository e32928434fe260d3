"""The processes that train together: one, or as many as `accelerate launch` started."""

from collections.abc import Iterable
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast, gather
from torch import Tensor, nn

PATIENCE = timedelta(hours=12)
"""How long the others wait while the first prepares data, draws samples or writes."""
BUCKET_NUMBERS = 2**24


class World:
    """Rank and number of the processes, and what they say to each other. Every process holds the whole model."""

    def __init__(self, device: str = "auto") -> None:
        # without an accelerator it would take each process for the only one, unless told
        on_cpu = device == "cpu" or not torch.accelerator.is_available()
        self._accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
        own = self._accelerator.device if device in ("auto", "cpu", "cuda") else torch.device(device)
        self.device = torch.device(own.type) if own.type == "cpu" else own  # it numbers CPUs by process
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes

    @property
    def first(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        self._accelerator.wait_for_everyone()

    def agreed(self, number: float) -> float:
        """The first process's number, in all of them."""
        if self.size == 1:
            return number
        told = torch.tensor([number], dtype=torch.float64, device=self.device)
        return float(broadcast(told)[0])

    def mean(self, number: float) -> float:
        """The mean over all processes."""
        if self.size == 1:
            return number
        return float(gather(torch.tensor([number], dtype=torch.float64, device=self.device)).mean())

    def average_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """The mean over all processes, a few megabytes in each message. No gradient counts as zero."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            bucket.append(weight.grad)
            if sum(gradient.numel() for gradient in bucket) >= BUCKET_NUMBERS:
                self._average(bucket)
                bucket = []
        self._average(bucket)

    def _average(self, gradients: list[Tensor]) -> None:
        if gradients:
            flat = self._accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def require_same(self, weights: Iterable[Tensor]) -> None:
        """Raise RuntimeError when the processes no longer hold the same weights."""
        if self.size == 1:
            return
        total = torch.stack([weight.detach().double().abs().sum() for weight in weights]).sum().reshape(1)
        everywhere = gather(total.to(self.device))
        if not bool((everywhere == everywhere[0]).all()):
            raise RuntimeError(f"the processes hold different weights: {everywhere.tolist()}")
