"""A batched forward of Z-Image's transformer for training, equal to the official one (a test compares them).

The official forward takes lists of pictures and captions of any length and pads them one by one. In training all
pictures of a batch have one size and all captions one padded length, so plain tensors will do; and rotary embeddings
in real arithmetic let torch.compile fuse them.

Where the transformer's gradient checkpointing is on, each block is computed again in the backward pass.

Shapes: B batch, C latent channels, H x W latent pixels, L caption tokens (a multiple of 32), S sequence, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PATCH = 2


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines (S, head_dim / 2) for one layout of tokens."""

    cos_SK: Tensor
    sin_SK: Tensor

    def turn(self, x_BSNH: Tensor) -> Tensor:
        """Rotate pairs of neighbouring channels."""
        pairs = x_BSNH.unflatten(-1, (-1, 2))
        even, odd = pairs[..., 0], pairs[..., 1]
        cos, sin = self.cos_SK[:, None], self.sin_SK[:, None]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def rotary(transformer: ZImageTransformer2DModel, positions_S3: Tensor) -> Rotary:
    """The rotation of tokens at `positions_S3`, from the model's own table."""
    angles = torch.angle(transformer.rope_embedder(positions_S3))
    return Rotary(angles.cos(), angles.sin())


@dataclass(frozen=True, slots=True)
class Layout:
    """Rotations of image tokens, caption tokens and both, for one picture size and caption length."""

    image: Rotary
    caption: Rotary
    both: Rotary

    @classmethod
    def of(cls, transformer: ZImageTransformer2DModel, caption_length: int, height: int, width: int) -> "Layout":
        """`height` and `width` in latent pixels. Captions stand at (1 .. L, 0, 0), the image at (L + 1, y, x)."""
        grid = torch.cartesian_prod(
            torch.tensor([caption_length + 1]), torch.arange(height // PATCH), torch.arange(width // PATCH)
        )
        words = torch.zeros(caption_length, 3, dtype=torch.long)
        words[:, 0] = torch.arange(1, caption_length + 1)
        device = transformer.x_pad_token.device
        image, caption = rotary(transformer, grid.to(device)), rotary(transformer, words.to(device))
        both = Rotary(torch.cat((image.cos_SK, caption.cos_SK)), torch.cat((image.sin_SK, caption.sin_SK)))
        return cls(image, caption, both)


def _attend(block: ZImageTransformerBlock, x_BSD: Tensor, turn: Rotary) -> Tensor:
    attention = block.attention
    q, k, v = (
        layer(x_BSD).unflatten(-1, (attention.heads, -1)) for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    q, k = turn.turn(attention.norm_q(q)), turn.turn(attention.norm_k(k))
    # float32: the backward pass of bfloat16 attention takes three times as long on a CPU
    out = F.scaled_dot_product_attention(*(part.transpose(1, 2).float() for part in (q, k, v)))
    return attention.to_out[0](out.transpose(1, 2).flatten(-2))


def _block(block: ZImageTransformerBlock, x_BSD: Tensor, turn: Rotary, time_BE: Tensor | None) -> Tensor:
    if time_BE is None:
        x_BSD = x_BSD + block.attention_norm2(_attend(block, block.attention_norm1(x_BSD), turn))
        return x_BSD + block.ffn_norm2(block.feed_forward(block.ffn_norm1(x_BSD)))
    scale_a, gate_a, scale_f, gate_f = block.adaLN_modulation(time_BE).unsqueeze(1).chunk(4, dim=2)
    attended = _attend(block, block.attention_norm1(x_BSD) * (1 + scale_a), turn)
    x_BSD = x_BSD + gate_a.tanh() * block.attention_norm2(attended)
    return x_BSD + gate_f.tanh() * block.ffn_norm2(block.feed_forward(block.ffn_norm1(x_BSD) * (1 + scale_f)))


def _run(
    transformer: ZImageTransformer2DModel,
    block: ZImageTransformerBlock,
    x_BSD: Tensor,
    turn: Rotary,
    time_BE: Tensor | None,
) -> Tensor:
    if transformer.gradient_checkpointing and torch.is_grad_enabled():
        again: Tensor = checkpoint(_block, block, x_BSD, turn, time_BE, use_reentrant=False)
        return again
    return _block(block, x_BSD, turn, time_BE)


def forward(
    transformer: ZImageTransformer2DModel,
    noisy_BCHW: Tensor,
    time_B: Tensor,
    caption_BLE: Tensor,
    caption_mask_BL: Tensor,
    layout: Layout,
) -> Tensor:
    """Predicted clean minus noise, (B, C, H, W). `time_B` runs from 0 (noise) to 1 (image)."""
    batch, channels, height, width = noisy_BCHW.shape
    time = transformer.t_embedder(time_B * transformer.t_scale)
    patches = noisy_BCHW.unflatten(2, (-1, PATCH)).unflatten(4, (-1, PATCH))  # B C h 2 w 2
    tokens = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, PATCH * PATCH * channels)
    x = transformer.all_x_embedder["2-1"](tokens)
    for block in transformer.noise_refiner:
        x = _run(transformer, block, x, layout.image, time)
    words = transformer.cap_embedder(caption_BLE)
    words = torch.where(caption_mask_BL[..., None], words, transformer.cap_pad_token.to(words.dtype))
    for block in transformer.context_refiner:
        words = _run(transformer, block, words, layout.caption, None)
    both = torch.cat((x, words), dim=1)
    for block in transformer.layers:
        both = _run(transformer, block, both, layout.both, time)
    out = transformer.all_final_layer["2-1"](both[:, : x.shape[1]], c=time)
    out = out.reshape(batch, height // PATCH, width // PATCH, PATCH, PATCH, channels)
    return out.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)
