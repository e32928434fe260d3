"""Measure a pipeline folder: draw held-out captions, ask the judge and the CLIP, write the figures.

The captions describe combinations of object, colours, pattern and position that were never trained on
(`drawings.is_held_out`), and say everything that is asked about. Picture i is drawn with seed i, captions alternate
between English and Chinese.
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import ZImagePipeline
from PIL import Image

from zimage_studio.core.drawn.drawings import render
from zimage_studio.core.drawn.questions import Question, pair_questions, single_questions, truth
from zimage_studio.core.evaluation.clip_score import ClipScorer
from zimage_studio.core.evaluation.judge import QUESTIONS, Judge, Verdict

MAX_TOKENS = 64
ESSENTIALS = ("object", "object_colour", "background_colour")


@dataclass(frozen=True, slots=True)
class Setting:
    """How to draw: `count` questions, denoising steps, guidance g in pos + g (pos - neg), size in px."""

    count: int
    steps: int = 8
    guidance: float = 2.0
    width: int = 128
    height: int = 128


def generate(
    pipeline: ZImagePipeline, captions: Sequence[str], setting: Setting, *, batch: int = 20
) -> list[Image.Image]:
    """Picture i from caption i and seed i."""
    images: list[Image.Image] = []
    for start in range(0, len(captions), batch):
        chunk = list(captions[start : start + batch])  # a copy: encode_prompt writes into the list it is given
        images += pipeline(
            chunk,
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance,
            width=setting.width,
            height=setting.height,
            max_sequence_length=MAX_TOKENS,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(chunk))],
        ).images
    return images


def shares(verdicts: Iterable[Verdict], truths: Iterable[Verdict]) -> dict[str, float]:
    """Share of right answers by question; `essentials` are object and both colours together, `all` is all five."""
    pairs = list(zip(verdicts, truths, strict=True))

    def share(questions: Sequence[str]) -> float:
        return sum(all(getattr(a, q) == getattr(b, q) for q in questions) for a, b in pairs) / len(pairs)

    result = {question: share((question,)) for question in QUESTIONS}
    return {k: round(v, 4) for k, v in (result | {"essentials": share(ESSENTIALS), "all": share(QUESTIONS)}).items()}


def measure_singles(pipeline: ZImagePipeline, judge: Judge, scorer: ClipScorer | None, setting: Setting,
                    ) -> tuple[dict[str, object], list[Image.Image]]:  # fmt: skip
    """Figures of one setting, each language apart too; and the pictures."""
    questions = single_questions(setting.count)
    started = time.monotonic()
    images = generate(pipeline, [question.caption for question in questions], setting)
    seconds = time.monotonic() - started
    verdicts, truths = judge(images), [truth(question.scene) for question in questions]
    row: dict[str, object] = {**asdict(setting), "seconds_per_image": round(seconds / setting.count, 3)}
    row |= shares(verdicts, truths)
    for language, chinese in (("english", False), ("chinese", True)):
        chosen = [i for i, question in enumerate(questions) if question.chinese is chinese]
        row[language] = shares([verdicts[i] for i in chosen], [truths[i] for i in chosen])
    row["by_pattern"] = _pattern_shares(verdicts, truths)
    row["mistakes"] = [
        {"caption": question.caption, "seen": asdict(verdict)}
        for question, verdict, right in zip(questions, verdicts, truths, strict=True)
        if verdict != right
    ][:40]
    if scorer is not None:
        row["clip"] = clip_row(scorer, images, questions)
    return row, images


def _pattern_shares(verdicts: Sequence[Verdict], truths: Sequence[Verdict]) -> dict[str, float]:
    result = {}
    for pattern in sorted({right.pattern for right in truths}):
        seen = [
            verdict.pattern == pattern
            for verdict, right in zip(verdicts, truths, strict=True)
            if right.pattern == pattern
        ]
        result[pattern] = round(sum(seen) / len(seen), 4)
    return result


def clip_row(scorer: ClipScorer, images: Sequence[Image.Image], questions: Sequence[Question]) -> dict[str, float]:
    """Mean cosine with the own caption, with others, and how often the own caption is the nearest of the first 100."""
    cosines_NN = scorer.similarities(images, [question.caption for question in questions])
    count = len(images)
    near = cosines_NN[:100, :100]
    row = {
        "matched": cosines_NN.diagonal().mean().item(),
        "shuffled": ((cosines_NN.sum() - cosines_NN.trace()) / (count * (count - 1))).item(),
        "recall_at_1_of_100": (near.argmax(1) == torch.arange(len(near))).float().mean().item(),
    }
    return {key: round(value, 4) for key, value in row.items()}


def measure_pairs(
    pipeline: ZImagePipeline, scorer: ClipScorer, setting: Setting
) -> tuple[dict[str, object], list[Image.Image]]:
    """Two-object captions, which the judge cannot answer: CLIP only, beside its score on real drawings of them."""
    questions = pair_questions(setting.count)
    images = generate(pipeline, [question.caption for question in questions], setting)
    drawn = [Image.fromarray(render(question.scene)) for question in questions]
    row: dict[str, object] = asdict(setting)
    return row | {
        "clip": clip_row(scorer, images, questions),
        "clip_of_drawings": clip_row(scorer, drawn, questions),
    }, images


def sheet(images: Sequence[Image.Image], path: Path, *, columns: int, gap_px: int = 4) -> None:
    """A contact sheet as PNG."""
    width, height = (max(image.size[axis] for image in images) + gap_px for axis in (0, 1))
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * width + gap_px, rows * height + gap_px), "white")
    for index, image in enumerate(images):
        page.paste(image, (gap_px + index % columns * width, gap_px + index // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)


def load_pipeline(folder: Path) -> ZImagePipeline:
    """The folder as an application would load it on a CPU: float32."""
    pipeline = ZImagePipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def evaluate(tiny: Path, out: Path, *, count: int, variants: int, pairs: int) -> dict[str, object]:
    """Measure `tiny/model`, write `out/evaluation.json` and contact sheets; `variants` captions per other setting."""
    pipeline, judge = load_pipeline(tiny / "model"), Judge.load(tiny / "judge")
    scorer = ClipScorer.load(tiny / "clip") if (tiny / "clip" / "model.safetensors").exists() else None
    report: dict[str, object] = {}

    def note(name: str, row: dict[str, object]) -> None:
        report[name] = row
        (out / "evaluation.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(json.dumps({name: {key: value for key, value in row.items() if key != "mistakes"}}), flush=True)

    row, images = measure_singles(pipeline, judge, scorer, Setting(count))
    note("default", row)
    sheet(images[:48], out / "samples.png", columns=12)
    if scorer is not None and pairs:
        row, images = measure_pairs(pipeline, scorer, Setting(pairs))
        note("two_objects", row)
        sheet(images[:24], out / "pairs.png", columns=12)
    if variants:
        note("guidance_0", measure_singles(pipeline, judge, scorer, Setting(count, guidance=0.0))[0])
        for guidance in (1.0, 3.0, 4.0):
            note(
                f"guidance_{guidance:g}",
                measure_singles(pipeline, judge, scorer, Setting(variants, guidance=guidance))[0],
            )
        for steps in (2, 4, 8, 20):
            note(f"steps_{steps}", measure_singles(pipeline, judge, scorer, Setting(variants, steps=steps))[0])
    return report


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", type=Path, required=True, help="folder with model, judge and clip")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--variants", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    evaluate(options.tiny, options.out, count=options.count, variants=options.variants, pairs=options.pairs)


if __name__ == "__main__":
    main()
