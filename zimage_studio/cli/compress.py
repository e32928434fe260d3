"""Commands that make models smaller, each a job that is followed to its end: plan, prune, recover, evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from zimage_studio.cli.common import OverwriteOption, given, refuse_taken
from zimage_studio.cli.following import compressing, follow
from zimage_studio.cli.options import Common, with_common
from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.records.recover import RecoveryConfig
from zimage_studio.services.compression import prompts_of
from zimage_studio.services.files import replace_durably

NameOption = Annotated[str | None, typer.Option("--name", help="What to call it; a readable name when not given.")]
ModelArgument = Annotated[str, typer.Argument(help="A key of `models`, a path or a hub id.")]


@with_common("model")
def plan(
    common: Common,
    kind: Annotated[str, typer.Option(metavar="KIND,…", help="What to cut: depth, ffn, heads; or dim alone.")],
    criterion: Annotated[
        str, typer.Option(help="random, l1, group_l2, taylor, fisher, activation, ablation or block_influence.")
    ] = "l1",
    ratio: Annotated[str | None, typer.Option(help="Share to remove, between 0 and 1.")] = None,
    gigabytes: Annotated[str | None, typer.Option(help="Size of the whole model afterwards, instead.")] = None,
    speedup: Annotated[str | None, typer.Option(help="Predicted speed-up to reach, instead.")] = None,
    seed: Annotated[str | None, typer.Option(help="For random, and for what is drawn to measure.")] = None,
    prompts: Annotated[str | None, typer.Option(help="How many prompts the criterion measures with.")] = None,
    allocation: Annotated[str | None, typer.Option(help="auto, even or ranked.")] = None,
    protect_ends: Annotated[bool, typer.Option(help="Leave refiners, first and last block alone.")] = True,
    note: Annotated[str | None, typer.Option(help="A remark to keep with the plan.")] = None,
    name: NameOption = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the plan to this file.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Decide what to cut and foretell what comes of it. Nothing is cut."""
    settings = common.settings
    values = given(
        ratio=ratio, gigabytes=gigabytes, speedup=speedup, seed=seed, prompts=prompts, allocation=allocation, note=note
    )
    values |= {"model": settings.model, "kinds": kind, "criterion": criterion, "protect_ends": protect_ends}
    if out is not None and not overwrite:
        refuse_taken(out)
    with compressing(settings) as studio:
        job = studio.compression.plan(values, save_as=name or "", overwrite=overwrite, allow_paths=True)
        done = follow(studio.jobs, job, settings.lang)
        result = dict(done.result)
    if out is not None:
        result["plan"] = str(_copied(Path(str(result["plan"])), out))
    text = f"{result['plan']}\n{result['parameters_before']} → {result['parameters_after']}"
    common.print(result, text, settings)


@with_common()
def prune(
    common: Common,
    plan: Annotated[str, typer.Argument(help="A plan by its name, or its file.")],
    name: NameOption = None,
) -> None:
    """Make the smaller model that a plan describes, beside its parent."""
    settings = common.settings
    with compressing(settings) as studio:
        job = studio.compression.prune(plan, name or "", allow_paths=True)
        result = dict(follow(studio.jobs, job, settings.lang).result)
    common.print(result, f"{result['model']}\n{result['path']}", settings)


