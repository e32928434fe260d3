"""The optimisers of recovery, and their state as plain tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from zimage_studio.core.recovery.muon import Muon
from zimage_studio.errors import InvalidInputError
from zimage_studio.records.recover import RecoveryConfig

BETAS = (0.9, 0.99)
PARTS = "parts"


def require_available(config: RecoveryConfig, device: torch.device) -> None:
    """Raises InvalidInputError for an optimiser that this device has not."""
    if config.optimiser == "adamw8bit" and device.type != "cuda":
        raise InvalidInputError("recover_8bit", field="optimiser", value=config.optimiser)


class Optimisers:
    """One or two optimisers over the trained weights, each with its full rate.

    Muon takes the matrices inside blocks; AdamW the rest: embeddings, modulations, norms. Only matrices decay.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], config: RecoveryConfig, device: torch.device) -> None:
        require_available(config, device)
        self._names = {id(weight): name for name, weight in weights.items()}
        self._made: list[tuple[Optimizer, float]] = []
        rest = dict(weights)
        if config.optimiser == "muon":
            inner = {name: weight for name, weight in weights.items() if _is_inner(name, weight)}
            rest = {name: weight for name, weight in weights.items() if name not in inner}
            muon = Muon(inner.values(), lr=config.muon_lr, weight_decay=config.weight_decay)
            self._made.append((muon, config.muon_lr))
        self._made.append((_adam(rest, config), config.lr))

    def step(self, factor: float) -> None:
        """One update at `factor` of the full rates; gradients are cleared."""
        for optimiser, rate in self._made:
            for group in optimiser.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate * factor)
                else:
                    group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """The whole state: `name of the weight/name of the value`, in parts where a value is several tensors."""
        found: dict[str, Tensor] = {}
        for optimiser, _rate in self._made:
            for weight, state in optimiser.state.items():
                for key, value in state.items():
                    name = f"{self._names[id(weight)]}/{key}"
                    if hasattr(value, "__tensor_flatten__"):
                        parts, _context = value.__tensor_flatten__()
                        found |= {f"{name}/{PARTS}/{part}": getattr(value, part) for part in parts}
                    else:
                        found[name] = torch.as_tensor(value)
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state that `tensors` gave."""
        states: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            weight, _, key = name.partition("/")
            states.setdefault(weight, {})[key] = tensor
        for optimiser, _rate in self._made:
            for group in optimiser.param_groups:
                for weight in group["params"]:
                    kept = states.get(self._names[id(weight)], {})
                    optimiser.state[weight] = _state(kept, weight)
                    if not kept:
                        del optimiser.state[weight]


def _is_inner(name: str, weight: nn.Parameter) -> bool:
    return (
        weight.ndim == 2
        and name.split(".")[0] in ("layers", "noise_refiner", "context_refiner")
        and "adaLN" not in name
    )


def _adam(weights: Mapping[str, nn.Parameter], config: RecoveryConfig) -> Optimizer:
    matrices = [weight for weight in weights.values() if weight.ndim >= 2]
    vectors = [weight for weight in weights.values() if weight.ndim < 2]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((matrices, config.weight_decay), (vectors, 0.0))
        if params
    ]
    if config.optimiser == "adamw8bit":
        from torchao.optim import AdamW8bit  # slow to import, and only here of use

        eight: Optimizer = AdamW8bit(groups, lr=config.lr, betas=BETAS)
        return eight
    return AdamW(groups, lr=config.lr, betas=BETAS)


def _state(kept: Mapping[str, Tensor], weight: nn.Parameter) -> dict[str, Tensor]:
    """Values on the weight's device; the count of steps stays where the optimiser had it, on the CPU."""
    state = {
        key: value.clone() if key == "step" else value.to(weight.device, copy=True)
        for key, value in kept.items()
        if f"/{PARTS}/" not in key
    }
    for key in {key.split("/")[0] for key in kept if f"/{PARTS}/" in key}:
        from torchao.optim.subclass_8bit import OptimState8bit

        codes, scale, qmap = (kept[f"{key}/{PARTS}/{part}"].to(weight.device) for part in ("codes", "scale", "qmap"))
        state[key] = OptimState8bit(codes, scale, qmap, bool(qmap.min() < 0), weight.dtype)
    return state
