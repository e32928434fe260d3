"""Run every benchmark and print (or write) one Markdown table.

python -m benchmarks [--write docs/benchmarks.md] [--repeats 15]
"""

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import page, service


@dataclass(frozen=True, slots=True)
class Options:
    """How often to repeat, and where to work."""

    repeats: int
    work: Path


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `value` is shown as it is; `aim` may be empty."""

    name: str
    value: str
    aim: str
    how: str


def rows(options: Options) -> list[Row]:
    """Measure everything."""
    single = service.seconds_per_image(options.work / "service", options.repeats)
    batch = service.seconds_per_image(options.work / "batch", max(5, options.repeats // 2), count=4)
    start = page.start(options.work / "start", repeats=3)
    preview = page.click_to_preview(options.work / "preview", max(5, options.repeats // 3))
    without_torch = "yes" if all(run.without_torch for run in start) else "NO"
    return [
        Row("time per image, service ÷ plain diffusers", *against(*single, "one image a job")),
        Row("the same in a batch of four", *against(*batch, "saving goes on while the next is drawn")),
        Row(
            "start to first answer of the page",
            median_s([run.page_s for run in start]),
            "≤ 3 s",
            f"imports warm; torch not imported before the answer: {without_torch}",
        ),
        Row("start to ready, model loaded", median_s([run.ready_s for run in start]), "", "the same runs, `/readyz`"),
        Row(
            "click to first preview",
            median_s(preview),
            "",
            f"submit to the first view that holds a preview, {len(preview)} jobs, model loaded",
        ),
    ]


def against(ours: Sequence[float], plain: Sequence[float], note: str) -> tuple[str, str, str]:
    """(value, aim, how): the median of the ratios of neighbours, which a machine that slows down does not move."""
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, plain, strict=True))
    more = 1000 * statistics.median(mine - theirs for mine, theirs in zip(ours, plain, strict=True))
    how = f"medians {median_s(ours)} and {median_s(plain)}, {more:.0f} ms more, {len(ours)} pairs in turns; {note}"
    return f"{ratio:.3f}", "≤ 1.05", how


def median_s(values: Sequence[float]) -> str:
    """The median, in seconds."""
    return f"{statistics.median(values):.2f} s"


def table(measured: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| what | measured | aim | how |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.name} | {row.value} | {row.aim} | {row.how} |" for row in measured)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        text = table(rows(Options(arguments.repeats, Path(work))))
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, no GPU used"
    made = f"Made by `make bench` on: {machine}. The embedded model at its default size, steps and guidance."
    text = f"# Benchmarks\n\n{made}\n\n{text}\n"
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
