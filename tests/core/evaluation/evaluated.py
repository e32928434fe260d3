"""Real evaluations of the embedded model and of a damaged one."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import TINY
from zimage_studio.core.evaluation.evaluate import Surroundings, evaluate
from zimage_studio.errors import Cancelled
from zimage_studio.records.report import EvaluationRequest, ReportCard

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
DAMAGED = ("layers.0.", "layers.1.", "layers.2.", "layers.3.")
COUNT, STOP_AFTER = 8, 5


@dataclass(frozen=True)
class Evaluated:
    """A card, where it lies, and what its progress said; of the stopped run the pictures that were kept."""

    card: ReportCard
    out: Path
    seen: list[tuple[float, float, str]]
    kept: dict[Path, int]


def damaged_model(folder: Path) -> Path:
    """The embedded model with its last-but-one block removed and noise on the weights of four others."""
    shutil.copytree(TINY, folder)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in load_file(folder / WEIGHTS).items():
        if name.startswith("layers.4."):
            continue
        new = name.replace("layers.5.", "layers.4.", 1) if name.startswith("layers.5.") else name
        if name.startswith(DAMAGED) and value.ndim == 2:
            noise = torch.randn(value.shape, generator=generator) * value.float().std() * 2
            value = (value.float() + noise).to(value.dtype)
        weights[new] = value
    save_file(weights, folder / WEIGHTS)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "n_layers": config["n_layers"] - 1}))
    return folder


def blank_model(folder: Path) -> Path:
    """The embedded model with NaN in one layer: it draws nothing."""
    shutil.copytree(TINY, folder)
    weights = load_file(folder / WEIGHTS)
    weights["layers.2.feed_forward.w2.weight"].fill_(float("nan"))
    save_file(weights, folder / WEIGHTS)
    return folder


def run(
    child: Path, out: Path, progress: Callable[..., object], work: Path | None = None, **wanted: object
) -> ReportCard:
    request = EvaluationRequest(**{"count": COUNT, "repeats": 3, "steps": 4, **wanted})
    names = Surroundings(names=("Damaged", "Tiny Z-Image"))
    return evaluate(child, TINY, out=out, progress=progress, request=request, work=work, surroundings=names)


def stopped_and_finished(folder: Path) -> Evaluated:
    """A damaged model against the embedded one; stopped once on the way."""
    child, out, work = damaged_model(folder / "model"), folder / "model" / "report", folder / "work"
    with pytest.raises(Cancelled):
        run(child, out, _stopping, work)
    assert not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in sorted(work.glob("*/*.png"))}
    seen: list[tuple[float, float, str]] = []
    card = run(child, out, lambda done, total, note, preview=None: seen.append((done, total, note)), work)
    return Evaluated(card, out, seen, kept)


def _stopping(done: float, _total: float, _note: str, _preview: object = None) -> None:
    if done >= STOP_AFTER:
        raise Cancelled
