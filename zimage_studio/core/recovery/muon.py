"""Muon for the matrices, AdamW for the rest."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Momentum orthogonalised by a Newton-Schulz iteration (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Matrices of one shape are orthogonalised together, which a CPU likes better than many small products.
    Convolution kernels (O, I, h, w) count as matrices (O, I h w). Deviation: the step is scaled by
    sqrt(max(1, rows / columns)), as in Jordan's later version.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    by_shape.setdefault((param.shape[0], param[0].numel()), []).append(param)
            for (rows, columns), params in by_shape.items():
                moved = torch.stack(
                    [self._momentum(param, group["momentum"]).reshape(rows, columns) for param in params]
                )
                updates = orthogonalise(moved) * max(1.0, rows / columns) ** 0.5
                for param, update in zip(params, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update.reshape(param.shape), alpha=-group["lr"])

    def _momentum(self, param: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        buffer: Tensor = state["momentum"]
        gradient = param.grad
        assert gradient is not None
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)  # Nesterov


def orthogonalise(matrices_NRC: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to each of N, up to the error of five Newton-Schulz steps."""
    a, b, c = NEWTON_SCHULZ
    x = matrices_NRC.bfloat16()  # as Jordan does it; the iteration is forgiving
    wide = x.shape[1] <= x.shape[2]
    if not wide:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).float()
