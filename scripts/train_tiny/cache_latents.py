"""Stage 2: encode many pictures once, whiten the latents, and write several captions for each."""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts.train_tiny import checkpoint
from scripts.train_tiny.build import build_tokenizer, build_vae, templated
from zimage_studio.core.drawn.captions import caption
from zimage_studio.core.drawn.drawings import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    PATTERNS,
    POSITIONS,
    Scene,
    render,
    sample_scene,
)

SHORT_TOKENS, LONG_TOKENS = 32, 64
CAPTIONS_EACH = 6
CHUNK = 64


@dataclass(frozen=True, slots=True)
class Cache:
    """What the flow stage trains on.

    latents (N, C, h, w) whitened, as the pipeline sees them; tokens and mask (N, K, L) of K captions each, padded to
    L = 64; facts (N, 5): index of object, colour, background, pattern, position of the first thing; empty and
    empty_mask (L) of the empty caption.
    """

    latents: Tensor
    tokens: Tensor
    mask: Tensor
    facts: Tensor
    empty: Tensor
    empty_mask: Tensor

    def save(self, path: Path) -> None:
        """Write to one safetensors file."""
        save_file({name: getattr(self, name) for name in self.__slots__}, path)

    @classmethod
    def load(cls, path: Path) -> "Cache":
        """Read what `save` wrote."""
        return cls(**load_file(path))


def facts_of(scene: Scene) -> tuple[int, int, int, int, int]:
    """What the first thing and the background are, as indices into the grammar's lists."""
    thing = scene.things[0]
    return (
        OBJECTS.index(thing.name),
        list(COLOURS).index(thing.colour),
        list(BACKGROUNDS).index(scene.background),
        PATTERNS.index(scene.pattern),
        list(POSITIONS).index(thing.position),
    )


def fold_whitening(vae: AutoencoderKL, latents_NChw: Tensor) -> Tensor:
    """Make the VAE give latents of zero mean and unit variance per channel, exactly, after the pipeline's affine map.

    The pipeline uses (z - shift_factor) * scaling_factor. The per-channel part goes into quant_conv and
    post_quant_conv; what remains is the scalar pair in the config. Returns the latents as the pipeline sees them.
    """
    channels = latents_NChw.shape[1]
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    mean, std = latents_NChw.mean((0, 2, 3)), latents_NChw.std((0, 2, 3))
    gain = 1 / (std * scale)
    offset = shift - mean * gain
    with torch.no_grad():
        vae.quant_conv.weight[:channels] *= gain[:, None, None, None]
        vae.quant_conv.bias[:channels] = vae.quant_conv.bias[:channels] * gain + offset
        vae.quant_conv.bias[channels:] += 2 * gain.log()
        kernel = vae.post_quant_conv.weight[:, :, 0, 0]
        vae.post_quant_conv.bias -= kernel @ (offset / gain)
        vae.post_quant_conv.weight /= gain[None, :, None, None]
    return (latents_NChw * gain[:, None, None] + offset[:, None, None] - shift) * scale


@torch.no_grad()
def encode(vae: AutoencoderKL, scenes: list[Scene], device: str) -> Tensor:
    """Latent means (N, C, 16, 16), float32, as the VAE gives them."""
    chunks = []
    for start in range(0, len(scenes), CHUNK):
        pixels = np.stack([render(scene) for scene in scenes[start : start + CHUNK]])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        with torch.autocast(device, torch.bfloat16):
            chunks.append(vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean.float().cpu())
    return torch.cat(chunks)


def tokenise(captions: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask (N, 64). Raises ValueError on a caption that is longer."""
    tokenizer = build_tokenizer()
    tokens = tokenizer([templated(tokenizer, text) for text in captions], padding="max_length", max_length=LONG_TOKENS)
    if max(len(row) for row in tokens.input_ids) > LONG_TOKENS:
        raise ValueError(f"A caption is longer than {LONG_TOKENS} tokens.")
    return torch.tensor(tokens.input_ids, dtype=torch.int16), torch.tensor(tokens.attention_mask, dtype=torch.bool)


def build_cache(out: Path, *, count: int, device: str) -> None:
    """Read the VAE's checkpoint, write `vae_final.safetensors` (whitened) and `cache.safetensors`."""
    vae = build_vae()
    checkpoint.load_modules(out / "vae.checkpoint", {"vae": vae})
    vae.eval().to(device, memory_format=torch.channels_last)
    rng = random.Random(21)
    scenes = [sample_scene(rng) for _ in range(count)]
    raw = encode(vae, scenes, device)
    vae.to("cpu")
    latents = fold_whitening(vae, raw)
    checkpoint.save_modules(out / "vae_final.safetensors", {"vae": vae})
    tokens, mask = tokenise([caption(scene, rng) for scene in scenes for _ in range(CAPTIONS_EACH)])
    empty, empty_mask = tokenise([""])
    Cache(
        latents=latents.contiguous(),
        tokens=tokens.unflatten(0, (count, CAPTIONS_EACH)),
        mask=mask.unflatten(0, (count, CAPTIONS_EACH)),
        facts=torch.tensor([facts_of(scene) for scene in scenes]),
        empty=empty[0],
        empty_mask=empty_mask[0],
    ).save(out / "cache.safetensors")


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=18_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    build_cache(options.out, count=options.count, device=options.device)


if __name__ == "__main__":
    main()
