"""Which rows and columns go together when a unit or a head goes, as torch-pruning's dependency graph finds them.

The graph is traced on a model without memory, so it costs the same for any size. Of torch-pruning the graph and the
groups are used; widths are chosen by planning, values are streamed by the criteria.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from diffusers import ZImageTransformer2DModel
from torch import nn

from zimage_studio.core.pruning.scores import Place
from zimage_studio.records.plan import STACKS

Part = Literal["ffn", "heads"]
CAPTION_TOKENS, SIDE = 32, 8
READERS = ("to_q.weight", "to_k.weight", "to_v.weight", "w1.weight", "w3.weight")
WRITERS = ("to_out.0.weight", "w2.weight")
OUTER_DIM = (
    ("all_x_embedder.2-1.weight", 0),
    ("cap_embedder.1.weight", 0),
    ("all_final_layer.2-1.linear.weight", 1),
)


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """The feed-forward units or the heads of one block.

    `count` units, each `width` rows or columns wide; `members` are tensors with the axis on which they lie.
    """

    place: Place
    part: Part
    count: int
    width: int
    members: tuple[tuple[str, int], ...]

    def dim_axis(self, axis: int) -> int:
        """The axis of the residual stream in a member whose units lie on `axis`."""
        return 1 - axis


def unit_groups(kind: type[ZImageTransformer2DModel], config: Mapping[str, Any]) -> list[UnitGroup]:
    """The groups of every block of a model of this class and config, stack by stack."""
    with torch.device("meta"):
        model = kind.from_config({name: value for name, value in config.items() if not name.startswith("_")})
    graph = _graph(model)
    names = {module: name for name, module in model.named_modules()}
    found: list[UnitGroup] = []
    for stack in STACKS:
        for index, block in enumerate(getattr(model, stack)):
            wide, attention = block.feed_forward.w1, block.attention
            found.append(UnitGroup((stack, index), "ffn", wide.out_features, 1, _members(graph, wide, names)))
            width = attention.to_q.out_features // attention.heads
            members = _members(graph, attention.to_q, names)
            found.append(UnitGroup((stack, index), "heads", attention.heads, width, members))
    return found


def _graph(model: ZImageTransformer2DModel) -> Any:
    channels, words = model.config.in_channels, model.config.cap_feat_dim
    inputs = (
        [torch.empty(channels, 1, SIDE, SIDE, device="meta")],
        torch.empty(1, device="meta"),
        [torch.empty(CAPTION_TOKENS, words, device="meta")],
    )
    # qk-normalisation is as wide as a head, which the graph cannot know
    ignored = [parameter for name, parameter in model.named_parameters() if "attention.norm_" in name]
    return tp.DependencyGraph().build_dependency(
        model, inputs, forward_fn=_forward, ignored_params=ignored, verbose=False
    )


def _forward(model: ZImageTransformer2DModel, inputs: Any) -> Any:
    pictures, times, captions = inputs
    return model(list(pictures), times, list(captions), return_dict=False)[0]


def _members(graph: Any, layer: nn.Linear, names: Mapping[nn.Module, str]) -> tuple[tuple[str, int], ...]:
    group = graph.get_pruning_group(layer, tp.prune_linear_out_channels, [0])
    return tuple(
        (f"{names[dep.target.module]}.weight", 0 if dep.handler == tp.prune_linear_out_channels else 1)
        for dep, _ in group
        if isinstance(dep.target.module, nn.Linear)
    )
