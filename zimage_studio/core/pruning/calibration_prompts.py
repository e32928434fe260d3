"""Prompts to calibrate with where nobody names any: of the model's own world, and not those it is judged by."""

import random
from pathlib import Path

from zimage_studio.core.drawn.captions import caption
from zimage_studio.core.drawn.drawings import sample_scene
from zimage_studio.core.evaluation.prompts import PROMPTS
from zimage_studio.core.evaluation.world import World


def calibration_prompts(folder: Path, count: int, seed: int) -> tuple[str, ...]:
    """`count` prompts: captions of scenes that are not held out for the embedded model and what was made from it.

    For others the bundled prompts from the last to the first: an evaluation of few prompts takes the first ones.
    """
    if World().holds(folder):
        rng = random.Random(f"calibration {seed}")
        return tuple(caption(sample_scene(rng, held_out=False), rng) for _ in range(count))
    return tuple(PROMPTS[-1 - i % len(PROMPTS)] for i in range(count))