@with_common()
def recover(
    common: Common,
    model: ModelArgument,
    teacher: Annotated[str | None, typer.Option(metavar="KEY", help="The uncut parent when not given.")] = None,
    data_set: Annotated[
        str | None, typer.Option("--data-set", metavar="DIR|drawn", help="Pictures with captions; or webdataset.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="How long: steps of training…")] = None,
    minutes: Annotated[str | None, typer.Option(help="…or minutes.")] = None,
    method: Annotated[str | None, typer.Option(help="flow, distil or both.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts to distil with, one a line, instead of captions.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Pictures a step.")] = None,
    lr: Annotated[str | None, typer.Option(help="Learning rate.")] = None,
    seed: Annotated[str | None, typer.Option(help="Decides order and noise.")] = None,
    processes: Annotated[
        str | None, typer.Option(metavar="N|auto", help="How many train together; auto: one for each accelerator.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All settings as JSON; options given here go first.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last recovery of this model.")] = False,
    name: NameOption = None,
) -> None:
    """Train a cut model until it draws like its parent again; the result is a new model."""
    settings = common.settings
    with compressing(settings) as studio:
        if resume:
            job = studio.compression.resume_recovery(model, allow_paths=True)
        else:
            values = {} if config is None else _config(config, keep_budget=steps is None and minutes is None)
            values |= given(
                teacher=teacher, data_set=data_set, method=method, steps=steps, minutes=minutes, batch=batch, lr=lr,
                seed=seed, processes=processes, prompts=None if prompts is None else prompts_of(prompts),
            )  # fmt: skip
            job = studio.compression.recover(model, values, name or "", allow_paths=True)
        result = dict(follow(studio.jobs, job, settings.lang).result)
    common.print(result, f"{result['model']}\n{result['path']}", settings)


@with_common()
def evaluate(
    common: Common,
    model: ModelArgument,
    against: Annotated[str | None, typer.Option(metavar="KEY", help="The uncut parent when not given.")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="One a line.")] = None,
    count: Annotated[str | None, typer.Option(help="How many prompts, when no file names them.")] = None,
    seed: Annotated[str | None, typer.Option(help="Of the first picture; the next ones follow.")] = None,
    size: Annotated[str | None, typer.Option(help="Side in px; the model's usual size when not given.")] = None,
    steps: Annotated[str | None, typer.Option(help="Steps a picture; the model's usual ones when not given.")] = None,
    repeats: Annotated[str | None, typer.Option(help="How often each model is timed.")] = None,
    clip: Annotated[str | None, typer.Option(help="open_clip checkpoint: a folder or a hub id.")] = None,
    lpips: Annotated[str | None, typer.Option(help="Folder with LPIPS weights.")] = None,
    quantised: Annotated[bool, typer.Option(help="Also measure the uncut parent, rounded to the same bytes.")] = True,
) -> None:
    """Compare a model with its parent at the same prompts and seeds, and write the report card."""
    settings = common.settings
    values = given(seed=seed, size=size, steps=steps, repeats=repeats, clip=clip, lpips=lpips)
    values |= {"quantised": quantised}
    with compressing(settings) as studio:
        values |= given(count=count) if prompts is None else {"prompts": prompts_of(prompts)}
        job = studio.compression.evaluate(model, values, against or "", allow_paths=True)
        result = dict(follow(studio.jobs, job, settings.lang).result)
    lines = [str(result["card"]), *(_line(metric) for metric in _list(result["metrics"]))]
    common.print(result, "\n".join(lines), settings)


@with_common()
def carry_lora(
    common: Common,
    lora: Annotated[Path, typer.Argument(metavar="FILE", help="A LoRA made for the uncut parent, .safetensors.")],
    model: ModelArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The new file.")],
) -> None:
    """Make a LoRA of the parent fit a cut model: blocks numbered anew, rows and columns as they were kept."""
    settings = common.settings
    with compressing(settings) as studio:
        made = studio.compression.carry_lora(lora, model, out, allow_paths=True)
    result = {"path": str(made.path), "kept": made.kept, "dropped": made.dropped}
    common.print(result, str(made.path), settings)


# --- what they share ------------------------------------------------------------------------------------------------


def _config(path: Path, *, keep_budget: bool) -> dict[str, object]:
    """The settings in a file, without its budget where another one is given. Raises UserError."""
    try:
        values = RecoveryConfig.from_json(path.read_text(encoding="utf-8")).to_dict()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "UTF-8"
        raise InvalidInputError("recover_unreadable", field="recovery", why=why) from error
    left_out = {"schema"} if keep_budget else {"schema", "steps", "minutes"}
    return {name: value for name, value in values.items() if name not in left_out and value is not None}


def _copied(source: Path, target: Path) -> Path:
    """A copy of `source` at `target`. Raises UserError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(target, source.read_bytes())
    except OSError as error:
        raise UserError("cannot_write", folder=target, why=error.strerror) from error
    return target


def _list(value: object) -> list[dict[str, object]]:
    return value if isinstance(value, list) else []


def _line(metric: dict[str, object]) -> str:
    return f"{metric['name']:24} {_shown(metric['value']):>14} {_shown(metric['parent']):>14} {metric['unit']}"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) else "–"
