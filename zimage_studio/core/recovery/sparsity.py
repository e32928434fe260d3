"""Sparsity before a cut: what a plan will remove is made small first (group lasso, arXiv:1608.03665)."""

import functools
from collections.abc import Callable

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from zimage_studio.records.plan import BlockCut, PrunePlan
from zimage_studio.records.ranges import units

Penalty = Callable[[], Tensor]
EPSILON = 1e-12
"""Inside the root: a unit of zeros has no slope of its own."""


def penalty(transformer: ZImageTransformer2DModel, plan: PrunePlan) -> Penalty:
    """The mean norm of everything that `plan` removes: feed-forward units, heads, whole blocks.

    A block that goes is measured by the norms that scale its two branches: the normalisation before them makes
    the size of the branches' own weights meaningless, and a block with zeros there is the identity. Embedding
    dimensions are left alone: each is part of every matrix.
    """
    shapes = {(block.stack, block.index): block for block in plan.before.blocks}
    terms: list[Callable[[], Tensor]] = []
    for cut in plan.cuts:
        block, shape = getattr(transformer, cut.stack)[cut.index], shapes[cut.stack, cut.index]
        if not cut.kept:
            terms.append(functools.partial(_whole, block))
            continue
        if cut.ffn_kept:
            terms.append(_term(_unit_norms, block, _removed(cut, "ffn_kept", shape.ffn)))
        if cut.heads_kept:
            terms.append(_term(_head_norms, block, _removed(cut, "heads_kept", shape.heads)))
    zero = transformer.x_pad_token.new_zeros(())
    return lambda: torch.cat([term().flatten() for term in terms]).mean() if terms else zero


def _removed(cut: BlockCut, field: str, count: int) -> list[int]:
    kept = set(units(getattr(cut, field), count))
    return [number for number in range(count) if number not in kept]


def _term(norms: Callable[[nn.Module], Tensor], block: nn.Module, removed: list[int]) -> Callable[[], Tensor]:
    return lambda: norms(block)[removed]


def _root(squares: Tensor) -> Tensor:
    return (squares + EPSILON).sqrt()


def _whole(block: nn.Module) -> Tensor:
    return torch.stack([_root(norm.weight.float().square().sum()) for norm in (block.attention_norm2, block.ffn_norm2)])


def _unit_norms(block: nn.Module) -> Tensor:
    """(F,): each unit's row of w1 and w3 and column of w2."""
    forward = block.feed_forward
    rows = [forward.w1.weight.float().square().sum(1), forward.w3.weight.float().square().sum(1)]
    return _root(torch.stack([*rows, forward.w2.weight.float().square().sum(0)]).sum(0))


def _head_norms(block: nn.Module) -> Tensor:
    """(heads,): each head's rows of q, k, v and columns of the output."""
    attention = block.attention
    rows = [layer.weight.float().square().sum(1) for layer in (attention.to_q, attention.to_k, attention.to_v)]
    squares = torch.stack([*rows, attention.to_out[0].weight.float().square().sum(0)]).sum(0)
    return _root(squares.unflatten(0, (attention.heads, -1)).sum(1))
