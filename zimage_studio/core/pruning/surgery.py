"""Cut a transformer in memory: a new one with the units that a plan keeps. The one handed in stays as it is."""

from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from zimage_studio.core.pruned_transformer import STOCK, PrunedZImageTransformer2DModel, config_for
from zimage_studio.core.pruning.mapping import TensorMap, require_parent, tensor_maps
from zimage_studio.records.plan import PrunePlan


def apply(transformer: ZImageTransformer2DModel, plan: PrunePlan) -> ZImageTransformer2DModel:
    """The transformer after the cut, on the same device, in the same numbers, sharing no memory with the parent.

    diffusers' own class where it can hold the shape, else PrunedZImageTransformer2DModel. Raises ModelError
    (plan_other_shape) before anything is cut when the plan was made for another shape.
    """
    tensors: dict[str, Tensor] = dict(transformer.state_dict())
    require_parent(plan, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    config = config_for(plan.after, {k: v for k, v in transformer.config.items() if not k.startswith("_")})
    with init_empty_weights():
        child = child_class(config).from_config(config)
    for name, where in tensor_maps(plan).items():
        value = sliced(tensors[name], where)
        set_module_tensor_to_device(child, where.name, value.device, value=value, dtype=value.dtype)
        child.get_parameter(where.name).requires_grad_(transformer.get_parameter(name).requires_grad)
    return child.train(transformer.training)


def child_class(config: dict[str, Any]) -> type[ZImageTransformer2DModel]:
    """The class that a config of `config_for` names."""
    kind: type[ZImageTransformer2DModel] = PrunedZImageTransformer2DModel
    return ZImageTransformer2DModel if config["_class_name"] == STOCK else kind


def sliced(tensor: Tensor, where: TensorMap) -> Tensor:
    """A copy of what stays of `tensor`."""
    for axis, kept in enumerate(where.kept):
        if kept is not None:
            tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
    return tensor.detach().clone() if where.unchanged else tensor.detach().contiguous()
