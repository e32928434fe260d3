"""LoRA (arXiv:2106.09685) on the blocks' matrices: attached, saved as diffusers reads it, merged into the weights."""

from pathlib import Path

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from peft import LoraConfig
from peft.tuners.lora import Linear
from peft.utils import get_peft_model_state_dict
from torch import nn

TARGETS = r"(layers|noise_refiner|context_refiner)\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])"
ADAPTER = "default"
FILE = "recovery_lora.safetensors"


def attach(transformer: ZImageTransformer2DModel, rank: int, seed: int) -> None:
    """Freeze the transformer and add trainable pairs of matrices, in float32. They change nothing at first."""
    torch.manual_seed(seed)
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, lora_dropout=0.0))
    for weight in trained(transformer).values():
        weight.data = weight.data.float()


def trained(transformer: ZImageTransformer2DModel) -> dict[str, nn.Parameter]:
    """The weights that are trained, by name."""
    return {name: weight for name, weight in transformer.named_parameters() if weight.requires_grad}


def save(transformer: ZImageTransformer2DModel, folder: Path) -> None:
    """The adapter alone, for `ZImagePipeline.load_lora_weights`; made for the student it was trained on."""
    layers = {name: tensor.detach().cpu() for name, tensor in get_peft_model_state_dict(transformer).items()}
    ZImagePipeline.save_lora_weights(folder, transformer_lora_layers=layers, weight_name=FILE)


@torch.no_grad()  # type: ignore[untyped-decorator]
def merge(transformer: ZImageTransformer2DModel) -> None:
    """Add the adapter to the weights, in float32, and take it away."""
    for layer in [module for module in transformer.modules() if isinstance(module, Linear)]:
        weight = layer.get_base_layer().weight
        weight.data = (weight.float() + layer.get_delta_weight(ADAPTER).float()).to(weight.dtype)
    transformer.unload_lora()
