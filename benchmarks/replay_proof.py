"""The promise of replay, proved: 100 varied images, made again in a new process from nothing but their files.

    python -m benchmarks.replay_proof [--write docs/replay.md] [--spoil N]

One process makes the images on the embedded model through the services. A second one, with an empty data folder, is
handed the PNG files, in another order, and replays each. Then the pixels of every pair of files are compared. The exit
status is 1 when one pair differs; `--spoil N` changes N originals first, to see that it can be.
"""

import argparse
import hashlib
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zimage_studio.core.metadata.png import read_own_recipe, read_texts, write_png
from zimage_studio.records.progress import silent
from zimage_studio.records.recipe import Recipe
from zimage_studio.services.replay import read_original
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings

IMAGES = 100
PATIENCE_S = 600
TABLE = re.compile(r"(<!-- proof -->\n).*(<!-- end of proof -->)", re.DOTALL)
PROMPTS = ("a red circle", "a blue star on the left", "two green triangles", "a yellow square above a white ring")
CHINESE = ("一个红色的圆", "左边的蓝色星星", "两个绿色的三角形，白色背景", "黄色的正方形在白色圆环上面")
FROM = "from"
"""In a plan: the place of the image to start from among those made before."""


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that vary one thing; `varied` says what, for the table."""

    name: str
    varied: str
    requests: Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Pair:
    """One image: its group, its file, the file of its replay, and what the service said."""

    group: str
    original: Path
    replayed: Path
    verdict: str

    def identical(self) -> bool:
        """Whether the service says so and the files hold the same pixels and the same final latent."""
        same_pixels = _pixels_sha256(self.original) == _pixels_sha256(self.replayed)
        recipes = [read_own_recipe(path) for path in (self.original, self.replayed)]
        same_latents = len({recipe.outcome.latents_sha256 for recipe in recipes if recipe}) == 1
        return self.verdict == "identical" and same_pixels and same_latents


def plan() -> list[Group]:
    """100 images in all; the same each time."""
    pick = random.Random(2024)

    def each(**lists: Sequence[object]) -> list[dict[str, object]]:
        """One request for each place in the lists, with a prompt and a seed of its own where none is listed."""
        rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
        return [{"prompt": pick.choice(PROMPTS), "seed": pick.randrange(2**32), **row} for row in rows]

    widths, heights = (64, 80, 96, 128, 128, 128, 192, 256, 144, 512), (64, 96, 64, 128, 64, 208, 192, 128, 160, 64)
    everything = each(
        prompt=CHINESE[:3],
        negative_prompt=("模糊", "blurry, dark", "红色"),
        steps=(5, 11, 3),
        guidance=(1.5, 3.25, 0.5),
        shift=(1.0, 6.0, 4.5),
        width=(160, 64, 128),
        height=(96, 128, 128),
        variety=(0.3, 0.7, 1.0),
        variations=([{"seed": 5, "strength": 0.4}],) * 3,
        source=({FROM: 7}, {FROM: 30}, {FROM: 60}),
        strength=(0.5, 0.8, 0.3),
    )
    return [
        Group("size", "64x64 to 512x64, square, wide and tall", each(width=widths, height=heights)),
        Group("steps", "1 to 40", each(steps=(1, 2, 3, 5, 8, 13, 21, 40))),
        Group("guidance", "off, below 1, fractions, 20", each(guidance=(0, 0.1, 0.5, 1, 1.75, 4, 7.5, 20))),
        Group("shift", "0.1 to 20, and the model's own", each(shift=(0.1, 0.5, 1, 2.5, 3, 6, 12, 20))),
        Group(
            "negative prompt",
            "English and Chinese, with guidance on and off",
            each(
                negative_prompt=("blurry", "red, green", "模糊，低质量", "a circle", "x", "蓝色"),
                guidance=(2, 4, 2, 0, 1, 3),
            ),
        ),
        Group(
            "Chinese and other texts",
            "Chinese, both languages in one, emoji, line breaks, one letter, 180 words",
            each(
                prompt=(*CHINESE, "红色 red circle 圆", "a 🔴 on a 🟦", "a\nred\n\ncircle", "x", "a red circle, " * 60)
            ),
        ),
        Group("seed", "0, around 2^32, 2^53 and 2^64", each(seed=(0, 1, 2**32, 2**53 + 1, 2**63, 2**64 - 1))),
        Group(
            "several at once",
            "batches of 2 to 5 images; each is replayed alone",
            each(count=(2, 3, 4, 5), seed=(9, 2**64 - 2, 40, 50)),
        ),
        Group(
            "variations",
            "one and several variation seeds, strengths 0.05 to 1",
            [
                *each(variation_seed=(1, 2, 3, 4), variation_strength=(0.05, 0.3, 0.8, 1)),
                *each(variations=([{"seed": 1, "strength": 0.2}, {"seed": 2, "strength": 0.5}],) * 2),
                *each(variation_seed=(7,), variation_strength=(0.25,), count=(3,)),
            ],
        ),
        Group("variety", "0.1 to 1", each(variety=(0.1, 0.25, 0.5, 0.75, 0.9, 1.0), steps=(8, 4, 8, 12, 8, 2))),
        Group(
            "image to image",
            "from another image at strengths 0.1 to 1, also enlarged and cut",
            each(
                source=({FROM: 3}, {FROM: 5}, {FROM: 12}, {FROM: 20}, {FROM: 33}, {FROM: 41}, {FROM: 50}, {FROM: 70}),
                strength=(0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 1.0, 0.35),
                width=(128, 128, 256, 192, 128, 64, 128, 224),
                height=(128, 128, 256, 128, 160, 64, 128, 224),
            ),
        ),
        Group("everything together", "all of the above in one request", everything),
        Group("the defaults", "a prompt and a seed", each(seed=range(100, 105))),
    ]


@contextmanager
def running(data: Path) -> Iterator[Studio]:
    """A Studio of its own on the embedded model."""
    studio = build_studio(Settings(data=data, offline=True))
    studio.start()
    try:
        yield studio
    finally:
        studio.begin_stop()
        studio.finish(PATIENCE_S)
        studio.close()


def make(data: Path) -> list[dict[str, str]]:
    """First process: make the images of the plan. Returns group and file of each."""
    made: list[dict[str, str]] = []
    hashes: list[str] = []
    with running(data) as studio:
        for group in plan():
            for wanted in group.requests:
                values = dict(wanted)
                if isinstance(start := values.get("source"), Mapping):
                    values["source"] = hashes[start[FROM]]
                for image in studio.generation.submit(values, model="tiny").result(PATIENCE_S):
                    made.append({"group": group.name, "original": str(image.path)})
                    hashes.append(image.recipe.outcome.pixels_sha256)
    return made


def replay(data: Path, made: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Second process: make each again from its file, in another order. Start pictures are handed in as files too."""
    order = random.Random(7).sample(list(made), len(made))
    done: list[dict[str, str]] = []
    with running(data) as studio:
        for entry in made:
            studio.sources.keep(Path(entry["original"]))
        for entry in order:
            original = read_original(Path(entry["original"]))
            (image,) = studio.replay.start(original, silent, session="proof").result(PATIENCE_S)
            verdict = studio.replay.verdict(original, image).verdict
            done.append({**entry, "replayed": str(image.path), "verdict": verdict})
    return done


