"""The page of the compression study, from its finished lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zimage_studio.core.evaluation.bootstrap import interval

Row = Mapping[str, Any]
HEAD = """# Cutting the embedded model, and training it again

Made by one command, which goes on where it stopped:

    python -m benchmarks.compression_study --work DIR --write docs/compression_study.md

Every line: scores by the criterion (those that need data see {calibration} captions that are not asked
below, ablation the first 4), a plan,
a cut from disk to disk, as many training steps on drawn pictures as the line says (batch {batch}, Muon {muon_lr:g} and
AdamW {lr:g}; at most {most_cpu:.0f} CPU seconds each, {mean_cpu:.0f} on average), and the same {count} questions that
were never trained on, at the same seeds, before and after. *Judge* is the share of pictures in which object, object
colour and background colour are all right; *CLIP* is the embedded CLIP's mean cosine; both are followed by the 95 %
interval of the paired difference to the unpruned parent (2,000 bootstrap resamples of the questions). *PSNR* and *SSIM*
compare with the parent's picture of the same question. *Size* and *time* are the transformer's, over the parent's
(time: the fastest of 30 forwards each, in turns).

The parent: judge {judge:.1%}, CLIP {clip:.3f}, transformer of {parameters:,} parameters.
"""
TITLES = (
    "cut", "criterion", "size", "time", "steps", "judge cut", "judge recovered", "CLIP cut", "CLIP recovered",
    "PSNR cut → recovered", "SSIM cut → recovered",
)  # fmt: skip
SHORT = """In short, right answers of the judge after the cut → after recovery:

| cut | {criteria} |
|---|{rules}"""
COLUMNS = f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}"


def page(
    unpruned: Row, rows: Sequence[Row], words: Mapping[str, str], criteria: Sequence[str], config: Mapping[str, Any]
) -> str:
    """The whole page as Markdown."""
    trained = [row["cpu_seconds"] for row in rows]
    parts = [
        HEAD.format(
            calibration=8, batch=config["batch"], muon_lr=config["muon_lr"], lr=config["lr"],
            most_cpu=max(trained, default=0), mean_cpu=float(np.mean(trained or [0])), count=len(unpruned["right"]),
            judge=float(np.mean(unpruned["right"])), clip=float(np.mean(unpruned["clip"])),
            parameters=unpruned["parameters"],
        ),
        COLUMNS,
    ]  # fmt: skip
    found = {(row["cut"], row["criterion"]): row for row in rows}
    parts.insert(1, _short(found, words, criteria))
    if ("control", criteria[0]) in found:
        parts.append(_line(found["control", criteria[0]], unpruned, "nothing (control)", "–"))
    missing = []
    for cut, said in words.items():
        for criterion in criteria:
            if (cut, criterion) in found:
                parts.append(_line(found[cut, criterion], unpruned, said, criterion))
            else:
                missing.append(f"{said} by {criterion}")
    parts.append("")
    if missing:
        parts.append(f"Not run: {'; '.join(missing)}.")
    return "\n".join(parts) + "\n"


def _short(found: Mapping[tuple[str, str], Row], words: Mapping[str, str], criteria: Sequence[str]) -> str:
    """One line a cut: the judge before and after recovery; the best before it in bold."""
    lines = [SHORT.format(criteria=" | ".join(criteria), rules="---|" * len(criteria))]
    for cut, said in words.items():
        rows = [found.get((cut, criterion)) for criterion in criteria]
        best = max((row["before"]["right"].count(True) for row in rows if row is not None), default=-1)
        lines.append(f"| {said} | {' | '.join(_both(row, best) for row in rows)} |")
    return "\n".join(lines) + "\n"


def _both(row: Row | None, best: int) -> str:
    if row is None:
        return "not run"
    before, after = (row[when]["right"].count(True) for when in ("before", "after"))
    return f"**{before}** → {after}" if before == best else f"{before} → {after}"


def _line(row: Row, unpruned: Row, said: str, criterion: str) -> str:
    before, after = row["before"], row["after"]
    cells = [
        said, criterion, f"{before['parameters'] / unpruned['parameters']:.2f}", f"{before['time_ratio']:.2f}",
        str(row["steps"]),
        _share(before, unpruned), _share(after, unpruned), _clip(before, unpruned), _clip(after, unpruned),
        f"{_psnr(before)} → {_psnr(after)}", f"{np.mean(before['ssim']):.2f} → {np.mean(after['ssim']):.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _share(measured: Row, unpruned: Row) -> str:
    ours, theirs = np.array(measured["right"], float), np.array(unpruned["right"], float)
    low, high = interval(ours - theirs)
    return f"{ours.mean():.1%} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _clip(measured: Row, unpruned: Row) -> str:
    ours, theirs = np.array(measured["clip"]), np.array(unpruned["clip"])
    low, high = interval(ours - theirs)
    return f"{ours.mean():.3f} [{low:+.3f}, {high:+.3f}]"


def _psnr(measured: Row) -> str:
    known = [value for value in measured["psnr_db"] if value is not None]
    return f"{np.mean(known):.1f}" if known else "equal"
