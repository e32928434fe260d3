"""Stage 3: transformer and text encoder together, by flow matching on cached latents.

The schedule is warm-up, constant, linear decay, with budgets in steps: `--steps` at a constant rate, then `--decay`
steps down to zero. Both can be raised later: training goes on from the last checkpoint.

Under `torchrun --nproc-per-node N` each process takes its share of the batch and gradients are averaged once a step;
on a busy CPU that is several times as fast as N threads in one process, which wait for each other in every operation.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from scripts.train_tiny import checkpoint
from scripts.train_tiny.build import CAPTION_DIM, build_text_encoder, build_tokenizer, build_transformer
from scripts.train_tiny.cache_latents import LONG_TOKENS, SHORT_TOKENS, Cache
from zimage_studio.core.batched_forward import Layout, forward
from zimage_studio.core.drawn.drawings import BACKGROUNDS, COLOURS, OBJECTS, PATTERNS, POSITIONS
from zimage_studio.core.recovery.muon import Muon

FACT_SIZES = (len(OBJECTS), len(COLOURS), len(BACKGROUNDS), len(PATTERNS), len(POSITIONS))
WARM_UP_STEPS = 60
MUON_RATE, ADAM_RATE = 0.02, 3e-3
EMA = 0.998
CAPTION_DROPOUT = 0.1
NOISE_MEAN, NOISE_STD = 0.3, 1.1
FACT_WEIGHT = 0.05
SAVE_EVERY_S = 60


@dataclass(frozen=True, slots=True)
class Budget:
    """Steps at the constant rate, then steps of linear decay."""

    steps: int
    decay: int

    @property
    def total(self) -> int:
        """All steps."""
        return self.steps + self.decay

    def rate(self, step: int) -> float:
        """Factor on the learning rates at `step`."""
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        return warm if step < self.steps else max(0.0, (self.total - step) / max(1, self.decay))


class Batches:
    """Random batches of one caption length each; about one in twelve has the long captions."""

    def __init__(self, cache: Cache, batch: int, generator: torch.Generator) -> None:
        self._cache, self._batch, self._generator = cache, batch, generator
        long = cache.mask.sum(-1) > SHORT_TOKENS
        self._pairs = {SHORT_TOKENS: (~long).nonzero(), LONG_TOKENS: long.nonzero()}
        self._long_share = float(long.float().mean())

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """latents (B, C, h, w), tokens (B, L), mask (B, L), facts (B, 5; -100 where the caption was dropped)."""
        cache, generator = self._cache, self._generator
        length = LONG_TOKENS if torch.rand((), generator=generator) < self._long_share else SHORT_TOKENS
        pairs = self._pairs[length]
        image, which = pairs[torch.randint(0, len(pairs), (self._batch,), generator=generator)].unbind(1)
        tokens, mask, facts = cache.tokens[image, which].long(), cache.mask[image, which], cache.facts[image]
        dropped = torch.rand(self._batch, generator=generator) < CAPTION_DROPOUT
        tokens[dropped], mask[dropped], facts[dropped] = cache.empty.long(), cache.empty_mask, -100
        return cache.latents[image], tokens[:, :length], mask[:, :length], facts


class FactHeads(nn.Module):
    """Reads object, colour, background, pattern and position off the last word; thrown away after training.

    Makes the text encoder tell words apart early. Without it, words that move few pixels are learnt last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(CAPTION_DIM, size) for size in FACT_SIZES)

    def forward(self, caption_BLE: Tensor, mask_BL: Tensor, facts_B5: Tensor) -> Tensor:
        """Mean cross entropy over the five facts."""
        last = caption_BLE[torch.arange(len(mask_BL)), mask_BL.sum(-1) - 1]
        last = F.rms_norm(last, last.shape[-1:])
        losses = [
            F.cross_entropy(head(last), facts, ignore_index=-100)
            for head, facts in zip(self.heads, facts_B5.T, strict=True)
        ]
        return torch.stack(losses).mean()


