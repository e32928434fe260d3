"""The world of the embedded model: which models live in it, and the questions with known answers about it.

Judge and CLIP of that world say nothing about other models. A model belongs to it when its text encoder and its VAE are
the embedded model's to the byte: what pruning and recovery leave alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zimage_studio.core.drawn.questions import Question, single_questions
from zimage_studio.core.weight_headers import WEIGHT_STEMS, weight_files
from zimage_studio.errors import ModelError
from zimage_studio.records.report import MAX_PROMPTS

HOME = Path(__file__).parent.parent.parent / "tiny"
SHARED = ("text_encoder", "vae")


@dataclass(frozen=True, slots=True)
class World:
    """Where its model, its judge and its CLIP lie."""

    model: Path = HOME / "model"
    judge: Path = HOME / "judge"
    clip: Path = HOME / "clip"

    def holds(self, folder: Path) -> bool:
        """Whether the model in `folder` lives here."""
        try:
            return all(_digest(folder, part) == _digest(self.model, part) for part in SHARED)
        except ModelError:
            return False


def questions_for(prompts: Sequence[str]) -> list[Question | None]:
    """The question that each prompt is, None for prompts whose answer nobody knows."""
    known = {question.caption: question for question in single_questions(MAX_PROMPTS)}
    return [known.get(prompt) for prompt in prompts]


def _digest(folder: Path, component: str) -> tuple[str, ...]:
    files = weight_files(folder / component, WEIGHT_STEMS[component])
    return tuple(_file_digest(file) for file in files)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
