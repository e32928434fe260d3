"""Train the judge on fresh drawings: one object each, roughened so that it does not depend on perfect pixels.

A quarter of the pictures has been through the VAE when there is one, for the pictures it will judge come out of it.
The judge never sees a generated picture.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scripts.train_tiny import checkpoint
from scripts.train_tiny.build import build_vae
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
from zimage_studio.core.drawn.questions import truth
from zimage_studio.core.evaluation.judge import QUESTIONS, Judge, JudgeNetwork

ANSWERS: dict[str, tuple[str, ...]] = dict(
    zip(QUESTIONS, (OBJECTS, tuple(COLOURS), tuple(BACKGROUNDS), PATTERNS, tuple(POSITIONS)), strict=True)
)
CHANNELS = (16, 32, 48, 64, 96)
LEARNING_RATE = 3e-3
HELD_OUT = 1000


def labels(scene: Scene) -> list[int]:
    """`truth` as indices into `ANSWERS`."""
    verdict = truth(scene)
    return [ANSWERS[question].index(getattr(verdict, question)) for question in QUESTIONS]


def draw(rng: random.Random, count: int) -> tuple[Tensor, Tensor, list[Scene]]:
    """Pictures (N, 3, 128, 128) uint8, labels (N, 5), scenes; held-out combinations included."""
    scenes = [sample_scene(rng, two_share=0.0, held_out=None) for _ in range(count)]
    pixels: NDArray[np.uint8] = np.stack([render(scene) for scene in scenes])
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return pictures, torch.tensor([labels(scene) for scene in scenes]), scenes


@torch.no_grad()
def through_vae(vae: AutoencoderKL, pictures: Tensor, device: str, *, noise: float = 0.1) -> Tensor:
    """Reconstructions of uint8 pictures from slightly noisy latents, uint8."""
    chunks = []
    for chunk in pictures.split(32):
        mean = vae.encode(chunk.float().to(device) / 127.5 - 1).latent_dist.mean
        y = vae.decode(mean + noise * mean.std() * torch.randn_like(mean)).sample
        chunks.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().cpu())
    return torch.cat(chunks)


def roughen(x: Tensor, noise: torch.Generator) -> Tensor:
    """Noise of random strength; half of the batches also lose sharpness."""
    strength = 0.12 * torch.rand(len(x), 1, 1, 1, generator=noise)
    x = x + strength * torch.randn(x.shape, generator=noise)
    if torch.rand((), generator=noise) < 0.5:
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    return x


def accuracy(judge: Judge, pictures: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of right answers by question, and of pictures with all five right."""
    images = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in pictures]
    pairs = list(zip(judge(images), map(truth, scenes), strict=True))
    shares = {q: sum(getattr(a, q) == getattr(b, q) for a, b in pairs) / len(pairs) for q in QUESTIONS}
    return shares | {"all": sum(a == b for a, b in pairs) / len(pairs)}


def train(out: Path, *, steps: int, batch: int, pool: int, device: str) -> None:
    """Write the judge to `out/judge` and its figures to `out/judge_log.json`."""
    started = time.monotonic()
    rng, noise = random.Random(31), torch.Generator().manual_seed(31)
    torch.manual_seed(31)
    pictures, answers_NQ, _ = draw(rng, pool)
    fresh, _, fresh_scenes = draw(random.Random(10**7), HELD_OUT)
    vae = None
    if (out / "vae_final.safetensors").exists():
        vae = build_vae()
        checkpoint.load_modules(out / "vae_final.safetensors", {"vae": vae})
        vae = vae.eval().to(device)
        quarter = pool // 4
        pictures[:quarter] = through_vae(vae, pictures[:quarter], device)
    network = JudgeNetwork(ANSWERS, CHANNELS).to(device)
    adam = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, LEARNING_RATE, steps, pct_start=0.1)
    for step in range(1, steps + 1):
        picks = torch.randint(0, pool, (batch,), generator=noise)
        x = roughen(pictures[picks].float() / 127.5 - 1, noise).to(device)
        logits = network(x)
        target_BQ = answers_NQ[picks].to(device)
        loss = sum((F.cross_entropy(logits[q], target_BQ[:, i]) for i, q in enumerate(QUESTIONS)), x.new_zeros(()))
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        if step % 100 == 0:
            print(json.dumps({"step": step, "loss": round(loss.item(), 4)}), flush=True)
    Judge(network.cpu(), ANSWERS, CHANNELS).save(out / "judge")
    judge = Judge.load(out / "judge")
    figures = {
        "pictures": HELD_OUT,
        "fresh": accuracy(judge, fresh, fresh_scenes),
        "through_vae": accuracy(judge, through_vae(vae, fresh, device), fresh_scenes) if vae else None,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(figures), flush=True)
    (out / "judge_log.json").write_text(json.dumps(figures, indent=2) + "\n")


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pool", type=int, default=12_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    train(options.out, steps=options.steps, batch=options.batch, pool=options.pool, device=options.device)


if __name__ == "__main__":
    main()
