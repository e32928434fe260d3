"""Z-Image's true geometry, and a small one of the same classes, with random weights or none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from zimage_studio.core.memory.shapes import Shapes

TOKENIZER = Path(__file__).parent.parent / "zimage_studio" / "tiny" / "model" / "tokenizer"
SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}
SEED = 0
_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """The three config.json files. What is left out of the transformer's is diffusers' default, which is Z-Image."""

    name: str
    text_encoder: Mapping[str, Any]
    vae: Mapping[str, Any]
    transformer: Mapping[str, Any] = field(default_factory=dict)

    def shapes(self, dtypes: Mapping[str, torch.dtype]) -> Shapes:
        """The networks on the meta device."""
        return Shapes.of_configs(self.transformer, self.text_encoder, self.vae, dtypes)


GEOMETRIES: Mapping[str, Geometry] = {
    geometry.name: geometry
    for geometry in (
        Geometry(
            name="z-image",
            text_encoder={
                "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
                "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
                "max_position_embeddings": 40960,
            },
            vae={
                **_VAE, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16,
                "norm_num_groups": 32, "sample_size": 1024,
            },
        ),
        Geometry(
            name="tiny",
            transformer={
                "in_channels": 4, "dim": 64, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4,
                "cap_feat_dim": 32, "axes_dims": [8, 4, 4], "axes_lens": [1024, 32, 32],
            },
            text_encoder={
                "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
                "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512,
            },
            vae={
                **_VAE, "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "latent_channels": 4,
                "norm_num_groups": 4, "sample_size": 64,
            },
        ),
    )
}  # fmt: skip


def build(
    geometry: Geometry, homes: Mapping[str, torch.device], dtypes: Mapping[str, torch.dtype], seed: int = SEED
) -> ZImagePipeline:
    """A whole pipeline with random weights, each drawn where it will lie: RAM need not hold what the device does.

    `homes` and `dtypes` are by component. The tokenizer is the embedded model's: its numbers are all in the
    vocabulary. Raises torch.OutOfMemoryError.
    """
    with init_empty_weights():  # buffers that are computed, not stored, are real
        parts: dict[str, Any] = {
            "text_encoder": Qwen3Model(Qwen3Config(**geometry.text_encoder)),
            "transformer": ZImageTransformer2DModel.from_config(dict(geometry.transformer)),
            "vae": AutoencoderKL.from_config(dict(geometry.vae)),
        }
    for name, module in parts.items():
        _fill(module, homes[name], dtypes[name], seed)
        parts[name] = module.to(homes[name]).eval()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        tokenizer=Qwen2Tokenizer.from_pretrained(TOKENIZER, local_files_only=True),
        **parts,
    )


def _fill(module: nn.Module, home: torch.device, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator(home).manual_seed(seed)
    for name, parameter in list(module.named_parameters()):
        value = _random(name, parameter.shape, home, dtype, generator)
        set_module_tensor_to_device(module, name, home, value=value, dtype=dtype)
    module.requires_grad_(False)


def _random(name: str, shape: torch.Size, home: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Weights that keep the size of what passes through: ones for norms, no biases, else 1/√(inputs) wide."""
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype, device=home)
    fan_in = 2500 if "embed_tokens" in name or "pad_token" in name else shape[1:].numel()
    return torch.randn(shape, dtype=dtype, device=home, generator=generator).mul_(fan_in**-0.5)
