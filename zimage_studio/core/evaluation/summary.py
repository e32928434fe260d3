"""From one number for each picture to the lines of the card: means, and the intervals that hold the true ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zimage_studio.core.evaluation.bootstrap import Interval, interval
from zimage_studio.core.evaluation.measures import Measure
from zimage_studio.records.report import Column, Metric, Target, TargetName

PEAK_SQUARED = 255.0**2
SIZE_BOUND, TIME_BOUND, CLIP_BOUND = 0.7, 0.5, 0.1
"""Targets published with an earlier compression of this model family: 30 % smaller, half the time, CLIP down 0.1."""

Values_N = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Resampling:
    """How often and from which seed; `levels` is how many numbers a picture holds."""

    resamples: int
    seed: int
    levels: int = 1

    def interval(self, values_N: Values_N) -> Interval | None:
        """Of the mean; None where there is too little."""
        return interval(values_N, resamples=self.resamples, seed=self.seed) if len(values_N) > 1 else None


def summarise(measure: Measure, scores: Mapping[Column, Sequence[float | None]], how: Resampling) -> Metric:
    """The line of `measure`. `scores` has a list for each column that was drawn, one entry for each picture."""
    if measure.name == "psnr_db":
        return _psnr_line(measure, scores, how)
    known = [i for i, value in enumerate(scores["model"]) if value is not None]
    values = {column: np.array([_known(listed[i]) for i in known]) for column, listed in scores.items()}
    model, parent, quantised = values["model"], values["parent"], values.get("quantised")
    base = np.zeros_like(parent) if measure.to_parent else parent
    return Metric(
        name=measure.name,
        value=float(model.mean()),
        parent=float(parent.mean()),
        unit=measure.unit,
        better=measure.better,
        interval=how.interval(model - base),
        quantised=None if quantised is None else float(quantised.mean()),
        quantised_interval=None if quantised is None else how.interval(quantised - base),
        rivals=None if quantised is None else how.interval(model - quantised),
        to_parent=measure.to_parent,
        identical=measure.to_parent and bool((model == parent).all()),
        samples=len(known),
        source=measure.source,
    )


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("a score is missing in one column only")
    return value


# --- PSNR -----------------------------------------------------------------------------------------------------------


def _psnr_line(measure: Measure, scores: Mapping[Column, Sequence[float | None]], how: Resampling) -> Metric:
    """PSNR of the mean squared error over all pictures: a mean of decibels would be infinite with one equal pair."""
    errors = {column: _squared_errors(listed) for column, listed in scores.items()}
    quantised = errors.get("quantised")
    return Metric(
        name=measure.name,
        value=_decibels(errors["model"]),
        parent=None,
        unit=measure.unit,
        better=measure.better,
        interval=_decibel_interval(errors["model"], how),
        quantised=None if quantised is None else _decibels(quantised),
        quantised_interval=None if quantised is None else _decibel_interval(quantised, how),
        rivals=None if quantised is None else _rival_decibels(errors["model"], quantised, how),
        to_parent=True,
        identical=not errors["model"].any(),
        samples=len(errors["model"]),
        source=measure.source,
    )


def _squared_errors(psnrs: Sequence[float | None]) -> Values_N:
    return np.array([0.0 if psnr is None else PEAK_SQUARED / 10 ** (psnr / 10) for psnr in psnrs])


def _decibels(errors_N: Values_N) -> float | None:
    mean = float(errors_N.mean())
    return 10 * float(np.log10(PEAK_SQUARED / mean)) if mean > 0 else None


def _least(how: Resampling) -> float:
    """Below one level in one number of a picture nothing differs at all."""
    return 1 / how.levels


def _decibel_interval(errors_N: Values_N, how: Resampling) -> Interval | None:
    found = how.interval(errors_N) if errors_N.any() else None
    if found is None:
        return None
    low, high = (10 * float(np.log10(PEAK_SQUARED / max(error, _least(how)))) for error in found)
    return high, low


def _rival_decibels(model_N: Values_N, quantised_N: Values_N, how: Resampling) -> Interval | None:
    if not model_N.any() or not quantised_N.any() or len(model_N) < 2:
        return None

    def ratio(drawn_RN2: Values_N) -> Values_N:
        means_R2 = np.maximum(drawn_RN2.mean(axis=1), _least(how))
        decibels_R: Values_N = 10 * np.log10(means_R2[:, 1] / means_R2[:, 0])
        return decibels_R

    return interval(np.stack((model_N, quantised_N), axis=1), ratio, resamples=how.resamples, seed=how.seed)


# --- time -----------------------------------------------------------------------------------------------------------


def time_line(seconds: Mapping[Column, Sequence[float]], how: Resampling, source: str) -> Metric:
    """Medians, and intervals of the difference of medians; round by round, so that a busy minute hits all alike."""
    values = {column: np.array(listed, dtype=np.float64) for column, listed in seconds.items()}
    quantised = values.get("quantised")
    return Metric(
        name="seconds_per_image",
        value=float(np.median(values["model"])),
        parent=float(np.median(values["parent"])),
        unit="s",
        better="lower",
        interval=_apart(values["model"], values["parent"], how),
        quantised=None if quantised is None else float(np.median(quantised)),
        quantised_interval=None if quantised is None else _apart(quantised, values["parent"], how),
        rivals=None if quantised is None else _apart(values["model"], quantised, how),
        samples=len(values["model"]),
        source=source,
    )


def _apart(a_N: Values_N, b_N: Values_N, how: Resampling) -> Interval:
    return interval(
        np.stack((a_N, b_N), axis=1),
        lambda drawn_RN2: np.median(drawn_RN2[:, :, 0], axis=1) - np.median(drawn_RN2[:, :, 1], axis=1),
        resamples=how.resamples,
        seed=how.seed,
    )


def time_ratio(seconds: Mapping[Column, Sequence[float]], how: Resampling) -> Interval:
    """Interval of the ratio of medians, model to parent."""
    both_N2 = np.stack((np.array(seconds["model"]), np.array(seconds["parent"])), axis=1)
    return interval(
        both_N2,
        lambda drawn_RN2: np.median(drawn_RN2[:, :, 0], axis=1) / np.median(drawn_RN2[:, :, 1], axis=1),
        resamples=how.resamples,
        seed=how.seed,
    )


# --- targets --------------------------------------------------------------------------------------------------------


def targets(metrics: Sequence[Metric], ratio: Interval | None) -> tuple[Target, ...]:
    """Whether the published targets are met, from the lines of the card. `ratio` is that of the times."""
    found = {metric.name: metric for metric in metrics}
    size, time, clip = found.get("bytes"), found.get("seconds_per_image"), found.get("clip_score")
    drop = None if clip is None or clip.interval is None else (-clip.interval[1], -clip.interval[0])
    return (
        _target("size", SIZE_BOUND, _share(size), None),
        _target("time", TIME_BOUND, _share(time), ratio),
        _target("clip_drop", CLIP_BOUND, None if clip is None or clip.difference is None else -clip.difference, drop),
    )


def _share(metric: Metric | None) -> float | None:
    return None if metric is None or metric.value is None or not metric.parent else metric.value / metric.parent


def _target(name: TargetName, bound: float, reached: float | None, around: Interval | None) -> Target:
    if reached is None:
        return Target(name=name, bound=bound, reached=None, met=None, sure=False)
    sure = around is None or not around[0] <= bound < around[1]
    return Target(name=name, bound=bound, reached=reached, met=reached <= bound, sure=sure)