def in_new_process(step: str, data: Path, given: object) -> list[dict[str, str]]:
    """Run `make` or `replay` in a Python of its own."""
    command = [sys.executable, "-m", "benchmarks.replay_proof", "--step", step, "--data", str(data)]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def spoil(path: Path) -> None:
    """Change one pixel and record its hash, so that the file is sound and its promise is not."""
    recipe = read_own_recipe(path)
    if recipe is None:
        raise ValueError(f"{path} has no recipe")
    with Image.open(path) as image:
        pixels_HWC = np.array(image)
    pixels_HWC[0, 0, 0] ^= 1
    data = recipe.to_dict()
    data["outcome"] = {**_outcome(recipe), "pixels_sha256": hashlib.sha256(pixels_HWC.tobytes()).hexdigest()}
    path.write_bytes(write_png(pixels_HWC, Recipe.from_json(json.dumps(data))))


def _outcome(recipe: Recipe) -> dict[str, object]:
    return json.loads(recipe.to_json())["outcome"]


def _pixels_sha256(path: Path) -> str:
    with Image.open(path) as image:
        return hashlib.sha256(np.ascontiguousarray(np.asarray(image.convert("RGB"))).tobytes()).hexdigest()


def table(pairs: Sequence[Pair]) -> str:
    """Markdown: how many of each group are identical, and on what."""
    varied = {group.name: group.varied for group in plan()}
    lines = ["| varied | how | images | identical |", "|---|---|---|---|"]
    for name, how in varied.items():
        group = [pair.identical() for pair in pairs if pair.group == name]
        lines.append(f"| {name} | {how} | {len(group)} | {sum(group)} of {len(group)} |")
    same = sum(pair.identical() for pair in pairs)
    lines.append(f"| **all** | | **{len(pairs)}** | **{same} of {len(pairs)}** |")
    return "\n".join([*lines, "", f"Made on: {stack(pairs[0].original)}."])


def stack(path: Path) -> str:
    """What the images were made on, from the recipe of one of them."""
    recipe = json.loads(read_texts(path)["zimage_studio"])
    versions = [f"{name} {version}" for name, version in recipe["stack"].items() if name not in ("platform", "cpu")]
    numerics = recipe["numerics"]
    precision = "/".join(sorted(set(numerics["dtypes"].values())))
    device = f"{numerics['device']} ({platform.system()}, {platform.machine()}, {recipe['stack']['cpu']}), {precision}"
    return f"{', '.join(versions)}; {device}; model {recipe['model']['sha256'][:16]}"


def prove(work: Path, spoiled: int) -> list[Pair]:
    """Make, spoil, replay."""
    made = in_new_process("make", work / "made", None)
    if len(made) != IMAGES:
        raise ValueError(f"the plan makes {len(made)} images instead of {IMAGES}")
    for entry in made[:spoiled]:
        spoil(Path(entry["original"]))
    done = in_new_process("replay", work / "replayed", made)
    by_file = {entry["original"]: entry for entry in done}
    ordered = [by_file[entry["original"]] for entry in made]
    return [Pair(e["group"], Path(e["original"]), Path(e["replayed"]), e["verdict"]) for e in ordered]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="put the table between the marks in this page")
    parser.add_argument("--spoil", type=int, default=0, metavar="N", help="change N originals first")
    parser.add_argument("--step", choices=["make", "replay"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        given = json.loads(sys.stdin.read())
        print(json.dumps(make(arguments.data) if arguments.step == "make" else replay(arguments.data, given)))
        return
    with tempfile.TemporaryDirectory() as work:
        pairs = prove(Path(work), arguments.spoil)
        text = table(pairs)
        broken = [pair for pair in pairs if not pair.identical()]
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(TABLE.sub(lambda marks: f"{marks[1]}{text}\n{marks[2]}", page), encoding="utf-8")
    if broken:
        sys.exit(f"{len(broken)} of {len(pairs)} are not identical: {', '.join(pair.group for pair in broken)}")


if __name__ == "__main__":
    main()
