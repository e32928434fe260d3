"""The lines of the compression study: plan, cut, measure, recover, measure, by the code that the page runs."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import ZImagePipeline
from PIL import Image
from skimage.metrics import structural_similarity

from zimage_studio.core.drawn.questions import Question, single_questions, truth
from zimage_studio.core.evaluation.clip_score import ClipScorer
from zimage_studio.core.evaluation.judge import Judge
from zimage_studio.core.fingerprint import fingerprint
from zimage_studio.core.loading import load_pipeline
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.pruning.artifact import write_pruned
from zimage_studio.core.pruning.criteria import score
from zimage_studio.core.pruning.planning import make_plan
from zimage_studio.core.pruning.scores import Scores
from zimage_studio.core.recovery.recover import recover
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.compress import PruneRequest
from zimage_studio.records.plan import Criterion, Kind, PrunePlan
from zimage_studio.records.progress import silent
from zimage_studio.records.recover import RecoveryConfig

TINY = Path(__file__).parent.parent / "zimage_studio" / "tiny"
STEPS, GUIDANCE, SIDE_PX, MAX_TOKENS = 8, 2.0, 128, 64
BATCH = 20
TIMED_FORWARDS = 30
CALIBRATION_PROMPTS = 8


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut of the study: which kinds, how much of what they may touch, and whether the ends are left alone.

    Without a ratio the transformer is to be half its size; `longer` multiplies the training steps.
    """

    name: str
    words: str
    kinds: tuple[Kind, ...]
    ratio: float | None
    protect_ends: bool
    longer: int = 1


