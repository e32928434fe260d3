"""How much further apart the seeds are with variety, and what it costs in following the prompt.

python -m benchmarks.variety [--captions 50] [--seeds 6] [--write docs/refine.md]

On the embedded model: captions never trained on, each drawn with the same seeds at every level. Distance: mean over
pairs of seeds of one caption of the root mean square difference of pixels (0..255). Accuracy: share of pictures in
which the judge finds object and both colours (and position, pattern) as the caption says.
"""

import argparse
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.train_tiny.evaluate import load_pipeline, shares
from zimage_studio.core import sampling
from zimage_studio.core.drawn.captions import caption
from zimage_studio.core.drawn.questions import Question, single_questions, truth
from zimage_studio.core.evaluation.judge import Judge
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.records.progress import silent
from zimage_studio.records.request import GenerationRequest

TINY = Path(__file__).parent.parent / "zimage_studio" / "tiny"
LEVELS = (0.0, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Level:
    """What was measured at one variety."""

    variety: float
    distance: float
    terse_distance: float
    accuracy: dict[str, float]


def measure(captions: int, seeds: int, levels: Sequence[float]) -> list[Level]:
    """Draw and compare. `terse` captions leave out what the complete ones say about place, size and background."""
    pipeline = load_pipeline(TINY / "model")
    pipeline.set_progress_bar_config(disable=True)
    to_rgb, config = LatentToRgb.fit(pipeline.vae), dict(pipeline.scheduler.config)
    judge, questions = Judge.load(TINY / "judge"), single_questions(captions)
    rng = random.Random(1)
    terse = [caption(question.scene, rng, chinese=question.chinese, complete=False) for question in questions]

    def draw(prompt: str, variety: float) -> list[NDArray[np.uint8]]:
        requests = [
            GenerationRequest(prompt=prompt, seed=seed, width=128, height=128, steps=8, guidance=2.0, variety=variety)
            for seed in range(seeds)
        ]
        return [
            sampling.sample(pipeline, request, scheduler_config=config, to_rgb=to_rgb, progress=silent).pixels_HWC
            for request in requests
        ]

    measured = []
    for variety in levels:
        complete = [draw(question.caption, variety) for question in questions]
        short = [draw(prompt, variety) for prompt in terse]
        measured.append(Level(variety, spread(complete), spread(short), accuracy(judge, questions, complete)))
        print(measured[-1], flush=True)
    return measured


def spread(families: Sequence[Sequence[NDArray[np.uint8]]]) -> float:
    """Mean root mean square difference of the pairs within a family."""
    pairs = [pair for family in families for pair in itertools.combinations(family, 2)]
    return float(np.mean([np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)) for a, b in pairs]))


def accuracy(
    judge: Judge, questions: Sequence[Question], families: Sequence[Sequence[NDArray[np.uint8]]]
) -> dict[str, float]:
    """The judge's answers over all pictures."""
    images = [Image.fromarray(pixels) for family in families for pixels in family]
    truths = [truth(question.scene) for question, family in zip(questions, families, strict=True) for _ in family]
    return shares(judge(images), truths)


def table(measured: Sequence[Level]) -> str:
    """Markdown."""
    first = measured[0]
    lines = [
        "| variety | distance between seeds | change | terse captions | change | object, colour | position | pattern |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for level in measured:
        lines.append(
            f"| {level.variety:g} | {level.distance:.2f} | {level.distance / first.distance - 1:+.0%} "
            f"| {level.terse_distance:.2f} | {level.terse_distance / first.terse_distance - 1:+.0%} "
            + "".join(f"| {level.accuracy[name]:.1%} " for name in ("essentials", "position", "pattern"))
            + "|"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--write", type=Path, help="replace the table between the marks in this file")
    options = parser.parse_args()
    text = table(measure(options.captions, options.seeds, LEVELS))
    print(text)
    if options.write is not None:
        page = options.write.read_text("utf-8")
        before, _, rest = page.partition("<!-- table -->\n")
        after = rest.partition("<!-- /table -->")[2]
        marked = f"<!-- table -->\n{options.captions} captions x {options.seeds} seeds.\n\n{text}\n<!-- /table -->"
        options.write.write_text(f"{before}{marked}{after}", "utf-8")


if __name__ == "__main__":
    from zimage_studio.core.torch_environment import prepare_torch

    prepare_torch()
    main()
