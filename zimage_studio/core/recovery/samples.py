"""Sample pictures while training: the same prompts and seeds each time."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from zimage_studio.core.recovery.preparation import WORDLESS, Prepared, generator_from
from zimage_studio.core.recovery.trajectories import Predict, follow
from zimage_studio.core.whole_folder import flush


class Samples:
    """Draws the prompts of the index into `folder`, as `NAME-NUMBER.png`."""

    def __init__(self, folder: Path, prepared: Prepared, vae: AutoencoderKL, seed: int) -> None:
        self._folder, self._prepared, self._vae = folder, prepared, vae
        index = prepared.index
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        shape = (vae.config.latent_channels, index.height // factor, index.width // factor)
        numbers = range(len(index.samples))
        self._noise = [torch.randn(shape, generator=generator_from(seed, "sample", number)) for number in numbers]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def draw(self, predict: Predict, name: str) -> list[Path]:
        """One picture a prompt."""
        if not self._noise:
            return []
        captions = [self._prepared.caption(number) for number in self._prepared.index.samples]
        wordless = self._prepared.caption(WORDLESS)
        *_, last = follow(predict, self._prepared.sampler, torch.stack(self._noise), captions, wordless)
        config = self._vae.config
        latents = last.latents_BCHW.to(self._vae.device, self._vae.dtype) / config.scaling_factor + config.shift_factor
        self._folder.mkdir(parents=True, exist_ok=True)
        return [
            self._save(self._vae.decode(latent[None]).sample[0], f"{name}-{n}.png") for n, latent in enumerate(latents)
        ]

    def _save(self, picture_CHW: torch.Tensor, name: str) -> Path:
        levels = (picture_CHW.float().clamp(-1, 1).add(1).mul(127.5)).round().nan_to_num(0).byte()
        path, beside = self._folder / name, self._folder / f".{name}.partial"
        Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())).save(beside, "PNG")
        flush(beside)
        beside.replace(path)
        return path
