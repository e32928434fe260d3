"""A model against the one it was made from, and against that one rounded to the same size: the report card."""

import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zimage_studio.core.drawn.questions import single_questions
from zimage_studio.core.engine import TorchEngine
from zimage_studio.core.evaluation import rounding
from zimage_studio.core.evaluation.drawing import Atelier
from zimage_studio.core.evaluation.measures import Bench, bench
from zimage_studio.core.evaluation.meter import Meter
from zimage_studio.core.evaluation.pictures import PictureStore
from zimage_studio.core.evaluation.prompts import PROMPTS
from zimage_studio.core.evaluation.publish import publish
from zimage_studio.core.evaluation.subjects import Entrant, entrant
from zimage_studio.core.evaluation.summary import Resampling, summarise, targets, time_line, time_ratio
from zimage_studio.core.evaluation.world import World
from zimage_studio.core.fingerprint import HashCache
from zimage_studio.core.loading import choose_device, component_dtypes
from zimage_studio.core.memory.host import ram
from zimage_studio.core.memory.site import why
from zimage_studio.core.memory.switches_precision import CANNOT_QUANTISE
from zimage_studio.core.weight_headers import component_header
from zimage_studio.errors import NonFiniteError
from zimage_studio.records.memory import EXACT, MemoryProfile
from zimage_studio.records.progress import Progress
from zimage_studio.records.report import (
    Column,
    EvaluationRequest,
    Metric,
    NotMeasured,
    Pair,
    QuantisedParent,
    ReportCard,
)
from zimage_studio.records.request import GenerationRequest

