"""Which runtimes load the child of a plan, and why. No torch.

What each of them does was read in or run with its own code; how they check shapes is nowhere promised, so the sentences
say on what it depends.
"""

from collections.abc import Sequence

from zimage_studio.records.plan import Runtime, Stack, TransformerShape, Verdict

Answer = tuple[Verdict, str]
"""The verdict, and the message key that says why."""

REAL_DIM, REAL_HEAD_DIM, REAL_CHANNELS, REAL_CAPTION, REAL_REFINERS = 3840, 128, 16, 2560, 2
FLOAT16_SPREAD = 0.42
"""ComfyUI allows float16 where the last but one block's ffn_norm1.weight spreads less than this."""
SDCPP_STEP = 256
REFINERS: tuple[Stack, ...] = ("noise_refiner", "context_refiner")


def loads(
    before: TransformerShape, after: TransformerShape, layers_kept: Sequence[int], probe: Sequence[float]
) -> dict[Runtime, Answer]:
    """A verdict for each runtime.

    `layers_kept` are the main blocks that stay, by their number in the parent; `probe` the spread (standard deviation)
    of each of the parent's ffn_norm1.weight in the main blocks, empty when unknown.
    """
    return {
        "diffusers": _diffusers(before, after),
        "diffusers_with_package": ("unchanged", "loads.same" if after == before else "loads.package_builds"),
        "comfyui": _comfyui(before, after, layers_kept, probe, gguf=False),
        "comfyui_gguf": _comfyui(before, after, layers_kept, probe, gguf=True),
        "stable_diffusion_cpp": _sdcpp(before, after),
    }


def _diffusers(before: TransformerShape, after: TransformerShape) -> Answer:
    if after.is_stock:
        return "unchanged", "loads.same" if after == before else "loads.stock_shape"
    return "does_not_load", "loads.stock_refuses"


def _comfyui(
    before: TransformerShape, after: TransformerShape, kept: Sequence[int], probe: Sequence[float], *, gguf: bool
) -> Answer:
    if not _is_real(before):
        return "does_not_load", "loads.small_model"
    if after.dim != REAL_DIM:
        return "does_not_load", "loads.comfyui_dim"
    if any(block.heads != after.stock_heads for block in after.blocks):
        return "does_not_load", "loads.comfyui_heads"
    if any(len(after.stack(stack)) != REAL_REFINERS for stack in REFINERS):
        return "does_not_load", "loads.comfyui_refiners"
    if any(block.ffn != after.stock_ffn for block in after.blocks):
        return ("unchanged", "loads.gguf_ffn") if gguf else ("needs_our_loader", "loads.comfyui_ffn")
    return "unchanged", _depth(len(before.stack("layers")), kept, probe)


def _depth(count: int, kept: Sequence[int], probe: Sequence[float]) -> str:
    """ComfyUI looks at the last but one block; dropping blocks may put another one there."""
    if len(kept) == count:
        return "loads.same"
    probed = kept[-2] if len(kept) > 1 else None
    if probed == count - 2:
        return "loads.depth"
    if probed is not None and len(probe) == count and probe[count - 2] >= FLOAT16_SPREAD > probe[probed]:
        return "loads.depth_fp16_flips"
    return "loads.depth_fp16"


def _sdcpp(before: TransformerShape, after: TransformerShape) -> Answer:
    if not _is_real(before):
        return "does_not_load", "loads.small_model"
    if any(block.heads != after.stock_heads for block in after.blocks):
        return "does_not_load", "loads.sdcpp_heads"
    own_width = -(-8 * after.dim // 3 // SDCPP_STEP) * SDCPP_STEP
    if any(block.ffn != own_width for block in after.blocks):
        return "does_not_load", "loads.sdcpp_dim_no" if after.dim != before.dim else "loads.sdcpp_ffn"
    if after.dim != before.dim:
        return "unchanged", "loads.sdcpp_dim"
    return "unchanged", "loads.same" if after == before else "loads.depth_sdcpp"


def _is_real(shape: TransformerShape) -> bool:
    """Whether it is Z-Image at the size that these runtimes know."""
    found = (shape.dim, shape.head_dim, shape.in_channels, shape.caption_width)
    return found == (REAL_DIM, REAL_HEAD_DIM, REAL_CHANNELS, REAL_CAPTION)
