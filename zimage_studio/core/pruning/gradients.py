"""Criteria that ask the loss: taylor and fisher. Gradients are used up the moment they are there, one weight at a time.

The loss is that of flow matching on the model's own pictures. With g the gradient of one batch (taylor) or one state
(fisher), an element w counts |w g| (arXiv:1906.10771, first order) or (w g)² (the diagonal of the empirical Fisher
matrix, arXiv:1801.05787); taylor adds up over batches, fisher is the mean over states. A unit has the mean over its
group of the sums in its matrices, as torch-pruning's GroupTaylorImportance.

A block is judged by the weights of its two closing normalisations: with those at zero it passes its input on, so the
first-order change of the loss without it is the sum of their w g, with its sign (and its square for fisher).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from zimage_studio.core.pruning.calibration import Batch, Predictor
from zimage_studio.core.pruning.groups import UnitGroup
from zimage_studio.core.pruning.scores import Numbers, Place, Scores
from zimage_studio.core.pruning.weights import folded
from zimage_studio.errors import NonFiniteError, UserError
from zimage_studio.records.plan import Criterion
from zimage_studio.records.progress import Progress, silent

CLOSING = ("attention_norm2.weight", "ffn_norm2.weight")
TOKENS_AT_ONCE = 1024
"""Image tokens of a batch: small pictures go together, large ones one by one."""


def gradient_scores(
    transformer: ZImageTransformer2DModel,
    groups: Sequence[UnitGroup],
    states: Batch,
    criterion: Criterion,
    progress: Progress = silent,
    *,
    at_once: int | None = None,
) -> Scores:
    """`taylor` or `fisher` on `states`, `at_once` of them in a batch (by size when None; fisher always takes one).

    Weights, their `requires_grad` and gradient checkpointing are afterwards as before, and no gradient is left. Raises
    UserError (score_not_plain) for weights that no gradient can reach, NonFiniteError, Cancelled.
    """
    squared = criterion == "fisher"
    size = 1 if squared else at_once or max(1, TOKENS_AT_ONCE // (states.latents_BCHW[0, 0].numel() // 4))
    batches = list(states.straight.parts(size))
    tally = _Tally(groups, squared)
    with _asked(transformer, tally):
        predict = Predictor(transformer)
        for turn, batch in enumerate(batches):
            progress(turn, len(batches), "note.scoring")
            with torch.enable_grad():
                loss(predict, batch).backward()
            tally.require_finite(criterion)
    progress(len(batches), len(batches), "note.scoring")
    return tally.scores(criterion, len(batches) if squared else 1)


def loss(predict: Predictor, batch: Batch) -> Tensor:
    """Flow matching: mean squared error of the velocity."""
    velocity = predict(batch.latents_BCHW, batch.time_B, batch.captions)
    return F.mse_loss(velocity, batch.target_BCHW.to(velocity.device))


@dataclass(slots=True)
class _Tally:
    """Sums for every unit of every weight that is asked, while the gradients come in."""

    groups: Sequence[UnitGroup]
    squared: bool
    found: dict[str, Tensor] = field(default_factory=dict)

    @property
    def asked(self) -> dict[str, int | None]:
        """By name the axis along which a weight's units lie, None for a vector that is one unit."""
        axes: dict[str, int | None] = {name: axis for group in self.groups for name, axis in group.members}
        return axes | {_name(group.place, leaf): None for group in self.groups for leaf in CLOSING}

    def add(self, name: str, axis: int | None, weight: nn.Parameter) -> None:
        """Take in a weight's gradient and drop it."""
        if weight.grad is None:
            return
        product = weight.detach().float() * weight.grad.float()
        weight.grad = None
        if axis is None:
            total = product.sum()
            values = total.square() if self.squared else total.abs()
        else:
            values = (product.square_() if self.squared else product.abs_()).sum(1 - axis)
        added = values.double().cpu()
        self.found[name] = self.found[name] + added if name in self.found else added

    def require_finite(self, criterion: str) -> None:
        """Raises NonFiniteError."""
        if not all(bool(values.isfinite().all()) for values in self.found.values()):
            raise NonFiniteError("calibration_not_finite", value=criterion)

    def scores(self, criterion: Criterion, count: int) -> Scores:
        """The sums over `count`."""
        units: dict[str, dict[Place, Numbers]] = {"ffn": {}, "heads": {}}
        for group in self.groups:
            units[group.part][group.place] = folded(self._mean([name for name, _ in group.members]) / count, group)
        blocks = {place: float(self._mean([_name(place, leaf) for leaf in CLOSING])) / count for place in units["ffn"]}
        return Scores(criterion=criterion, ffn=units["ffn"], heads=units["heads"], blocks=blocks)

    def _mean(self, names: Sequence[str]) -> Tensor:
        return torch.stack([self.found[name] for name in names]).mean(0)


def _name(place: Place, leaf: str) -> str:
    return f"{place[0]}.{place[1]}.{leaf}"


@contextmanager
def _asked(transformer: ZImageTransformer2DModel, tally: _Tally) -> Iterator[None]:
    """Nothing but the weights that are judged takes part in the backward pass, each with a hook to `tally`."""
    wanted = {name: (transformer.get_parameter(name), axis) for name, axis in tally.asked.items()}
    for name, (weight, _) in wanted.items():
        require_plain(name, weight, "fisher" if tally.squared else "taylor")
    before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in transformer.parameters()}
    checkpointing = transformer.gradient_checkpointing
    with ExitStack() as undo:
        undo.callback(_restore, transformer, before, checkpointing)
        for parameter in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for name, (weight, axis) in wanted.items():
            weight.requires_grad_(True)
            undo.callback(weight.register_post_accumulate_grad_hook(partial(tally.add, name, axis)).remove)
        if not checkpointing:
            transformer.enable_gradient_checkpointing()
        yield


def _restore(
    transformer: ZImageTransformer2DModel,
    before: Mapping[nn.Parameter, tuple[bool, Tensor | None]],
    checkpointing: bool,
) -> None:
    for parameter, (asked, gradient) in before.items():
        parameter.requires_grad_(asked)
        parameter.grad = gradient
    if not checkpointing:
        transformer.disable_gradient_checkpointing()


def require_plain(name: str, weight: Tensor, criterion: str) -> None:
    """Raises UserError (score_not_plain) for a weight that is quantised or not there."""
    plain = type(weight) is nn.Parameter and type(weight.data) is Tensor and weight.is_floating_point()
    if not plain or weight.device.type == "meta":
        found = f"{type(weight.data).__name__} {weight.dtype} {weight.device}"
        raise UserError("score_not_plain", criterion=criterion, tensor=name, found=found)
