"""Plain diffusers and every preset measured in one run on a pipeline of random weights: time, arithmetic, memory."""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import ZImagePipeline

from benchmarks.geometry import Geometry, build
from benchmarks.real_size_meta import TERA, forward_flops
from zimage_studio.core.loading import component_dtypes
from zimage_studio.core.memory.apply import homes
from zimage_studio.core.memory.fitted import Fitted
from zimage_studio.core.memory.measure import CudaProbe, Probe, RamProbe, measure, probe_phases
from zimage_studio.core.precision.ladder import RUNGS, load_dtypes
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.core.sampling import Sample, count_tokens, sample
from zimage_studio.errors import UserError
from zimage_studio.messages import say
from zimage_studio.records.memory import EXACT, PRECISIONS, PRESETS, MemoryProfile, Phase
from zimage_studio.records.progress import silent
from zimage_studio.records.request import GenerationRequest

PLAIN = "plain diffusers"
PROMPT = "A red fox sleeping under a birch in the first snow, painted in oil, seen from above"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is measured: one picture of `side`² px in `steps` steps, without guidance, `repeats` times."""

    geometry: Geometry
    device: torch.device
    side: int = 1024
    steps: int = 8
    repeats: int = 5
    scratch: Path | None = None


@dataclass(slots=True)
class Row:
    """One way to draw. `seconds` is the median, `teraflops` counts the transformer's arithmetic over all of it.

    `refused` names the switches that could not be had; `failed` says why there are no numbers.
    """

    name: str
    seconds: float | None = None
    forwards: int | None = None
    teraflops: float | None = None
    peaks: Mapping[Phase, int] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    failed: str = ""


def measured(task: Task, presets: Sequence[str] = tuple(PRESETS)) -> dict[str, Row]:
    """Rows by name: plain diffusers first, taken in turns with `exact`, then the other presets.

    A way that fails gets a row that says so; the others go on.
    """
    rows = {row.name: row for row in _tried((PLAIN, "exact"), lambda: _plain_and_exact(task))}
    for preset in presets:
        if preset != "exact":
            rows |= {row.name: row for row in _tried((preset,), lambda: [_preset(task, PRESETS[preset])])}  # noqa: B023
    return rows


def _tried(names: Sequence[str], run: Callable[[], list[Row]]) -> list[Row]:
    """What `run` gives, or rows that name the error. Freed before the next."""
    try:
        rows = run()
    except (UserError, RuntimeError, NotImplementedError, MemoryError, OSError) as error:
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:160]
        rows = [Row(name, failed=why) for name in names]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for row in rows:
        print(row, file=sys.stderr, flush=True)
    return rows


def _plain_and_exact(task: Task) -> list[Row]:
    """The two in turns on one pipeline, so that a machine that grows slower slows both."""
    bench = _Bench(task, EXACT)
    plain = Row(PLAIN, forwards=bench.forwards(bench.plain), peaks=bench.plain_peaks())
    exact = Row("exact")
    seconds: dict[str, list[float]] = {PLAIN: [], "exact": []}
    with bench.under(EXACT) as fitted:
        exact.forwards = bench.forwards(bench.draw)
        _note(exact, fitted, bench)
    for _ in range(task.repeats):
        seconds[PLAIN].append(bench.timed(bench.plain))
        with bench.under(EXACT):
            seconds["exact"].append(bench.timed(bench.draw))
    for row in (plain, exact):
        bench.rate(row, seconds[row.name])
    return [plain, exact]


def _preset(task: Task, profile: MemoryProfile) -> Row:
    """One preset on a pipeline of its own: some round the weights for good."""
    bench = _Bench(task, profile)
    row = Row(profile.name)
    with bench.under(profile) as fitted:
        _note(row, fitted, bench)  # its warm-up also pays for compiling
        row.forwards = bench.forwards(bench.draw)
        seconds = []
        for _ in range(task.repeats):
            fitted.forget_prompts()
            seconds.append(bench.timed(bench.draw))
    bench.rate(row, seconds)
    return row


def _note(row: Row, fitted: Fitted, bench: "_Bench") -> None:
    """Peaks, and the switches that the live pipeline refuses."""
    found = measure(bench.pipeline, fitted, bench.draw)
    row.peaks = found.phase_peak_bytes
    row.refused = tuple(f"{s.name}: {say(s.reason, 'en', **s.values)}" for s in found.states if s.state == "refused")


def _wishes(profile: MemoryProfile) -> dict[str, torch.dtype]:
    """What to load the components as, where the preset says so."""
    wishes = {name.removesuffix("_precision"): DTYPES.get(str(getattr(profile, name))) for name in PRECISIONS}
    wanted = {name: dtype for name, dtype in wishes.items() if dtype is not None}
    return wanted | (load_dtypes(RUNGS["float16_scaled"]) if profile.transformer_precision == "fp16" else {})


class _Bench:
    """One pipeline and the two calls that draw with it: ours and diffusers' own."""

    def __init__(self, task: Task, profile: MemoryProfile) -> None:
        dtypes = component_dtypes(task.device, _wishes(profile))
        self._task = task
        self._fitted: Fitted | None = None
        self.pipeline: ZImagePipeline = build(task.geometry, homes(profile, task.device), dtypes)
        self.pipeline.set_progress_bar_config(disable=True)
        self._request = GenerationRequest(
            prompt=PROMPT, seed=1, width=task.side, height=task.side, steps=task.steps, guidance=0.0
        )
        self._scheduler = dict(self.pipeline.scheduler.config)
        self._to_rgb = LatentToRgb.fit(self.pipeline.vae)
        shapes = task.geometry.shapes(dtypes)
        self._flops = forward_flops(shapes, task.side, task.side, count_tokens(self.pipeline, PROMPT))

    def plain(self) -> None:
        """The call that everybody writes."""
        self.pipeline(
            PROMPT, height=self._task.side, width=self._task.side, num_inference_steps=self._task.steps,
            guidance_scale=0.0, generator=torch.Generator(self._task.device).manual_seed(1),
        )  # fmt: skip

    def draw(self) -> Sample:
        """Studio's, with its checks and previews."""

        def once() -> Sample:
            return sample(
                self.pipeline, self._request, scheduler_config=self._scheduler, to_rgb=self._to_rgb, progress=silent
            )

        return once() if self._fitted is None else self._fitted.draw(once)[0]

    @contextmanager
    def under(self, profile: MemoryProfile) -> Iterator[Fitted]:
        """The pipeline under `profile`, with no prompt remembered."""
        self._fitted = Fitted(self.pipeline, profile, self._task.device, self._task.scratch)
        try:
            yield self._fitted
        finally:
            self._fitted.undo()
            self._fitted = None

    def plain_peaks(self) -> dict[Phase, int]:
        """By phase, as `measure` reads them for a profile."""
        probe: Probe = CudaProbe(self._task.device) if self._task.device.type == "cuda" else RamProbe(self.pipeline)
        with probe_phases(self.pipeline, probe):
            self.plain()
        return probe.peaks

    def forwards(self, draw: Callable[[], object]) -> int:
        """How often one picture calls the transformer."""
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        handle = self.pipeline.transformer.register_forward_pre_hook(count)
        try:
            draw()
        finally:
            handle.remove()
        return calls

    def timed(self, draw: Callable[[], object]) -> float:
        """Seconds of one call, until the device is done."""
        self._wait()
        started = time.perf_counter()
        draw()
        self._wait()
        return time.perf_counter() - started

    def rate(self, row: Row, seconds: Sequence[float]) -> None:
        """Median time, and the transformer's arithmetic over it."""
        row.seconds = statistics.median(seconds)
        row.teraflops = (row.forwards or 0) * self._flops / row.seconds / TERA

    def _wait(self) -> None:
        if self._task.device.type == "cuda":
            torch.cuda.synchronize(self._task.device)
