"""The embedded model from nothing: `python -m scripts.train_tiny all --out DIR [--preset cpu|gpu|smoke]`.

Stages, each of which can be named alone instead of `all` and which find the work of the earlier ones in DIR:

    vae      the image autoencoder
    latents  pictures encoded once, with their captions
    flow     transformer and text encoder together, constant learning rate
    decay    the same, down to rate zero
    judge    the classifier that measures
    clip     the tiny CLIP that measures
    export   DIR/tiny/model, DIR/tiny/judge, DIR/tiny/clip
    gate     the figures of DIR/evaluation.json, and exit status 1 if they are below target

`vae`, `flow` and `decay` write a checkpoint about every minute and go on from it when started again.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.train_tiny import cache_latents, train_clip, train_flow, train_judge, train_vae
from scripts.train_tiny.evaluate import evaluate
from scripts.train_tiny.export import export

TARGETS = {"essentials": 0.95, "position": 0.95, "pattern": 0.85}
LANGUAGE_SLACK = 0.03


@dataclass(frozen=True, slots=True)
class Preset:
    """Budgets in steps and pictures, never in seconds."""

    vae_steps: int
    vae_batch: int
    vae_pool: int
    pictures: int
    flow_steps: int
    decay_steps: int
    flow_batch: int
    judge_steps: int
    judge_pool: int
    clip_steps: int
    clip_more_steps: int
    clip_pool: int
    questions: int
    variants: int
    pairs: int
    compiled: bool
    gated: bool


PRESETS = {
    "cpu": Preset(
        vae_steps=3000, vae_batch=16, vae_pool=4000, pictures=18_000, flow_steps=1566, decay_steps=650, flow_batch=64,
        judge_steps=1000, judge_pool=8000, clip_steps=900, clip_more_steps=800, clip_pool=3000, questions=500,
        variants=100, pairs=200, compiled=False, gated=True,
    ),
    "gpu": Preset(
        vae_steps=12_000, vae_batch=64, vae_pool=20_000, pictures=100_000, flow_steps=20_000, decay_steps=5000,
        flow_batch=256, judge_steps=3000, judge_pool=30_000, clip_steps=4000, clip_more_steps=2000, clip_pool=12_000,
        questions=500, variants=500, pairs=500, compiled=False, gated=True,
    ),
    "smoke": Preset(
        vae_steps=4, vae_batch=4, vae_pool=32, pictures=64, flow_steps=3, decay_steps=1, flow_batch=4,
        judge_steps=3, judge_pool=64, clip_steps=2, clip_more_steps=1, clip_pool=32, questions=4, variants=0, pairs=2,
        compiled=False, gated=False,
    ),
}  # fmt: skip


def stages(out: Path, preset: Preset, device: str) -> Mapping[str, Callable[[], None]]:
    """The stages in order, ready to be called."""

    def flow(steps: int, decay: int) -> None:
        budget = train_flow.Budget(steps, decay)
        train_flow.train(out, budget=budget, batch=preset.flow_batch, device=device, compiled=preset.compiled)

    def clip() -> None:
        for steps, again in ((preset.clip_steps, False), (preset.clip_more_steps, True)):
            train_clip.train(out, steps=steps, families=32, pool=preset.clip_pool, device=device, again=again)

    return {
        "vae": lambda: train_vae.train(
            out, steps=preset.vae_steps, batch=preset.vae_batch, pool=preset.vae_pool, device=device
        ),
        "latents": lambda: cache_latents.build_cache(out, count=preset.pictures, device=device),
        "flow": lambda: flow(preset.flow_steps, 0),
        "decay": lambda: flow(preset.flow_steps, preset.decay_steps),
        "judge": lambda: train_judge.train(
            out, steps=preset.judge_steps, batch=64, pool=preset.judge_pool, device=device
        ),
        "clip": clip,
        "export": lambda: export(out, out / "tiny", [(128, 128)]),
        "gate": lambda: gate(
            evaluate(out / "tiny", out, count=preset.questions, variants=preset.variants, pairs=preset.pairs),
            enforced=preset.gated,
        ),
    }  # fmt: skip


def shortcomings(default: Mapping[str, Any]) -> list[str]:
    """What is below target in the row of the default setting, in words."""
    found = []
    for name, least in TARGETS.items():
        for group, row, bound in (
            ("all captions", default, least),
            ("English", default["english"], least - LANGUAGE_SLACK),
            ("Chinese", default["chinese"], least - LANGUAGE_SLACK),
        ):
            if row[name] < bound:
                found.append(f"{name} is {row[name]:.3f} for {group}; the target is {bound:.2f}")
    return found


def gate(report: Mapping[str, Any], *, enforced: bool) -> None:
    """Print what is below target; leave with status 1 if that matters."""
    found = shortcomings(report["default"])
    print(json.dumps({"below_target": found}), flush=True)
    if found and enforced:
        sys.exit(1)


def main() -> None:
    """Command line of the whole training."""
    parser = argparse.ArgumentParser(prog="python -m scripts.train_tiny", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("stage", help="all, or one stage")
    parser.add_argument("--out", type=Path, required=True, help="work folder; needs about 2 GB")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    run = stages(options.out, PRESETS[options.preset], options.device)
    if options.stage not in ("all", *run):
        parser.error(f"unknown stage {options.stage!r}; choose all or one of {', '.join(run)}")
    for name, stage in run.items():
        if options.stage in ("all", name):
            print(json.dumps({"stage": name}), flush=True)
            stage()


if __name__ == "__main__":
    main()
