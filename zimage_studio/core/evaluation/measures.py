"""What is asked of every picture, by whom, and what cannot be asked here and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zimage_studio.core.comparison import distance
from zimage_studio.core.drawn.questions import Question, truth
from zimage_studio.core.evaluation.clip_score import ClipScorer
from zimage_studio.core.evaluation.judge import QUESTIONS, Judge
from zimage_studio.core.evaluation.open_clip_score import load_open_clip
from zimage_studio.core.evaluation.perceptual import FILE as LPIPS_FILE
from zimage_studio.core.evaluation.perceptual import judge_distance, load_lpips
from zimage_studio.core.evaluation.reward import PACKAGE as REWARD_PACKAGE
from zimage_studio.core.evaluation.reward import load_image_reward
from zimage_studio.core.evaluation.world import World, questions_for
from zimage_studio.errors import ModelError
from zimage_studio.records.report import Better, EvaluationRequest, NotMeasured

Pictures = Sequence[Image.Image]
Scores = list[float | None]


@dataclass(frozen=True, slots=True)
class Measure:
    """One number for each picture. `score` gets the pictures, the parent's pictures and the prompts.

    `to_parent` marks distances to the parent's picture. None stands for "does not apply to this prompt"; for PSNR for
    "equal".
    """

    name: str
    unit: str
    better: Better
    source: str
    score: Callable[[Pictures, Pictures, Sequence[str]], Scores]
    to_parent: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, and what is not."""

    measures: tuple[Measure, ...]
    not_measured: tuple[NotMeasured, ...]


def bench(
    request: EvaluationRequest, prompts: Sequence[str], world: World | None, *, device: str, offline: bool
) -> Bench:
    """All that can be asked here. `world` is the embedded model's where the models live in it."""
    found: list[Measure] = [_psnr(), _ssim()]
    missing: list[NotMeasured] = []
    for make in (_perceptual, _judge, _clip, _hps, _image_reward):
        measures, without = make(request, prompts, world, device, offline)
        found += measures
        missing += without
    return Bench(tuple(found), tuple(missing))


Made = tuple[list[Measure], list[NotMeasured]]


# --- distances ------------------------------------------------------------------------------------------------------


def _psnr() -> Measure:
    def score(pictures: Pictures, parents: Pictures, _prompts: Sequence[str]) -> Scores:
        return [distance(np.asarray(a), np.asarray(b)).psnr_db for a, b in zip(pictures, parents, strict=True)]

    return Measure("psnr_db", "dB", "higher", "", score, to_parent=True)


def _ssim() -> Measure:
    def score(pictures: Pictures, parents: Pictures, _prompts: Sequence[str]) -> Scores:
        return [distance(np.asarray(a), np.asarray(b)).ssim for a, b in zip(pictures, parents, strict=True)]

    return Measure("ssim", "", "higher", "scikit-image", score, to_parent=True)


def _perceptual(
    request: EvaluationRequest, _prompts: Sequence[str], world: World | None, _device: str, _offline: bool
) -> Made:
    measures: list[Measure] = []
    if world is not None:
        apart = judge_distance(Judge.load(world.judge))
        measures.append(
            Measure(
                "judge_distance",
                "",
                "lower",
                "embedded judge, features",
                lambda a, b, _: list(apart(a, b)),
                to_parent=True,
            )
        )
    if not request.lpips:
        return measures, [NotMeasured(name="lpips", reason="report.why.lpips", values={"file": LPIPS_FILE})]
    try:
        lpips = load_lpips(Path(request.lpips).expanduser())
    except ModelError as error:
        return measures, [_because("lpips", error)]
    measures.append(
        Measure("lpips", "", "lower", "LPIPS, AlexNet 0.1", lambda a, b, _: list(lpips(a, b)), to_parent=True)
    )
    return measures, []


# --- answers --------------------------------------------------------------------------------------------------------


def _judge(
    _request: EvaluationRequest, prompts: Sequence[str], world: World | None, _device: str, _offline: bool
) -> Made:
    names = ("judge_accuracy", "judge_all_right")
    if world is None:
        return [], [NotMeasured(name=names[0], reason="report.why.other_world")]
    questions = questions_for(prompts)
    if not any(questions):
        return [], [NotMeasured(name=names[0], reason="report.why.no_answers")]
    judge, source = Judge.load(world.judge), "embedded judge"

    def share(pictures: Pictures, _parents: Pictures, _prompts: Sequence[str]) -> Scores:
        return answered(judge, pictures, questions)

    def whole(pictures: Pictures, _parents: Pictures, _prompts: Sequence[str]) -> Scores:
        return [None if s is None else float(s == 1) for s in answered(judge, pictures, questions)]

    return [Measure(names[0], "", "higher", source, share), Measure(names[1], "", "higher", source, whole)], []


def answered(judge: Judge, pictures: Pictures, questions: Sequence[Question | None]) -> Scores:
    """Share of the judge's five answers that are right, for each picture; None where no answer is known."""
    shares: Scores = []
    for verdict, question in zip(judge(pictures), questions, strict=True):
        if question is None:
            shares.append(None)
            continue
        right = truth(question.scene)
        shares.append(sum(getattr(verdict, q) == getattr(right, q) for q in QUESTIONS) / len(QUESTIONS))
    return shares


# --- scores ---------------------------------------------------------------------------------------------------------


def _clip(request: EvaluationRequest, _prompts: Sequence[str], world: World | None, device: str, offline: bool) -> Made:
    if request.clip:
        return _open_clip("clip_score", request.clip, device, offline)
    if world is None:
        return [], [NotMeasured(name="clip_score", reason="report.why.no_clip")]
    scorer = ClipScorer.load(world.clip)

    def score(pictures: Pictures, _parents: Pictures, prompts: Sequence[str]) -> Scores:
        return [float(cosine) for cosine in scorer.similarities(pictures, prompts).diagonal()]

    return [Measure("clip_score", "", "higher", "embedded CLIP (drawn world only)", score)], []


def _hps(request: EvaluationRequest, _prompts: Sequence[str], _world: World | None, device: str, offline: bool) -> Made:
    if not request.hps:
        return [], [NotMeasured(name="hps_v2", reason="report.why.hps")]
    return _open_clip("hps_v2", request.hps, device, offline)


def _open_clip(name: str, source: str, device: str, offline: bool) -> Made:
    try:
        scorer = load_open_clip(source, device=device, offline=offline)
    except ModelError as error:
        return [], [_because(name, error)]
    return [Measure(name, "", "higher", scorer.name, lambda a, _, prompts: list(scorer.score(a, prompts)))], []


def _image_reward(
    request: EvaluationRequest, _prompts: Sequence[str], _world: World | None, device: str, _offline: bool
) -> Made:
    name = "image_reward"
    if not request.image_reward:
        return [], [NotMeasured(name=name, reason="report.why.image_reward", values={"package": REWARD_PACKAGE})]
    try:
        scorer = load_image_reward(Path(request.image_reward).expanduser(), device=device)
    except ModelError as error:
        return [], [_because(name, error)]
    return [Measure(name, "", "higher", "ImageReward 1.0", lambda a, _, prompts: list(scorer.score(a, prompts)))], []


def _because(name: str, error: ModelError) -> NotMeasured:
    values = {key: value if isinstance(value, int | float) else str(value) for key, value in error.values.items()}
    return NotMeasured(name=name, reason=error.key, values=values)
