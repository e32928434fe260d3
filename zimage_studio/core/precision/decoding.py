"""The VAE in float32: in float16 it turns whole pictures white."""

from contextlib import ExitStack

import torch
from diffusers import AutoencoderKL

from zimage_studio.core.precision.casting import cast

TILE_PX = 512


def float32_vae(vae: AutoencoderKL, tile_px: int | None, undo: ExitStack) -> None:
    """Compute in float32, above `tile_px` in tiles (0.8 GiB instead of 3 at 1024 px); `undo` takes it back.

    Tiles blend at their edges, so a picture larger than one tile is not the untiled one bit for bit. Tiling that is
    already on keeps its size; None adds none.
    """
    cast(vae, torch.float32, undo)
    if tile_px is None or vae.use_tiling:
        return
    for name in ("use_tiling", "tile_sample_min_size", "tile_latent_min_size"):
        undo.callback(setattr, vae, name, getattr(vae, name))
    vae.tile_sample_min_size = tile_px
    vae.tile_latent_min_size = tile_px // 2 ** (len(vae.config.block_out_channels) - 1)
    vae.use_tiling = True
