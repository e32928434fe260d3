"""Train the tiny CLIP on drawn pictures and their captions, from nothing.

A batch is made of families: a scene and three that differ from it in one word (Yuksekgonul et al. 2023,
arXiv:2210.01936, call them hard negatives). Without them the loss is low as soon as colours are told apart, and a
wrong shape hardly moves the score.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from scripts.train_tiny.build import build_tokenizer
from zimage_studio.core.drawn.captions import caption
from zimage_studio.core.drawn.drawings import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    PATTERNS,
    POSITIONS,
    Scene,
    is_held_out,
    render,
    sample_scene,
)
from zimage_studio.core.evaluation.clip_score import ClipScorer, build_clip, tokenize

SIDE_PX = 64
CONTEXT = 44
FAMILY = 4
CAPTIONS_EACH = 4
LEARNING_RATE = 1.5e-3
HELD_OUT = 512
LARGEST_SCALE = 4.6  # log of 100, as in CLIP


def clip_config(vocabulary: int) -> dict[str, object]:
    """1.2 M parameters: 3 vision layers over 16 patches, 2 text layers, both 128 wide."""
    return {
        "embed_dim": 96,
        "vision_cfg": {"image_size": SIDE_PX, "patch_size": 16, "width": 128, "head_width": 32, "layers": 3},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": vocabulary, "width": 128, "heads": 4, "layers": 2},
    }


def _other_object(scene: Scene, rng: random.Random) -> Scene:
    first, *rest = scene.things
    return replace(scene, things=(replace(first, name=rng.choice([n for n in OBJECTS if n != first.name])), *rest))


def _other_colour(scene: Scene, rng: random.Random) -> Scene:
    first, *rest = scene.things
    colours = [name for name in COLOURS if name not in (first.colour, scene.background)]
    return replace(scene, things=(replace(first, colour=rng.choice(colours)), *rest))


def _other_background(scene: Scene, rng: random.Random) -> Scene:
    taken = {scene.background, *(thing.colour for thing in scene.things)}
    if scene.pattern == "gradient":
        taken.add("white")  # not drawn: it would look like a gray one
    return replace(scene, background=rng.choice([name for name in BACKGROUNDS if name not in taken]))


def _other_pattern(scene: Scene, rng: random.Random) -> Scene:
    taken = (scene.pattern, "gradient" if scene.background == "white" else "")
    return replace(scene, pattern=rng.choice([pattern for pattern in PATTERNS if pattern not in taken]))


def _other_position(scene: Scene, rng: random.Random) -> Scene:
    if len(scene.things) > 1:  # the two change places
        first, second = scene.things
        swapped = (replace(second, position=first.position), replace(first, position=second.position))
        return replace(scene, things=swapped) if first != second else _other_object(scene, rng)
    (thing,) = scene.things
    return replace(scene, things=(replace(thing, position=rng.choice([p for p in POSITIONS if p != thing.position])),))


ONE_WORD_WRONG: dict[str, Callable[[Scene, random.Random], Scene]] = {
    "object": _other_object,
    "object colour": _other_colour,
    "background colour": _other_background,
    "pattern": _other_pattern,
    "position": _other_position,
}


def family(rng: random.Random) -> list[Scene]:
    """A scene and three others that differ from it in one respect each; none is held out.

    Always one with another object and one with another position: these are learnt last.
    """
    first = sample_scene(rng)
    scenes = [first]
    for name in ("object", "position", rng.choice(("object colour", "background colour", "pattern"))):
        other = ONE_WORD_WRONG[name](first, rng)
        while is_held_out(other):
            other = ONE_WORD_WRONG[rng.choice(list(ONE_WORD_WRONG))](first, rng)
        scenes.append(replace(other, seed=rng.randrange(1 << 30)))
    return scenes


def small_pictures(scenes: list[Scene]) -> Tensor:
    """(N, 3, 64, 64) uint8."""
    halves = [Image.fromarray(render(scene)).resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX) for scene in scenes]
    return torch.from_numpy(np.stack([np.asarray(half) for half in halves])).permute(0, 3, 1, 2).contiguous()


def figures(scorer: ClipScorer, scenes: list[Scene], rng: random.Random, images: list[Image.Image] | None = None,
            captions: list[str] | None = None) -> dict[str, float]:  # fmt: skip
    """Scores on held-out scenes: matched, shuffled, recall at 1 both ways, and with one word of the caption wrong.

    `images` and `captions` default to fresh drawings and complete captions of the scenes, half of them Chinese.
    """
    images = images or [Image.fromarray(render(scene)) for scene in scenes]
    captions = captions or [caption(s, rng, chinese=i % 2 == 1, complete=True) for i, s in enumerate(scenes)]
    cosines_NN = scorer.similarities(images, captions)
    count, right = len(scenes), torch.arange(len(scenes))
    result = {
        "pictures": count,
        "matched": cosines_NN.diagonal().mean().item(),
        "shuffled": ((cosines_NN.sum() - cosines_NN.trace()) / (count * (count - 1))).item(),
        "caption_found_for_picture": (cosines_NN.argmax(1) == right).float().mean().item(),
        "picture_found_for_caption": (cosines_NN.argmax(0) == right).float().mean().item(),
    }
    for name, change in ONE_WORD_WRONG.items():
        wrong = [caption(change(s, rng), rng, chinese=i % 2 == 1, complete=True) for i, s in enumerate(scenes)]
        cosine_N = scorer.similarities(images, wrong).diagonal()
        result[f"wrong_{name.replace(' ', '_')}"] = cosine_N.mean().item()
        result[f"lower_with_wrong_{name.replace(' ', '_')}"] = (cosine_N < cosines_NN.diagonal()).float().mean().item()
    return {key: round(value, 4) for key, value in result.items()}


def train(out: Path, *, steps: int, families: int, pool: int, device: str, again: bool = False) -> None:
    """Write the CLIP to `out/clip` and its figures to `out/clip_log.json`; a batch is `families` x 4 pairs.

    `again` goes on from the CLIP that is there, with other pictures and a new cycle of the learning rate.
    """
    started = time.monotonic()
    seed = 42 if again else 41
    rng, picker = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(41)
    tokenizer = build_tokenizer()
    config = clip_config(len(tokenizer))
    scenes = [scene for _ in range(pool) for scene in family(rng)]
    pictures_PFCHW = small_pictures(scenes).unflatten(0, (pool, FAMILY))
    said = [caption(scene, rng, complete=k == 0) for scene in scenes for k in range(CAPTIONS_EACH)]
    ids_PFKL = tokenize(tokenizer, said, CONTEXT).unflatten(0, (pool, FAMILY, CAPTIONS_EACH))
    print(json.dumps({"pool": len(scenes), "seconds": round(time.monotonic() - started)}), flush=True)
    model = build_clip(config)
    if again:
        weights = load_file(out / "clip" / "model.safetensors")
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    model.to(device)
    adam = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, LEARNING_RATE, steps, pct_start=0.08)
    own = torch.arange(families * FAMILY, device=device)
    for step in range(1, steps + 1):
        picks = torch.randint(0, pool, (families,), generator=picker)
        which = torch.randint(0, CAPTIONS_EACH, (families, FAMILY, 1, 1), generator=picker)
        ids = ids_PFKL[picks].gather(2, which.expand(-1, -1, 1, CONTEXT)).flatten(0, 2).to(device)
        x = pictures_PFCHW[picks].flatten(0, 1).float() / 127.5 - 1
        x = x + 0.06 * torch.rand((), generator=picker) * torch.randn(x.shape, generator=picker)
        image_BD, text_BD = model.encode_image(x.to(device), normalize=True), model.encode_text(ids, normalize=True)
        logits_BB = model.logit_scale.exp() * image_BD @ text_BD.T
        loss = (F.cross_entropy(logits_BB, own) + F.cross_entropy(logits_BB.T, own)) / 2
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, LARGEST_SCALE)
        if step % 50 == 0:
            found = (logits_BB.argmax(1) == own).float().mean().item()
            print(json.dumps({"step": step, "loss": round(loss.item(), 4), "found": round(found, 3)}), flush=True)
    ClipScorer(model.cpu(), tokenizer, config).save(out / "clip")
    unseen_rng = random.Random(10**8)
    unseen = [sample_scene(unseen_rng, held_out=True) for _ in range(HELD_OUT)]
    report = figures(ClipScorer.load(out / "clip"), unseen, unseen_rng)
    before = json.loads((out / "clip_log.json").read_text()) if again else {"steps": 0, "seconds": 0}
    report |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": before["steps"] + steps,
        "seconds": before["seconds"] + round(time.monotonic() - started),
    }
    print(json.dumps(report), flush=True)
    (out / "clip_log.json").write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--families", type=int, default=32)
    parser.add_argument("--pool", type=int, default=4000)
    parser.add_argument("--again", action="store_true", help="go on from the CLIP in OUT")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    train(
        options.out, steps=options.steps, families=options.families, pool=options.pool, device=options.device,
        again=options.again,
    )  # fmt: skip


if __name__ == "__main__":
    main()