CUTS = (
    Cut("ffn75", "feed-forward 75 %", ("ffn",), 0.75, False),
    Cut("depth1", "one block of six", ("depth",), 0.25, True),
    Cut("half", "feed-forward and heads, to half the transformer", ("ffn", "heads"), None, False, longer=6),
    Cut("ffn90", "feed-forward 90 %", ("ffn",), 0.90, False),
    Cut("heads50", "half of the heads", ("heads",), 0.50, False),
    Cut("depth2", "two blocks of six", ("depth",), 0.50, True),
    Cut("joint", "one block, and as deep into widths and heads", ("depth", "ffn", "heads"), 0.40, True),
    Cut("ffn60", "feed-forward 60 %", ("ffn",), 0.60, False),
    Cut("ffn40", "feed-forward 40 %", ("ffn",), 0.40, False),
    Cut("ffn20", "feed-forward 20 %", ("ffn",), 0.20, False),
)
CRITERIA: tuple[Criterion, ...] = ("l1", "taylor", "fisher", "ablation", "random")


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on the same questions and seeds: for each picture what the judge and CLIP say, and how far it is.

    `psnr_db` is None where the picture equals the parent's. `time_ratio` is the fastest forward of the transformer over
    the parent's fastest, of 30 each, timed in turns.
    """

    right: tuple[bool, ...]
    clip: tuple[float, ...]
    psnr_db: tuple[float | None, ...]
    ssim: tuple[float, ...]
    time_ratio: float
    parameters: int
    bytes: int


class Bench:
    """The parent and its judges, in memory once."""

    def __init__(self, count: int) -> None:
        self.questions: list[Question] = single_questions(count)
        self.captions = [question.caption for question in self.questions]
        self._judge, self._clip = Judge.load(TINY / "judge"), ClipScorer.load(TINY / "clip")
        facts = inspect_folder(TINY / "model")
        self.parent = ModelArtifact(
            key="tiny", kind="folder", path=str(TINY / "model"), name="Tiny Z-Image", sha256=fingerprint(facts.files),
            parameters=facts.parameters, bytes=facts.bytes, defaults=facts.defaults,
        )  # fmt: skip
        self._pipeline = self.load(TINY / "model")
        self._pictures = self.draw(self._pipeline)
        self.unpruned = self.measure(TINY / "model")

    def load(self, folder: Path) -> ZImagePipeline:
        artifact = ModelArtifact(key="x", kind="folder", path=str(folder), name=folder.name)
        pipeline = load_pipeline(artifact, device="cpu", progress=silent)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def draw(self, pipeline: ZImagePipeline) -> list[Image.Image]:
        """Picture i of caption i with seed i."""
        images: list[Image.Image] = []
        for start in range(0, len(self.captions), BATCH):
            chunk = list(self.captions[start : start + BATCH])  # a copy: encode_prompt writes into its list
            generators = [torch.Generator().manual_seed(start + number) for number in range(len(chunk))]
            images += pipeline(
                chunk, num_inference_steps=STEPS, guidance_scale=GUIDANCE, width=SIDE_PX, height=SIDE_PX,
                max_sequence_length=MAX_TOKENS, generator=generators,
            ).images  # fmt: skip
        return images

    def measure(self, folder: Path) -> Measured:
        """The model in `folder` beside the parent."""
        pipeline = self.load(folder)
        pictures = self.draw(pipeline)
        verdicts = self._judge(pictures)
        right = tuple(
            (seen.object, seen.object_colour, seen.background_colour)
            == (known.object, known.object_colour, known.background_colour)
            for seen, known in zip(verdicts, (truth(question.scene) for question in self.questions), strict=True)
        )
        pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64))
                 for a, b in zip(pictures, self._pictures, strict=True)]  # fmt: skip
        errors = [float(((a - b) ** 2).mean()) for a, b in pairs]
        facts = inspect_folder(folder)
        size = facts.components["transformer"]
        return Measured(
            right=right,
            clip=tuple(self._clip.similarities(pictures, self.captions).diagonal().tolist()),
            psnr_db=tuple(None if error == 0 else 10 * float(np.log10(255**2 / error)) for error in errors),
            ssim=tuple(float(structural_similarity(a, b, channel_axis=2, data_range=255)) for a, b in pairs),
            time_ratio=self.time_ratio(pipeline),
            parameters=size.parameters,
            bytes=size.bytes,
        )

    @torch.no_grad()
    def time_ratio(self, pipeline: ZImagePipeline) -> float:
        """Seconds of the fastest forward, over the parent's: the two take turns, and what else runs only slows down."""
        channels, side = pipeline.transformer.config.in_channels, SIDE_PX // pipeline.vae_scale_factor
        torch.manual_seed(0)
        picture = [torch.randn(channels, 1, side, side) for _ in range(2)]
        words = [torch.randn(28, pipeline.transformer.config.cap_feat_dim) for _ in range(2)]
        seconds: list[list[float]] = [[], []]
        for _ in range(TIMED_FORWARDS):
            for taken, transformer in zip(seconds, (pipeline.transformer, self._pipeline.transformer), strict=True):
                started = time.perf_counter()
                transformer(picture, torch.full((2,), 0.5), words, return_dict=False)
                taken.append(time.perf_counter() - started)
        return min(seconds[0]) / min(seconds[1])


def scores_for(criterion: Criterion, bench: Bench, work: Path) -> Scores:
    """The scores of a criterion, made once for all cuts; the captions are none of those that are asked."""
    path = work / f"{criterion}.scores.safetensors"
    if not path.exists():
        prompts = [question.caption for question in single_questions(len(bench.captions) + CALIBRATION_PROMPTS)]
        started = time.monotonic()
        found = score(
            bench.load(TINY / "model"), criterion, ("depth", "ffn", "heads"), prompts=prompts[-CALIBRATION_PROMPTS:],
            seed=1, steps=STEPS, size=(SIDE_PX, SIDE_PX),
        )  # fmt: skip
        found.save(path)
        print(f"{criterion}: scored in {time.monotonic() - started:.0f} s", flush=True)
    return Scores.load(path)


def plan_for(cut: Cut, criterion: Criterion, bench: Bench, work: Path) -> PrunePlan:
    """The plan of one line."""
    half = (bench.parent.bytes or 0) - inspect_folder(TINY / "model").components["transformer"].bytes // 2
    request = PruneRequest(
        model="tiny", kinds=cut.kinds, criterion=criterion, seed=1, prompts=CALIBRATION_PROMPTS,
        protect_ends=cut.protect_ends, ratio=cut.ratio, gigabytes=half / 1e9 if cut.ratio is None else None,
    )  # fmt: skip
    return make_plan(request, bench.parent, TINY / "model", scores_for(criterion, bench, work), silent)