GIB = 2**30
SCORING, WRITING = 3, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What an evaluation is told of the place where it runs.

    `names` are what the model and its parent are called. `parts` lends what a single-file parent lacks. `hashes`
    remembers hashes of files. `offline` forbids asking the hub.
    """

    device: str = "auto"
    profile: MemoryProfile = EXACT
    names: tuple[str, str] = ("", "")
    parts: Path | None = None
    hashes: HashCache | None = None
    offline: bool = True
    world: World = field(default_factory=World)


def evaluate(
    child: Path,
    parent: Path,
    *,
    prompts: Sequence[str] = (),
    seeds: Sequence[int] = (),
    out: Path,
    progress: Progress,
    request: EvaluationRequest | None = None,
    work: Path | None = None,
    surroundings: Surroundings | None = None,
) -> ReportCard:
    """Draw, measure, compare; the card as JSON, HTML and Markdown in `out`, whole or not at all.

    `prompts` and `seeds` go before those of `request`; where neither gives any, the questions of the embedded model's
    world or the bundled prompts are drawn. `work` keeps the pictures of an evaluation that was stopped (when None, a
    folder beside `out` that goes at the end): called again with the same models and prompts, it draws only what is
    missing. Raises ModelError,
    InvalidInputError (a prompt too long), OutOfMemoryError, and whatever `progress` raises to stop it.
    """
    wanted, place = request or EvaluationRequest(), surroundings or Surroundings()
    started = time.monotonic()
    models: dict[Column, Entrant] = {}
    entered: tuple[tuple[Column, Path, str], ...] = (
        ("model", child, place.names[0]),
        ("parent", parent, place.names[1]),
    )
    for column, path, name in entered:
        models[column] = entrant(path, name, place.hashes, Meter(progress, 1).within("note.hashing", 0))
    world = place.world if all(place.world.holds(model.path) for model in models.values()) else None
    given = tuple(prompts) or wanted.prompts or _default_prompts(world, wanted.count)
    wanted = replace(wanted, prompts=given)
    numbers = tuple(seeds) or wanted.seeds
    if len(numbers) != len(given):
        raise ValueError(f"{len(given)} prompts and {len(numbers)} seeds; each prompt needs one")
    rival = _rival(models, wanted, place)
    session = _Session(models, _requests(models["parent"], wanted, numbers), wanted, place, world, rival)
    kept = work or out.parent / f".{out.name}.work"
    card = session.run(out, kept, progress, started)
    if work is None:
        shutil.rmtree(kept, ignore_errors=True)
    return card


def _default_prompts(world: World | None, count: int) -> tuple[str, ...]:
    if world is not None:
        return tuple(question.caption for question in single_questions(count))
    return tuple(PROMPTS[i % len(PROMPTS)] for i in range(count))


def _requests(parent: Entrant, wanted: EvaluationRequest, seeds: Sequence[int]) -> tuple[GenerationRequest, ...]:
    """Each picture as Generate would be asked for it, with what the parent likes best."""
    defaults = parent.artifact.defaults
    return tuple(
        GenerationRequest(
            prompt=prompt,
            seed=seed,
            width=wanted.size or defaults.width,
            height=wanted.size or defaults.height,
            steps=wanted.steps or defaults.steps,
            guidance=defaults.guidance,
        )
        for prompt, seed in zip(wanted.prompts, seeds, strict=True)
    )


# --- the rival ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rival:
    """How the parent is rounded, or why it is not."""

    chosen: Mapping[str, rounding.Kind]
    layers: int = 0
    smallest: int = 0
    missing: NotMeasured | None = None


def _rival(models: Mapping[Column, Entrant], wanted: EvaluationRequest, place: Surroundings) -> _Rival:
    def without(reason: str) -> _Rival:
        return _Rival({}, missing=NotMeasured(name="quantised", reason=reason, column="quantised"))

    parent, target = models["parent"], models["model"].facts.bytes
    if not wanted.quantised:
        return without("report.why.not_asked")
    if parent.facts.kind != "folder":
        return without("report.why.not_a_folder")
    item = component_dtypes(choose_device(place.device))["transformer"].itemsize
    layers = rounding.layers_of(component_header(parent.path, "transformer"), item)
    chosen = rounding.choose(layers, parent.facts.bytes, target)
    if not chosen:
        return without("report.why.not_smaller")
    return _Rival(chosen, len(layers), rounding.smallest(layers, parent.facts.bytes))


# --- the run --------------------------------------------------------------------------------------------------------


class _Session:
    """One evaluation from the first picture to the card."""

    def __init__(
        self,
        models: Mapping[Column, Entrant],
        requests: Sequence[GenerationRequest],
        wanted: EvaluationRequest,
        place: Surroundings,
        world: World | None,
        rival: _Rival,
    ) -> None:
        self.models = dict(models) | ({"quantised": models["parent"]} if rival.missing is None else {})
        self.requests, self.wanted, self.place = requests, wanted, place
        self.rival, self.world = rival, world
        self.not_measured: list[NotMeasured] = [] if rival.missing is None else [rival.missing]
        first = requests[0]
        self.how = Resampling(wanted.resamples, wanted.seed, first.width * first.height * 3)

    def run(self, out: Path, work: Path, progress: Progress, started: float) -> ReportCard:
        """Parent first, then the model, then the rounded parent; then times; then scores."""
        order: list[Column] = [column for column in ("parent", "model", "quantised") if column in self.models]
        count, repeats = len(self.requests), self.wanted.repeats
        meter = Meter(progress, len(order) * (count + 2 + repeats + 1) + SCORING + WRITING)
        self.engine = TorchEngine(device=self.place.device, scratch=work / "scratch")
        store = PictureStore(work, self._key())
        atelier = Atelier(
            engine=self.engine, entrants=self.models, requests=self.requests, store=store, meter=meter,
            profile=self.place.profile, parts=self.place.parts, chosen=self.rival.chosen,
        )  # fmt: skip
        for column in list(order):
            if not self._drawn(atelier, column):
                order.remove(column)
        columns: list[Column] = [column for column in ("model", "parent", "quantised") if column in order]
        facts = {column: store.facts(column) or {} for column in columns}
        lines = self._counted(facts) + self._memory(facts)
        timed, ratio = self._times(atelier, columns)
        found, pairs = self._scores(store, columns, meter)
        lines += timed + found
        card = self._card(lines, targets(lines, ratio), pairs, facts, time.monotonic() - started)
        meter.tick("note.evaluate_writing", 0)
        publish(card, store, out)
        meter.tick("note.evaluate_writing", WRITING)
        return card

    def _key(self) -> dict[str, object]:
        """What the pictures depend on: any of it changed, and they are drawn again."""
        stack = self.engine.stack()
        return {
            "models": {column: model.subject.sha256 for column, model in self.models.items()},
            "requests": [[r.prompt, r.seed, r.width, r.height, r.steps, r.guidance] for r in self.requests],
            "rounding": dict(self.rival.chosen),
            "profile": self.place.profile.switches,
            "stack": {name: stack[name] for name in ("torch", "diffusers", "transformers", "cpu")},
            "device": self.engine.device(),
        }

    def _drawn(self, atelier: Atelier, column: Column) -> bool:
        """Draw a column. Only the rounded parent may fail: its weights may be of a kind that cannot be rounded."""
        if column != "quantised":
            atelier.draw(column)
            self.engine.collect()
            return True
        try:
            atelier.draw(column)
        except CANNOT_QUANTISE as error:
            values = {"value": "int8 + int4", "why": why(error)}
            self.not_measured.append(
                NotMeasured(name="quantised", reason="memory.quantise_failed", values=values, column="quantised")
            )
            return False
        self.engine.collect()
        return True

    # --- lines ------------------------------------------------------------------------------------------------------

    def _counted(self, facts: Mapping[Column, Mapping[str, float]]) -> list[Metric]:
        model, parent = self.models["model"], self.models["parent"]
        after, before, rounded = model.subject, parent.subject, self._quantised(facts)
        whole, alone = (None, None) if rounded is None else (rounded.bytes, rounded.transformer_bytes)

        def unpruned(value: int) -> int | None:
            return None if rounded is None else value

        lines = [
            _count("bytes", "B", after.bytes, before.bytes, whole),
            _count("transformer_bytes", "B", after.transformer_bytes, before.transformer_bytes, alone),
        ]
        for name in ("parameters", "transformer_parameters"):
            now, then = getattr(after, name), getattr(before, name)
            lines.append(_count(name, "", now, then, unpruned(then)))
        first, tokens = self.requests[0], int(facts["parent"].get("caption_tokens", 0))
        flops, flops_before = (m.flops(first.width, first.height, tokens) for m in (model, parent))
        if flops is None or flops_before is None:
            self.not_measured.append(NotMeasured(name="flops", reason="report.why.no_shape"))
            return lines
        return [*lines, _count("flops", "FLOP", flops, flops_before, unpruned(flops_before))]

    def _memory(self, facts: Mapping[Column, Mapping[str, float]]) -> list[Metric]:
        peaks = {column: fact.get("peak_bytes") for column, fact in facts.items()}
        source = "report.source.peak_cuda" if self.engine.device() == "cuda" else "report.source.peak_cpu"
        if peaks["model"] is None or peaks["parent"] is None:
            self.not_measured.append(NotMeasured(name="peak_bytes", reason="report.why.not_finite"))
            return []
        return [
            Metric(
                name="peak_bytes", value=peaks["model"], parent=peaks["parent"], quantised=peaks.get("quantised"),
                unit="B", better="lower", samples=1, source=source,
            )
        ]  # fmt: skip

    def _times(self, atelier: Atelier, columns: Sequence[Column]) -> tuple[list[Metric], tuple[float, float] | None]:
        try:
            seconds, together = atelier.time(columns, self.wanted.repeats)
        except NonFiniteError:
            self.not_measured.append(NotMeasured(name="seconds_per_image", reason="report.why.not_finite"))
            return [], None
        if together:
            return [time_line(seconds, self.how, "report.source.interleaved")], time_ratio(seconds, self.how)
        line = time_line(seconds, self.how, "report.source.in_turn")
        # a machine that slows down between two models looks like a difference between them: no interval can tell
        return [replace(line, interval=None, quantised_interval=None, rivals=None)], None

    def _scores(
        self, store: PictureStore, columns: Sequence[Column], meter: Meter
    ) -> tuple[list[Metric], tuple[Pair, ...]]:
        meter.tick("note.evaluate_scoring", 0)
        pictures = {column: _pictures(store, column, len(self.requests)) for column in columns}
        asked = self._bench()
        self.not_measured += asked.not_measured
        prompts = [request.prompt for request in self.requests]
        lines, values = [_failures(pictures)], {}
        for measure in asked.measures:
            scores = {column: measure.score(shown, pictures["parent"], prompts) for column, shown in pictures.items()}
            values[measure.name] = scores
            lines.append(summarise(measure, scores, self.how))
            meter.tick("note.evaluate_scoring", SCORING / len(asked.measures))
        pairs = tuple(
            Pair(
                prompt=request.prompt,
                seed=request.seed,
                files={column: f"pictures/{column}/{index:04d}.png" for column in columns},
                values={name: {c: _rounded(scores[c][index]) for c in columns} for name, scores in values.items()},
            )
            for index, request in enumerate(self.requests)
        )
        return lines, pairs

    def _bench(self) -> Bench:
        prompts = [request.prompt for request in self.requests]
        return bench(self.wanted, prompts, self.world, device=self.engine.device(), offline=self.place.offline)

    # --- the card ---------------------------------------------------------------------------------------------------

    def _quantised(self, facts: Mapping[Column, Mapping[str, float]]) -> QuantisedParent | None:
        if "quantised" not in facts:
            return None
        parent, chosen = self.models["parent"], self.rival.chosen
        header = component_header(parent.path, "transformer")
        saved = sum(header[f"{name}.weight"].bytes for name in chosen) - int(facts["quantised"]["rounded_bytes"])
        four = sum(kind == "int4" for kind in chosen.values())
        wanted = self.models["model"].facts.bytes
        return QuantisedParent(
            int4=four,
            int8=len(chosen) - four,
            plain=self.rival.layers - len(chosen),
            bytes=parent.facts.bytes - saved,
            wanted_bytes=wanted,
            transformer_bytes=parent.subject.transformer_bytes - saved,
            reachable=wanted >= self.rival.smallest,
        )

    def _card(
        self,
        lines: Sequence[Metric],
        met: tuple,
        pairs: tuple[Pair, ...],
        facts: Mapping[Column, Mapping[str, float]],
        seconds: float,
    ) -> ReportCard:
        first = self.requests[0]
        return ReportCard(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=self.models["model"].subject,
            parent=self.models["parent"].subject,
            quantised=self._quantised(facts),
            width=first.width,
            height=first.height,
            steps=first.steps,
            guidance=first.guidance,
            prompts=tuple(request.prompt for request in self.requests),
            seeds=tuple(request.seed for request in self.requests),
            metrics=tuple(lines),
            not_measured=tuple(self.not_measured),
            targets=met,
            pairs=pairs,
            machine=_machine(self.engine.device()),
            stack=self.engine.stack(),
            resamples=self.wanted.resamples,
            bootstrap_seed=self.wanted.seed,
            seconds=round(seconds, 1),
        )


def _count(name: str, unit: str, value: float, parent: float, quantised: float | None) -> Metric:
    return Metric(
        name=name, value=value, parent=parent, quantised=quantised, unit=unit, better="lower", counted=True,
        source="report.source.flops" if name == "flops" else "report.source.headers",
    )  # fmt: skip


def _failures(pictures: Mapping[Column, Sequence[Image.Image]]) -> Metric:
    """Pictures that were not finished: they are of one colour, which no finished picture is."""
    failed = {column: sum(image.getextrema() == _flat(image) for image in shown) for column, shown in pictures.items()}
    return Metric(
        name="failed_pictures", value=failed["model"], parent=failed["parent"], quantised=failed.get("quantised"),
        unit="", better="lower", counted=True, samples=len(pictures["model"]), source="report.source.failed",
    )  # fmt: skip


def _flat(image: Image.Image) -> tuple[tuple[int, int], ...]:
    return tuple((low, low) for low, _ in image.getextrema())  # type: ignore[misc]


def _pictures(store: PictureStore, column: Column, count: int) -> list[Image.Image]:
    found = [store.read(column, index) for index in range(count)]
    return [Image.fromarray(np.asarray(pixels)) for pixels in found if pixels is not None]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _machine(device: str) -> dict[str, str]:
    """What the times belong to; no name of the machine."""
    total, _ = ram()
    machine = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processor": _processor(),
        "cores": str(os.cpu_count() or ""),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return machine if total is None else machine | {"ram": f"{total / GIB:.0f} GiB"}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
