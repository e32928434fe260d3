"""Captions that were never trained on, with the answer that a perfect judge gives on a picture of each."""

import random
from dataclasses import dataclass

from zimage_studio.core.drawn.captions import caption
from zimage_studio.core.drawn.drawings import Scene, sample_scene
from zimage_studio.core.evaluation.judge import Verdict

SINGLES_SEED, PAIRS_SEED = 2_000_000, 3_000_000


@dataclass(frozen=True, slots=True)
class Question:
    """A scene that was never trained on and a caption of it."""

    scene: Scene
    caption: str
    chinese: bool


def single_questions(count: int) -> list[Question]:
    """Held-out scenes of one object; every other caption is Chinese, each says everything that is asked about."""
    return _questions(random.Random(SINGLES_SEED), count, two_share=0.0)


def pair_questions(count: int) -> list[Question]:
    """Held-out scenes of two objects."""
    return _questions(random.Random(PAIRS_SEED), count, two_share=1.0)


def _questions(rng: random.Random, count: int, *, two_share: float) -> list[Question]:
    questions = []
    for index in range(count):
        scene, chinese = sample_scene(rng, two_share=two_share, held_out=True), index % 2 == 1
        questions.append(Question(scene, caption(scene, rng, chinese=chinese, complete=True), chinese))
    return questions


def truth(scene: Scene) -> Verdict:
    """The verdict that a perfect judge gives on a scene of one object."""
    (thing,) = scene.things
    return Verdict(thing.name, thing.colour, scene.background, scene.pattern, thing.position)