def run_line(cut: Cut, criterion: Criterion, bench: Bench, work: Path, config: RecoveryConfig) -> dict[str, object]:
    """Plan, cut, measure, recover, measure."""
    plan = plan_for(cut, criterion, bench, work)
    cut_folder, recovered_folder = work / f"{cut.name}-{criterion}", work / f"{cut.name}-{criterion}-recovered"
    for folder in (cut_folder, recovered_folder):
        shutil.rmtree(folder, ignore_errors=True)
    write_pruned(TINY / "model", cut_folder, plan, progress=silent)
    before = bench.measure(cut_folder)
    row = {"cut": cut.name, "criterion": criterion, "before": asdict(before), "blocks": plan.rows()}
    config = replace(config, steps=(config.steps or 0) * cut.longer)
    row |= recovered_row(cut_folder, recovered_folder, bench, work, config)
    for folder in (cut_folder, recovered_folder):
        shutil.rmtree(folder, ignore_errors=True)
    return row


def recovered_row(student: Path, out: Path, bench: Bench, work: Path, config: RecoveryConfig) -> dict[str, object]:
    """Recovery of `student` and its measurement."""
    started, processor = time.monotonic(), time.process_time()
    done = recover(student, out, config, checkpoint_dir=work / "training" / out.name, device="cpu")
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - processor
    after = bench.measure(out)
    shutil.rmtree(work / "training" / out.name, ignore_errors=True)
    return {
        "after": asdict(after), "steps": done.steps, "loss_first": done.loss_first, "loss_last": done.loss_last,
        "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1),
    }  # fmt: skip


def control_line(bench: Bench, work: Path, config: RecoveryConfig) -> dict[str, object]:
    """The parent, uncut, trained as long as all others."""
    out = work / "control-recovered"
    shutil.rmtree(out, ignore_errors=True)
    row = {"cut": "control", "criterion": CRITERIA[0], "before": asdict(bench.unpruned)}
    row |= recovered_row(TINY / "model", out, bench, work, config)
    shutil.rmtree(out, ignore_errors=True)
    return row


def finished(work: Path) -> list[dict[str, object]]:
    """The lines that were made."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(work.glob("line-*.json"))]


def run(work: Path, only: Sequence[str], by: Sequence[str], count: int, config: RecoveryConfig) -> None:
    """Make the lines that are missing."""
    bench = Bench(count)
    (work / "unpruned.json").write_text(json.dumps(asdict(bench.unpruned)), "utf-8")
    lines = [(None, CRITERIA[0]), *((cut, criterion) for cut in CUTS for criterion in CRITERIA)]
    for cut, criterion in lines:
        name = "control" if cut is None else cut.name
        path = work / f"line-{name}-{criterion}.json"
        if path.exists() or (only and name not in only) or (cut is not None and by and criterion not in by):
            continue
        started = time.monotonic()
        row = control_line(bench, work, config) if cut is None else run_line(cut, criterion, bench, work, config)
        path.write_text(json.dumps(row), "utf-8")
        right = [np.mean(row[when]["right"]) for when in ("before", "after")]  # type: ignore[index]
        print(f"{name} {criterion}: judge {right[0]:.3f} -> {right[1]:.3f}, "
              f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip


def time_again(work: Path, count: int) -> None:
    """Time the models of all finished lines anew: the same plans give the same shapes."""
    bench, cuts = Bench(count), {cut.name: cut for cut in CUTS}
    for path in sorted(work.glob("line-*.json")):
        row = json.loads(path.read_text("utf-8"))
        folder, cut = TINY / "model", cuts.get(row["cut"])
        if cut is not None:
            folder = work / "timed"
            shutil.rmtree(folder, ignore_errors=True)
            write_pruned(TINY / "model", folder, plan_for(cut, row["criterion"], bench, work), progress=silent)
        ratio = bench.time_ratio(bench.load(folder))
        row["before"]["time_ratio"] = row["after"]["time_ratio"] = ratio
        path.write_text(json.dumps(row), "utf-8")
        print(f"{path.stem}: {ratio:.3f}", flush=True)
    shutil.rmtree(work / "timed", ignore_errors=True)
