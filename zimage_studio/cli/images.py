"""Commands about images: generate, inspect, replay, grid."""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from zimage_studio.cli.common import (
    ImageOption,
    Printer,
    ShiftOption,
    StrengthOption,
    VariationSeedOption,
    VariationStrengthOption,
    VarietyOption,
    copied,
    entry,
    given,
    parse_size,
    quiet,
    running_studio,
    wanted_profile,
    watch,
    watch_grid,
)
from zimage_studio.cli.options import FEW, Common, with_common
from zimage_studio.core.metadata.inspect import inspect_file
from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.messages import Lang
from zimage_studio.records.grid import GridPlan, parse_axis, plan_grid, plan_neighbourhood
from zimage_studio.records.verdict import Verdict
from zimage_studio.services.grids import GridView
from zimage_studio.services.replay import read_original
from zimage_studio.services.studio import Studio

REFUSED = 2


@with_common("model", "profile", "offline", usual=FEW)
def generate(
    common: Common,
    prompt: Annotated[str, typer.Argument(help="What the image should show.")],
    negative: Annotated[str, typer.Option(help="What it should not show; needs guidance above 0.")] = "",
    seed: Annotated[str | None, typer.Option(help="0 to 2^64-1; none or -1 draws one.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="In px, multiples of 16.")] = None,
    steps: Annotated[str | None, typer.Option(help="Transformer passes.")] = None,
    guidance: Annotated[str | None, typer.Option(help="0 is off; other programs' CFG scale less 1.")] = None,
    count: Annotated[str | None, typer.Option(help="How many images; image i has seed + i.")] = None,
    shift: ShiftOption = None,
    variation_seed: VariationSeedOption = None,
    variation_strength: VariationStrengthOption = None,
    variety: VarietyOption = None,
    image: ImageOption = None,
    strength: StrengthOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also copy the images there.")] = None,
) -> None:
    """Make images. Each is a PNG that carries the recipe that makes it again."""
    settings = common.settings
    values = {"prompt": prompt, "negative_prompt": negative, **parse_size(size)} | given(
        seed=seed, steps=steps, guidance=guidance, count=count, shift=shift, variation_seed=variation_seed,
        variation_strength=variation_strength, variety=variety, strength=strength,
    )  # fmt: skip
    printer = Printer(common.as_json, settings.lang)
    with running_studio(settings) as studio:
        memory = wanted_profile(studio, common.profile)
        if image is not None:
            values["source"] = studio.sources.keep(image)
        job = studio.generation.submit(values, model=studio.settings.model, profile=memory)
        images = watch(job, printer)
        if out is not None:
            images = tuple(copied(made, out) for made in images)
    lines = [f"{made.path}  seed {made.recipe.request.seed}" for made in images]
    printer.result({"images": [entry(made) for made in images]}, "\n".join(lines))


@with_common(usual=FEW)
def inspect(common: Common, file: Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP file.")]) -> None:
    """Say what an image's metadata says: understood, converted, unknown."""
    settings = common.settings
    result = inspect_file(file).to_dict(settings.lang)
    common.print(result, json.dumps(result, ensure_ascii=False, indent=2), settings)


@with_common()
def replay(
    common: Common,
    file: Annotated[Path, typer.Argument(help="An image that Studio made.")],
    seed: Annotated[str | None, typer.Option(help="Another seed.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Another prompt.")] = None,
    negative: Annotated[str | None, typer.Option(help="Another negative prompt.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Another size.")] = None,
    steps: Annotated[str | None, typer.Option(help="Another number of steps.")] = None,
    guidance: Annotated[str | None, typer.Option(help="Another guidance.")] = None,
    shift: ShiftOption = None,
    variation_seed: VariationSeedOption = None,
    variation_strength: VariationStrengthOption = None,
    variety: VarietyOption = None,
    strength: StrengthOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also copy the new image there.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="KEY", help="Another model; else the one of the recipe, by hash.")
    ] = None,
) -> None:
    """Make an image again from its recipe and say whether it is the same.

    A changed field keeps the rest. The model is found by its hash, unless --model names another.
    """
    settings = common.settings
    overrides = parse_size(size) | given(
        seed=seed, prompt=prompt, negative_prompt=negative, steps=steps, guidance=guidance, shift=shift,
        variation_seed=variation_seed, variation_strength=variation_strength, variety=variety, strength=strength,
    )  # fmt: skip
    printer = Printer(common.as_json, settings.lang)
    with running_studio(settings) as studio:
        verdict = _replay(studio, file, overrides, model, printer, out)
    printer.result(verdict.to_dict(settings.lang), _verdict_text(verdict, settings.lang))
    if verdict.verdict == "refused":
        raise typer.Exit(REFUSED)


def _verdict_text(verdict: Verdict, lang: Lang) -> str:
    lines = [f"{verdict.verdict}: {verdict.sentence(lang)}"]
    lines += [f"  {difference.field}: {difference.then} -> {difference.now}" for difference in verdict.differences]
    if verdict.psnr_db is not None:
        apart = f"SSIM {verdict.ssim:.3f}, largest difference {verdict.max_difference}"
        lines.append(f"  PSNR {verdict.psnr_db:.1f} dB, {apart}")
    return "\n".join(lines)


def _replay(
    studio: Studio, file: Path, overrides: dict[str, object], model: str | None, printer: Printer, out: Path | None
) -> Verdict:
    """A refusal about the model or the recipe is a verdict too; bad overrides are refused as everywhere."""
    try:
        original = read_original(file)
        key = None if model is None else studio.models.get(model, allow_paths=True).key
        job = studio.replay.start(original, quiet, overrides=overrides, model=key, session="local")
    except InvalidInputError:
        raise
    except UserError as error:
        return Verdict(verdict="refused", reason=error.key, details=error.values)
    (made,) = watch(job, printer)
    if out is not None:
        made = copied(made, out)
    return studio.replay.verdict(original, made)


@with_common()
def grid(
    common: Common,
    file: Annotated[Path | None, typer.Argument(help="An image that Studio made.")] = None,
    x: Annotated[str | None, typer.Option(metavar="FIELD=a,b,c", help="What the columns vary.")] = None,
    y: Annotated[str | None, typer.Option(metavar="FIELD=a,b,c", help="What the rows vary.")] = None,
    around: Annotated[
        str | None, typer.Option(metavar="STRENGTH", help="Instead of x and y: variations around the image.")
    ] = None,
    side: Annotated[str, typer.Option(help="Cells a side around the image: 3, 5 or 7.")] = "3",
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Go on with a grid that was stopped.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also copy the sheet and the images there.")] = None,
) -> None:
    """Make a grid of images that differ from FILE in one or two fields, and a sheet of them.

    A prompt axis replaces: its first value is looked for in the prompt. What is made before a stop is kept.
    """
    settings = common.settings
    printer = Printer(common.as_json, settings.lang)
    with running_studio(settings) as studio:
        if resume is not None:
            made = studio.grids.resume(resume)
        elif file is None:
            raise InvalidInputError("grid_needs_image", field="file")
        else:
            made = studio.grids.start(_plan(studio, file, x, y, around, side))
        if not common.as_json:
            sys.stderr.write(f"grid {made.id}\n")
        view = watch_grid(made, printer)
        sheet = studio.grids.sheet(made)
        cells = _cells(made.plan, view, out)
        if out is not None:
            sheet = Path(shutil.copy2(sheet, out / f"grid-{made.id}.png"))
    printer.result({"id": made.id, "sheet": str(sheet), "cells": cells}, str(sheet))


def _plan(studio: Studio, file: Path, x: str | None, y: str | None, around: str | None, side: str) -> GridPlan:
    original = read_original(file)
    recipe = original.recipe
    if recipe is None:
        raise UserError("no_recipe", value=file.name)
    model = studio.replay.model_of(recipe, quiet)
    parent = recipe.outcome.pixels_sha256
    if around is not None:
        if x is not None or y is not None:
            raise InvalidInputError("axes_and_around", field="axis")
        return plan_neighbourhood(
            recipe.request, model.key, strength=around, side=side, memory=recipe.numerics.memory, parent=parent
        )
    if x is None:
        raise InvalidInputError("grid_needs_axis", field="axis")
    axes = [None if text is None else parse_axis(*_axis(text)) for text in (x, y)]
    for axis in axes:
        if axis is not None and axis.field == "model":
            for key in axis.values:
                studio.models.get(key)
    first = axes[0]
    if first is None:
        raise InvalidInputError("grid_needs_axis", field="axis")
    return plan_grid(
        recipe.request, model.key, first, axes[1],
        defaults=model.defaults, memory=recipe.numerics.memory, parent=parent,
    )  # fmt: skip


def _axis(text: str) -> tuple[str, str]:
    field, equals, values = text.partition("=")
    if not equals:
        raise InvalidInputError("empty_axis", field=text)
    return field.strip(), values


def _cells(plan: GridPlan, view: GridView, out: Path | None) -> list[dict[str, object]]:
    """Row by row, as the contract of the command line has them."""
    cells: list[dict[str, object]] = []
    for cell in plan.cells:
        image = view.images[cell.column, cell.row]
        if out is not None:
            image = copied(image, out)
        cells.append({
            "x": plan.x.values[cell.column] if plan.x else cell.column,
            "y": plan.y.values[cell.row] if plan.y else cell.row,
            "path": str(image.path),
            "pixels_sha256": image.recipe.outcome.pixels_sha256,
        })  # fmt: skip
    return cells
