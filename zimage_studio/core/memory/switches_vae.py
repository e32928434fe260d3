"""Switches of the VAE: tiling and slicing."""

from contextlib import ExitStack
from typing import Any

from zimage_studio.core.memory.hooks import set_with_undo
from zimage_studio.core.memory.site import OFF, Answer, Site, applied, idle


def put_tiling(site: Site, undo: ExitStack) -> None:
    """Decode in overlapping tiles.

    diffusers' own default is a tile of the size the VAE was trained at (1024 px): up to there its switch does
    nothing, so the size of the tiles is set first.
    """
    if site.profile.vae_tile_px:
        tile_vae(site.pipeline.vae, site.profile.vae_tile_px, undo)


def tile_vae(vae: Any, tile_px: int, undo: ExitStack) -> None:
    """Tiles of `tile_px` with an overlap of a quarter; `undo` gives back what was set before."""
    set_with_undo(vae, "tile_sample_min_size", tile_px, undo)
    set_with_undo(vae, "tile_latent_min_size", tile_px // factor(vae), undo)
    set_with_undo(vae, "use_tiling", True, undo)


def factor(vae: Any) -> int:
    """Pixels a side for one latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def look_tiling(site: Site, size: tuple[int, int] | None) -> Answer:
    """Whether a picture of `size` is cut at all; without a size, whether tiling is on."""
    vae = site.pipeline.vae
    if not vae.use_tiling:
        return OFF
    tile_px = vae.tile_latent_min_size * factor(vae)
    if size is not None and max(size) <= tile_px:
        return idle("memory.tile.small", width=size[0], height=size[1], value=tile_px)
    return applied("memory.tile.is", value=tile_px)


def put_slicing(site: Site, undo: ExitStack) -> None:
    """diffusers' own switch, which decodes the pictures of a batch one by one."""
    if site.profile.vae_slicing:
        set_with_undo(site.pipeline.vae, "use_slicing", True, undo)


def look_slicing(site: Site) -> Answer:
    """On or off, it acts on batches only, and Studio never makes one."""
    return idle("memory.vae_slicing.single") if site.pipeline.vae.use_slicing else OFF
