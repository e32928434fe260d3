"""A transformer's shape read from headers, the tensors that it has, and the arithmetic of a forward. No torch."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from zimage_studio.core.weight_headers import Shape, TensorInfo, component_header, read_json, short, summary
from zimage_studio.errors import ModelError
from zimage_studio.records.plan import STACKS, BlockShape, TransformerShape

ITEM_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""The kinds of numbers that can be cut: those that stand for themselves."""
TIME_WIDTH, TIME_HIDDEN = 256, 1024
TOKEN_STEP = 32
"""diffusers fills image and caption up to a multiple of this with pad tokens, each on its own."""
CAPTION_TOKENS = 64
_BLOCK = re.compile(r"(layers|noise_refiner|context_refiner)\.(\d+)\.")


def transformer_shape(folder: Path) -> TransformerShape:
    """The shape of the transformer in a diffusers folder, from its headers alone.

    Raises ModelError when tensors are missing, strange, quantised, or fit no such model.
    """
    header = component_header(folder, "transformer")
    shape = shape_of({name: info.shape for name, info in header.items()}, short(folder / "transformer"))
    _require_plain(header, folder)
    return shape


def shape_of(tensors: Mapping[str, Shape], source: str) -> TransformerShape:
    """The shape that these tensors have. Raises ModelError naming `source` and the first tensor that does not fit."""
    try:
        shape = _measured(tensors)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError("model_no_transformer", value=source) from error
    expected = tensor_shapes(shape)
    if strange := tensors.keys() - expected.keys():
        raise ModelError("model_foreign_tensors", value=source, names=summary(strange))
    if missing := expected.keys() - tensors.keys():
        raise ModelError("model_layers", value=source, missing=summary(missing), extra="–")
    for name, wanted in expected.items():
        if tensors[name] != wanted:
            found, right = ("×".join(map(str, sizes)) for sizes in (tensors[name], wanted))
            raise ModelError("model_shape", value=source, tensor=name, found=found, expected=right)
    return shape


def _measured(tensors: Mapping[str, Shape]) -> TransformerShape:
    dim, pixels = tensors["all_x_embedder.2-1.weight"]
    head_dim = tensors["layers.0.attention.norm_q.weight"][0]
    places = {(match[1], int(match[2])) for name in tensors if (match := _BLOCK.match(name))}
    blocks = tuple(
        BlockShape(
            stack,
            index,
            tensors[f"{stack}.{index}.feed_forward.w1.weight"][0],
            tensors[f"{stack}.{index}.attention.to_q.weight"][0] // head_dim,
        )
        for stack in STACKS
        for index in range(sum(place[0] == stack for place in places))
    )
    return TransformerShape(
        dim=dim, head_dim=head_dim, in_channels=pixels // 4, caption_width=tensors["cap_embedder.1.weight"][1],
        blocks=blocks,
    )  # fmt: skip


def _require_plain(header: Mapping[str, TensorInfo], folder: Path) -> None:
    for name, info in header.items():
        if info.dtype not in ITEM_BYTES:
            raise ModelError("plan_not_plain", value=folder.name, tensor=name, found=info.dtype)


def tensor_shapes(shape: TransformerShape) -> dict[str, Shape]:
    """Every tensor of a transformer of this shape, by name."""
    return dict(_outer(shape)) | {
        f"{block.stack}.{block.index}.{leaf}": size for block in shape.blocks for leaf, size in _inner(shape, block)
    }


def _outer(shape: TransformerShape) -> Iterator[tuple[str, Shape]]:
    dim, pixels = shape.dim, shape.in_channels * shape.patch**2
    yield "all_x_embedder.2-1.weight", (dim, pixels)
    yield "all_x_embedder.2-1.bias", (dim,)
    yield "all_final_layer.2-1.linear.weight", (pixels, dim)
    yield "all_final_layer.2-1.linear.bias", (pixels,)
    yield "all_final_layer.2-1.adaLN_modulation.1.weight", (dim, shape.adaln_width)
    yield "all_final_layer.2-1.adaLN_modulation.1.bias", (dim,)
    yield "t_embedder.mlp.0.weight", (TIME_HIDDEN, TIME_WIDTH)
    yield "t_embedder.mlp.0.bias", (TIME_HIDDEN,)
    yield "t_embedder.mlp.2.weight", (shape.adaln_width, TIME_HIDDEN)
    yield "t_embedder.mlp.2.bias", (shape.adaln_width,)
    yield "cap_embedder.0.weight", (shape.caption_width,)
    yield "cap_embedder.1.weight", (dim, shape.caption_width)
    yield "cap_embedder.1.bias", (dim,)
    yield "x_pad_token", (1, dim)
    yield "cap_pad_token", (1, dim)


def _inner(shape: TransformerShape, block: BlockShape) -> Iterator[tuple[str, Shape]]:
    dim, inner = shape.dim, block.heads * shape.head_dim
    for part in ("to_q", "to_k", "to_v"):
        yield f"attention.{part}.weight", (inner, dim)
    yield "attention.to_out.0.weight", (dim, inner)
    for part in ("norm_q", "norm_k"):
        yield f"attention.{part}.weight", (shape.head_dim,)
    yield "feed_forward.w1.weight", (block.ffn, dim)
    yield "feed_forward.w2.weight", (dim, block.ffn)
    yield "feed_forward.w3.weight", (block.ffn, dim)
    for part in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
        yield f"{part}.weight", (dim,)
    if block.stack != "context_refiner":
        yield "adaLN_modulation.0.weight", (4 * dim, shape.adaln_width)
        yield "adaLN_modulation.0.bias", (4 * dim,)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def padded(tokens: int) -> int:
    """How many tokens are computed for so many."""
    return -(-tokens // TOKEN_STEP) * TOKEN_STEP


def image_tokens(folder: Path, width: int, height: int) -> int:
    """Tokens of one picture of `width` x `height` pixels in the model of this folder."""
    levels = read_json(folder / "vae" / "config.json").get("block_out_channels") or [0] * 4
    side = 2 << (len(levels) - 1)
    return -(-width // side) * -(-height // side)


def flops(shape: TransformerShape, picture: int, caption: int) -> int:
    """FLOPs (2 per multiply-add) of one forward over `picture` image tokens and `caption` caption tokens.

    Matrix products only, with the pad tokens that diffusers adds; norms, gates and softmax are some thousandths more.
    """
    picture, caption = padded(picture), padded(caption)
    tokens = {"noise_refiner": picture, "context_refiner": caption, "layers": picture + caption}
    pixels = shape.in_channels * shape.patch**2
    outside = picture * pixels * shape.dim + caption * shape.caption_width * shape.dim
    outside += (picture + caption) * shape.dim * pixels + shape.adaln_width * shape.dim
    outside += TIME_WIDTH * TIME_HIDDEN + TIME_HIDDEN * shape.adaln_width
    return 2 * (outside + sum(_block_products(shape, block, tokens[block.stack]) for block in shape.blocks))


def _block_products(shape: TransformerShape, block: BlockShape, tokens: int) -> int:
    inner = block.heads * shape.head_dim
    modulation = 0 if block.stack == "context_refiner" else shape.adaln_width * 4 * shape.dim
    return modulation + tokens * (3 * shape.dim * block.ffn + 4 * shape.dim * inner + 2 * tokens * inner)
