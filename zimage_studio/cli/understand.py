"""Commands that show what a cut will do, before anything is cut: the sensitivity map, and a knock-out."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from zimage_studio.cli.common import (
    OverwriteOption,
    Printer,
    given,
    parse_size,
    refuse_taken,
    running_studio,
    stopped_by_signals,
)
from zimage_studio.cli.following import compressing, follow
from zimage_studio.cli.options import Common, with_common
from zimage_studio.core.metadata.png import encode_png
from zimage_studio.errors import UserError
from zimage_studio.messages import say
from zimage_studio.records.sensitivity import SensitivityMap
from zimage_studio.services.compression import prompts_of
from zimage_studio.services.files import replace_durably
from zimage_studio.services.knockouts import KnockOutJob, KnockOutView

WHOLE, WITHOUT = "whole.png", "without.png"


@with_common("model")
def sensitivity(
    common: Common,
    count: Annotated[str | None, typer.Option(help="How many prompts it is measured with.")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="These instead, one a line.")] = None,
    seed: Annotated[str | None, typer.Option(help="Of the first picture; the next ones follow.")] = None,
    by_timestep: Annotated[bool, typer.Option("--by-timestep", help="Also the change at each step.")] = False,
    heads: Annotated[bool, typer.Option("--heads", help="Also every head; takes much longer.")] = False,
) -> None:
    """Measure how much the model changes without each block, half (and head), the most sensitive first."""
    settings = common.settings
    values = given(count=count, seed=seed) | {"by_timestep": by_timestep, "heads": heads}
    with compressing(settings) as studio:
        if prompts is not None:
            values["prompts"] = prompts_of(prompts)
        asked = studio.compression.sensitivity(settings.model, values, allow_paths=True)
        job = follow(studio.jobs, asked, settings.lang)
        found = studio.compression.sensitivity_map(job)
    cells = sorted(_cells(found), key=lambda cell: -float(str(cell["change"])))
    lines = [f"{cell['part']:32} {cell['change']:.4f}" for cell in cells]
    result = {**job.result, "cells": cells, "times": found.times, "prompts": found.prompts, "seeds": found.seeds}
    common.print(result, "\n".join(lines), settings)


@with_common("model")
def knock_out(
    common: Common,
    out: Annotated[Path, typer.Option(metavar="DIR", help=f"Where {WHOLE} and {WITHOUT} are written.")],
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PART…", help="As on the page: layers.2, layers.2.attention, layers.1.head.3."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the image should show.")] = "",
    negative: Annotated[str, typer.Option(help="What it should not show; needs guidance above 0.")] = "",
    seed: Annotated[str | None, typer.Option(help="0 to 2^64-1; none or -1 draws one.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="In px, multiples of 16.")] = None,
    steps: Annotated[str | None, typer.Option(help="Transformer passes.")] = None,
    guidance: Annotated[str | None, typer.Option(help="0 is off; other programs' CFG scale less 1.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw one picture twice, with the whole model and without some of its parts, and say how far they are apart."""
    settings = common.settings
    values = {"prompt": prompt, "negative_prompt": negative, **parse_size(size)}
    values |= given(seed=seed, steps=steps, guidance=guidance)
    places = (out / WHOLE, out / WITHOUT)
    if not overwrite:
        refuse_taken(*places)
    with running_studio(settings) as studio:
        job = studio.compression.knock_out(values, parts or (), model=studio.settings.model)
        view = _watched(job, Printer(common.as_json, settings.lang))
    assert view.whole_HWC is not None  # it came to its end
    assert view.knocked_HWC is not None
    assert view.distance is not None
    missing = f"Without {', '.join(str(knock) for knock in job.knocks)}: no recipe makes this again."
    _write(places[0], encode_png(view.whole_HWC, {}))
    _write(places[1], encode_png(view.knocked_HWC, {"Comment": missing}))
    apart = asdict(view.distance)
    shown = {
        "whole": str(places[0]), "without": str(places[1]), "parts": [str(knock) for knock in job.knocks],
        "model": job.model, "seed": job.request.seed, **apart,
    }  # fmt: skip
    psnr = "–" if view.distance.psnr_db is None else f"{view.distance.psnr_db:.1f} dB"
    text = f"PSNR {psnr}, SSIM {view.distance.ssim:.3f}, largest difference {view.distance.max_difference}"
    common.print(shown, f"{places[0]}\n{places[1]}\n{text}", settings)


def _write(path: Path, content: bytes) -> None:
    """Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(path, content)
    except OSError as error:
        raise UserError("cannot_write", folder=path.parent, why=error.strerror) from error


def _cells(found: SensitivityMap) -> list[dict[str, object]]:
    """Each with its name, as `knock-out` takes it."""
    return [{"part": str(cell.knock), **asdict(cell)} for cell in found.cells]


def _watched(job: KnockOutJob, printer: Printer) -> KnockOutView:
    """Follow the job to its end; Ctrl+C and SIGTERM stop it at its next step."""
    with stopped_by_signals(job.stop):
        view = job.view
        while not view.finished:
            view = job.wait_change(view.version, 1.0)
            if sys.stderr.isatty():
                sys.stderr.write(f"\r\x1b[K{say(view.note, printer.lang, ahead=0)} {view.done:g}/{view.total:g}")
                sys.stderr.flush()
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    return job.result()
