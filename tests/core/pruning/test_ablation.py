"""What ablation says of the embedded model, against what its judge sees."""

from pathlib import Path

import torch

from tests.conftest import TINY
from zimage_studio.core.drawn.questions import single_questions, truth
from zimage_studio.core.evaluation.judge import Judge
from zimage_studio.core.loading import load_pipeline
from zimage_studio.core.pruning.criteria import score
from zimage_studio.core.pruning.knockout import knocked
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import silent
from zimage_studio.records.sensitivity import Knock

QUESTIONS, ASKED = 20, 4
STEPS, GUIDANCE, SIDE_PX = 8, 2.0, (128, 128)


def test_the_block_it_misses_least_is_missed_less_by_the_judge_than_the_one_it_misses_most():
    artifact = ModelArtifact(key="tiny", kind="folder", path=str(TINY), name="Tiny")
    pipeline = load_pipeline(artifact, device="cpu", progress=silent)
    pipeline.set_progress_bar_config(disable=True)
    judge = Judge.load(Path(TINY).parent / "judge")
    questions = single_questions(QUESTIONS + ASKED)
    asked = [question.caption for question in questions[QUESTIONS:]]
    found = score(
        pipeline, "ablation", ("depth",), prompts=asked, seed=1, steps=STEPS, guidance=GUIDANCE, size=SIDE_PX
    ).blocks
    middle = sorted((index for stack, index in found if stack == "layers" and 0 < index < 5),
                    key=lambda index: found["layers", index])  # fmt: skip

    def right(index: int) -> int:
        generators = [torch.Generator().manual_seed(number) for number in range(QUESTIONS)]
        with knocked(pipeline.transformer, [Knock("layers", index)]):
            pictures = pipeline(
                [question.caption for question in questions[:QUESTIONS]], num_inference_steps=STEPS,
                guidance_scale=GUIDANCE, width=SIDE_PX[0], height=SIDE_PX[1], max_sequence_length=64,
                generator=generators,
            ).images  # fmt: skip
        return sum(
            (seen.object, seen.object_colour, seen.background_colour)
            == (known.object, known.object_colour, known.background_colour)
            for seen, known in zip(judge(pictures), (truth(q.scene) for q in questions[:QUESTIONS]), strict=True)
        )

    least, most = right(middle[0]), right(middle[-1])
    assert least >= 0.9 * QUESTIONS
    assert most <= 0.6 * QUESTIONS
