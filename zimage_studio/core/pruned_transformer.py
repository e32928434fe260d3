"""ZImageTransformer2DModel whose feed-forward widths and numbers of heads differ from block to block."""

from collections.abc import Mapping
from typing import Any

from diffusers import ModelMixin, ZImageTransformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_z_image import FeedForward, ZSingleStreamAttnProcessor
from torch import nn

from zimage_studio.records.plan import STACKS, TransformerShape

__all__ = ["STOCK", "ModelMixin", "PrunedZImageTransformer2DModel", "config_for"]
# diffusers looks for the name ModelMixin in the module that a class of ours comes from

STOCK = "ZImageTransformer2DModel"
OWN_KEYS = ("ffn_widths", "head_counts")
ATTENTION_EPS = 1e-5


class PrunedZImageTransformer2DModel(ZImageTransformer2DModel):
    """The stock model with `ffn_widths` and `head_counts`: for each stack a list, one number a block.

    A stack that is not named has the stock's. `dim` is a multiple of the head's width (the sum of `axes_dims`), and
    `n_heads` stays the stock's number for that `dim`. Raises ValueError for lists of another length.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        all_patch_size: Any = (2,),
        all_f_patch_size: Any = (1,),
        in_channels: int = 16,
        dim: int = 3840,
        n_layers: int = 30,
        n_refiner_layers: int = 2,
        n_heads: int = 30,
        n_kv_heads: int = 30,
        norm_eps: float = 1e-5,
        qk_norm: bool = True,
        cap_feat_dim: int = 2560,
        siglip_feat_dim: int | None = None,
        rope_theta: float = 256.0,
        t_scale: float = 1000.0,
        axes_dims: Any = (32, 48, 48),
        axes_lens: Any = (1024, 512, 512),
        ffn_widths: Mapping[str, list[int]] | None = None,
        head_counts: Mapping[str, list[int]] | None = None,
    ) -> None:
        super().__init__(
            all_patch_size, all_f_patch_size, in_channels, dim, n_layers, n_refiner_layers, n_heads, n_kv_heads,
            norm_eps, qk_norm, cap_feat_dim, siglip_feat_dim, rope_theta, t_scale, axes_dims, axes_lens,
        )  # fmt: skip
        for stack in STACKS:
            blocks = getattr(self, stack)
            widths = (ffn_widths or {}).get(stack, [int(dim / 3 * 8)] * len(blocks))
            heads = (head_counts or {}).get(stack, [n_heads] * len(blocks))
            if not len(widths) == len(heads) == len(blocks):
                raise ValueError(f"{stack}: {len(widths)} widths and {len(heads)} heads for {len(blocks)} blocks")
            for block, width, count in zip(blocks, widths, heads, strict=True):
                _resize(block, dim, width, count, sum(axes_dims), qk_norm)


def _resize(block: nn.Module, dim: int, width: int, heads: int, head_dim: int, qk_norm: bool) -> None:
    """Give a stock block a feed-forward `width` units wide and `heads` heads. The normalisations stay."""
    if block.feed_forward.w1.out_features != width:
        block.feed_forward = FeedForward(dim, width)
    if block.attention.heads != heads:
        # without `out_dim`, which would make the inner width that of the output
        block.attention = Attention(
            query_dim=dim,
            cross_attention_dim=None,
            dim_head=head_dim,
            heads=heads,
            qk_norm="rms_norm" if qk_norm else None,
            eps=ATTENTION_EPS,
            bias=False,
            out_bias=False,
            processor=ZSingleStreamAttnProcessor(),
        )


def config_for(shape: TransformerShape, base: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a transformer of this shape, all else as in `base`; the stock class where it can hold it."""
    config = {name: value for name, value in base.items() if name not in OWN_KEYS}
    config |= {
        "_class_name": STOCK if shape.is_stock else PrunedZImageTransformer2DModel.__name__,
        "dim": shape.dim,
        "n_heads": shape.stock_heads,
        "n_kv_heads": shape.stock_heads,
        "n_layers": len(shape.stack("layers")),
        "n_refiner_layers": len(shape.stack("noise_refiner")),
    }
    if not shape.is_stock:
        config["ffn_widths"] = {stack: [block.ffn for block in shape.stack(stack)] for stack in STACKS}
        config["head_counts"] = {stack: [block.heads for block in shape.stack(stack)] for stack in STACKS}
    return config
