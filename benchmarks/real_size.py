"""Z-Image's true geometry with random weights: what it needs by its shapes, and what it does on the device at hand.

    python -m benchmarks.real_size [--device auto|meta|cpu|cuda] [--geometry z-image|tiny] [--write docs/real_size.md]

Without a GPU (or with `--device meta`) the shapes alone are counted and the measured columns stay empty. With one,
plain diffusers and every preset draw the same picture in one run. `--geometry tiny --device cpu` goes the same way in
seconds, on a model of half a million parameters.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zimage_studio.core.torch_environment import prepare_torch
from zimage_studio.records.memory import PHASES, PRESETS

if TYPE_CHECKING:
    from benchmarks.real_size_run import Row, Task

GB = 1e9
SIDES = (512, 1024, 1536)
PLAIN = "plain diffusers"
AIMS: Mapping[str, str] = {
    "exact": "≤ 0.80 s, ≤ 22.5 GB, never slower than plain",
    "text_out": "≤ 13.6 GB",
    "text_out_tiled": "≤ 13.6 GB",
    "streamed": "≤ 2.5 GB",
    "fp8": "≤ 0.60 s",
}
"""On one H200 at 1024², 8 forwards."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="meta counts shapes and allocates nothing")
    parser.add_argument("--geometry", choices=("z-image", "tiny"), default="z-image")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="of the pictures that are foretold")
    parser.add_argument("--side", type=int, default=1024, help="of the picture that is measured")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=list(PRESETS))
    parser.add_argument("--scratch", type=Path, help="where weights may lie on disk; a temporary folder by default")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args(arguments)
    prepare_torch()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        text = page(options, Path(scratch), parser)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


def page(options: argparse.Namespace, scratch: Path, parser: argparse.ArgumentParser) -> str:
    """The whole document."""
    import torch  # after prepare_torch: what follows imports diffusers

    from benchmarks.geometry import GEOMETRIES
    from benchmarks.real_size_meta import flops_table, foretold_table, weights_table
    from benchmarks.real_size_run import Task, measured

    geometry = GEOMETRIES[options.geometry]
    device = _device(options.device)
    rows: Mapping[str, Row] = {}
    task = Task(
        geometry=geometry, device=torch.device(device), side=options.side, steps=options.steps,
        repeats=options.repeats, scratch=scratch,
    )  # fmt: skip
    if device != "meta":
        _require_room(task, parser)
        rows = measured(task, options.presets)
    return PAGE.format(
        geometry=geometry.name,
        made=machine(device),
        weights=weights_table(geometry),
        flops=flops_table(geometry, options.sides, options.steps),
        foretold=foretold_table(geometry, options.sides),
        side=options.side,
        steps=options.steps,
        measured=measured_table(rows, [PLAIN, *options.presets]),
        notes=notes(rows) if rows else "Not measured: no GPU was at hand. The columns are empty, not estimated.",
    )


def _device(wish: str) -> str:
    import torch

    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "meta"
    return wish


def _require_room(task: "Task", parser: argparse.ArgumentParser) -> None:
    """A CPU computes in float32: the true geometry would take 41 GB of RAM."""
    import torch

    from benchmarks.real_size_meta import all_in
    from zimage_studio.core.memory.host import ram
    from zimage_studio.core.memory.shapes import component_bytes
    from zimage_studio.core.memory.site import COMPONENTS
    from zimage_studio.records.memory import EXACT

    if task.device.type != "cpu":
        return
    shapes = task.geometry.shapes(all_in(torch.float32))
    need, free = sum(component_bytes(shapes, name, EXACT) for name in COMPONENTS), ram()[1]
    if free is not None and need > free:
        parser.error(
            f"--geometry {task.geometry.name} needs {need / GB:.1f} GB of RAM on a CPU, {free / GB:.1f} GB are free: "
            "use --device meta or --geometry tiny"
        )


def machine(device: str) -> str:
    """What it ran on, in words."""
    import diffusers
    import torch

    parts = [platform.machine(), f"{os.cpu_count()} CPU cores", f"Python {platform.python_version()}"]
    parts += [f"torch {torch.__version__}", f"diffusers {diffusers.__version__}"]
    if device.startswith("cuda"):
        found = torch.cuda.get_device_properties(torch.device(device))
        return ", ".join([f"{found.name} ({found.total_memory / GB:.0f} GB)", f"CUDA {torch.version.cuda}", *parts])
    return ", ".join([*parts, "no GPU"])


def measured_table(rows: "Mapping[str, Row]", names: Sequence[str]) -> str:
    """Markdown; empty cells for what was not measured."""
    lines = [
        "| way | s per image | ÷ plain | DiT forwards | TFLOP/s | peak GB: text | denoise | decode | aim (H200) |",
        "|---" * 9 + "|",
    ]
    plain = rows[PLAIN].seconds if PLAIN in rows else None
    for name in names:
        cells = _cells(rows[name], plain) if name in rows else [""] * 7
        lines.append(f"| {name} | {' | '.join(cells)} | {AIMS.get(name, '')} |")
    return "\n".join(lines)


def _cells(row: "Row", plain_s: float | None) -> list[str]:
    peaks = [f"{row.peaks[phase] / GB:.3g}" if phase in row.peaks else "" for phase in PHASES]
    if row.seconds is None:
        return ["failed", "", "", "", *peaks]
    ratio = "" if plain_s is None else f"{row.seconds / plain_s:.2f}"
    return [f"{row.seconds:.3f}", ratio, str(row.forwards), f"{row.teraflops:.3g}", *peaks]


def notes(rows: "Mapping[str, Row]") -> str:
    """What failed, and which switches the live pipeline refused."""
    lines = [f"- `{row.name}` failed: {row.failed}" for row in rows.values() if row.failed]
    lines += [f"- `{row.name}` refused {said}" for row in rows.values() for said in row.refused]
    return "\n".join(lines) or "Nothing failed and no switch was refused."


PAGE = """# Z-Image at its real size

Made by `python -m benchmarks.real_size` on: {made}. Geometry: `{geometry}`, random weights (the numbers below do not
depend on what the weights are). GB are 10⁹ bytes, TFLOP are 10¹² operations, two for each multiplication with
addition.

## Weights

What each component holds. `fp8 storage`, `int8` and `int4` are the transformer's; the others stay in bfloat16.

{weights}

## Arithmetic

Counted by torch's FlopCounterMode on meta tensors. Without guidance; guidance doubles the transformer's part.

{flops}

## Memory, foretold

Peak of each phase on a CUDA device in bfloat16 with 512 tokens, by `core/memory/estimate.py`, from shapes alone.
Workspaces of cuBLAS and cuDNN and the CUDA context come on top. The estimator is held against measurements in
docs/memory_estimate.md.

{foretold}

## Measured

{side}² px, {steps} steps, no guidance, one picture at a time; medians. Every picture reads its prompt anew, nothing is
remembered. Plain diffusers and `exact` draw in turns on the same weights; each other preset has a pipeline of its own.
TFLOP/s is the transformer's arithmetic over the seconds of the whole picture, reading and decoding included. Peaks are
what torch's allocator gave out (on a CPU: weights, and what the process grew by).

{measured}

{notes}
"""


if __name__ == "__main__":
    main()
