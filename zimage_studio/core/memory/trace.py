"""The peak of what a computation holds, found on meta tensors: shapes only, no memory, no arithmetic."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HEAP_LARGEST_BYTES = 32 * 2**20
"""Up to here glibc serves an allocation from its heap, once blocks of that size have been freed."""
HEAP_FACTOR = 2.0
"""What the heap grows to, over what is alive in it: freed pieces stay between live ones. Measured on the embedded
model at 128² to 1024² px: 1.8 to 2.3 (docs/memory_estimate.md)."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Peaks in bytes.

    `alive` counts every tensor once, as an allocator of a GPU gives them out. On a CPU the process holds more:
    `large` is the peak of the tensors that the system gets back when they are freed, `heap` what the heap grows to
    for the others and keeps, `resident` the peak of both together.
    """

    alive: int
    large: int
    heap: int
    resident: int


def trace(
    run: Callable[[], object], kept: Iterable[Tensor] = (), *, quadratic: bool = False, conv_copies: bool = False
) -> Traced:
    """What `run` holds at most while it computes on meta tensors; `kept` (the weights) do not count.

    `quadratic`: attention as torch's math kernel computes it, all scores at once; otherwise it needs no more than its
    result, as flash, efficient and cuDNN kernels do. `conv_copies`: a convolution holds its input a second time,
    reordered, as oneDNN does on a CPU. Workspaces of libraries are not seen.
    """
    meter = _Meter({tensor.untyped_storage()._cdata for tensor in kept}, conv_copies)
    with torch.no_grad(), _Attention(quadratic), meter:
        run()
    return meter.traced


class _Meter(TorchDispatchMode):
    """Adds up new storages and drops those that died."""

    def __init__(self, kept: set[int], conv_copies: bool) -> None:
        super().__init__()
        self._kept = kept
        self._conv_copies = conv_copies
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.traced = Traced(0, 0, 0, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        self._alive = {key: known for key, known in self._alive.items() if not known[0].expired()}
        copies = _bytes(args[0]) if self._conv_copies and func is torch.ops.aten.convolution.default else 0
        self._note([size for _, size in self._alive.values()] + [copies])
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._kept and (key not in self._alive or self._alive[key][0].expired()):
            self._alive[key] = (StorageWeakRef(storage), storage.nbytes())

    def _note(self, sizes: list[int]) -> None:
        before, alive = self.traced, sum(sizes)
        large = sum(size for size in sizes if size > HEAP_LARGEST_BYTES)
        heap = max(before.heap, round(HEAP_FACTOR * (alive - large)))
        self.traced = Traced(
            max(before.alive, alive), max(before.large, large), heap, max(before.resident, large + heap)
        )


class _Attention(TorchFunctionMode):
    """Keeps torch from taking its math kernel, the only one that knows meta tensors, unless that is meant."""

    def __init__(self, quadratic: bool) -> None:
        super().__init__()
        self._quadratic = quadratic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and not self._quadratic:
            q_BHLD = args[0] if args else kwargs["query"]
            v_BHLD = args[2] if len(args) > 2 else kwargs["value"]
            batch, heads, length, _ = q_BHLD.shape
            return q_BHLD.new_empty((batch, length, heads, v_BHLD.shape[-1])).transpose(1, 2)
        return func(*args, **kwargs)


def _bytes(tensor: Tensor) -> int:
    return int(math.prod(tensor.shape) * tensor.element_size())