def optimisers(text_encoder: nn.Module, transformer: nn.Module, heads: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, modulations, norms and heads.

    The last text encoder layer and its norm never get a gradient (Z-Image reads `hidden_states[-2]`).
    """
    named = [*text_encoder.named_parameters(), *transformer.named_parameters(), *heads.named_parameters()]
    used = [
        (n, p) for n, p in named if not n.startswith("layers.2.self_attn") and n not in ("norm.weight", "x_pad_token")
    ]
    matrices = [p for n, p in used if p.ndim == 2 and ("layers" in n or "refiner" in n) and "adaLN" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for n, p in used if id(p) not in chosen]
    return {
        "muon": Muon(matrices, lr=MUON_RATE),
        "adam": torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    }


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """sigma in (0, 1), logit-normal (Esser et al. 2024, arXiv:2403.03206), leaning towards noise."""
    return torch.sigmoid(torch.randn(count, generator=generator) * NOISE_STD + NOISE_MEAN)


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that is trained, its average, and how the transformer is called."""

    modules: dict[str, nn.Module]
    averaged: dict[str, nn.Module]
    layouts: dict[int, Layout]
    predict: Callable[..., Tensor]

    @classmethod
    def build(cls, device: str, *, compiled: bool) -> "Parts":
        """Untrained, on `device`. The averages are modules too, named `ema_...`, so that checkpoints hold them."""
        tokenizer = build_tokenizer()
        text_encoder = build_text_encoder(len(tokenizer), tokenizer.pad_token_id).to(device)
        transformer, heads = build_transformer().to(device), FactHeads().to(device)
        averaged = {"text_encoder": copy.deepcopy(text_encoder), "transformer": copy.deepcopy(transformer)}
        modules = {"text_encoder": text_encoder, "transformer": transformer, "heads": heads}
        modules |= {f"ema_{name}": module for name, module in averaged.items()}
        layouts = {length: Layout.of(transformer, length, 16, 16) for length in (SHORT_TOKENS, LONG_TOKENS)}
        return cls(modules, averaged, layouts, torch.compile(forward, dynamic=False) if compiled else forward)

    def losses(self, batch: tuple[Tensor, ...], generator: torch.Generator, device: str) -> tuple[Tensor, Tensor]:
        """(what is minimised, its flow-matching part) for one batch, with fresh noise."""
        latents, tokens, mask, facts = (part.to(device) for part in batch)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        sigma = noise_levels(len(latents), generator).to(device)
        level = sigma[:, None, None, None]
        noisy = (1 - level) * latents + level * noise
        with torch.autocast(device, torch.bfloat16):
            encoded = self.modules["text_encoder"](input_ids=tokens, attention_mask=mask, output_hidden_states=True)
            caption = encoded.hidden_states[-2]
            layout = self.layouts[tokens.shape[1]]
            predicted = self.predict(self.modules["transformer"], noisy, 1 - sigma, caption, mask, layout)
        flow = F.mse_loss(predicted.float(), latents - noise)
        return flow + FACT_WEIGHT * self.modules["heads"](caption.float(), mask, facts), flow


def update(steppers: dict[str, torch.optim.Optimizer], factor: float, world: int) -> None:
    """One optimiser step at `factor` of the full rates, with gradients averaged over `world` processes."""
    for stepper, rate in (("muon", MUON_RATE), ("adam", ADAM_RATE)):
        steppers[stepper].param_groups[0]["lr"] = rate * factor
    trained = [p for group in steppers.values() for p in group.param_groups[0]["params"]]
    if world > 1:
        average_gradients(trained, world)
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    for optimiser in steppers.values():
        optimiser.step()
        optimiser.zero_grad()


def train(out: Path, *, budget: Budget, batch: int, device: str, compiled: bool) -> None:
    """Train to the end of `budget`, from nothing or from the last checkpoint in `out`."""
    torch.manual_seed(0)
    parts = Parts.build(device, compiled=compiled)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    generator = torch.Generator().manual_seed(100)
    steppers = optimisers(*(parts.modules[name] for name in ("text_encoder", "transformer", "heads")))
    step, log = checkpoint.resume(out / "flow.checkpoint", parts.modules, steppers, generator)
    if rank:
        generator.manual_seed(100 + 7919 * rank + step)
    batches = Batches(Cache.load(out / "cache.safetensors"), batch // world, generator)
    before = log[-1]["seconds"] if log else 0.0
    started, saved, losses = time.monotonic(), time.monotonic(), []
    while step < budget.total:
        loss, flow = parts.losses(batches.draw(), generator, device)
        loss.backward()
        update(steppers, budget.rate(step), world)
        step += 1
        follow(parts.averaged, parts.modules, min(EMA, 1 - 1 / (step / 6 + 1)))
        losses.append(float(flow.detach()))
        if rank:
            continue
        if step % 50 == 0:
            seconds = round(before + time.monotonic() - started, 1)
            log.append({"step": step, "loss": sum(losses) / len(losses), "seconds": seconds, "images": step * batch})
            losses = []
            print(json.dumps(log[-1]), flush=True)
        if time.monotonic() - saved > SAVE_EVERY_S or step == budget.total:
            saved = time.monotonic()
            checkpoint.save(out / "flow.checkpoint", parts.modules, steppers, generator, step, log)
            checkpoint.save_modules(out / "flow.ema.safetensors", parts.averaged)
            (out / "flow_log.json").write_text(json.dumps(log))


def average_gradients(params: list[nn.Parameter], world: int) -> None:
    """Mean of the gradients over all processes, in one message. A parameter that got none counts as zero."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for param, part in zip(params, (flat / world).split([g.numel() for g in gradients]), strict=True):
        param.grad = part.view_as(param)


@torch.no_grad()
def follow(averaged: dict[str, nn.Module], modules: dict[str, nn.Module], keep: float) -> None:
    """Exponential moving average of the weights."""
    for name, average in averaged.items():
        torch._foreach_lerp_(list(average.parameters()), list(modules[name].parameters()), 1 - keep)


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--decay", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile the transformer (needs a C compiler)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # gradients start at zero; denormal numbers are many times slower on a CPU. Here, for it holds for a whole process
    torch.set_flush_denormal(True)
    if "RANK" in os.environ:
        dist.init_process_group("gloo" if options.device == "cpu" else "nccl")
    train(
        options.out, budget=Budget(options.steps, options.decay), batch=options.batch, device=options.device,
        compiled=options.compile,
    )  # fmt: skip


if __name__ == "__main__":
    main()
