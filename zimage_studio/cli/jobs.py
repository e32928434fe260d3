"""Commands about jobs: list, show, stop, resume, log; and the process of a job itself."""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from zimage_studio.cli.common import DataOption
from zimage_studio.cli.following import compressing, follow, job_line
from zimage_studio.cli.options import FEW, Common, with_common
from zimage_studio.errors import UserError
from zimage_studio.messages import Lang
from zimage_studio.records.job import JobRecord, is_job_id
from zimage_studio.settings import Settings, load_settings

jobs_app = typer.Typer(
    help="Long jobs: what runs, waits and ended.", invoke_without_command=True, rich_markup_mode=None
)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The id that `jobs list` shows.")]
STOP_S = 150.0


@jobs_app.callback()
@with_common(usual=FEW)
def jobs(context: typer.Context, common: Common) -> None:
    """List jobs, show one, stop it, resume it, read its log."""
    if context.invoked_subcommand is None:
        _list(common)


@jobs_app.command("list")
@with_common(usual=FEW)
def jobs_list(common: Common) -> None:
    """All jobs, newest first."""
    _list(common)


@jobs_app.command("show")
@with_common(usual=FEW)
def jobs_show(common: Common, job_id: IdArgument) -> None:
    """One job with its request and its result."""
    settings = common.settings
    with compressing(settings) as studio:
        job = studio.jobs.get(job_id)
    shown = {**job.public(), "reason": _reason(job, settings.lang)}
    common.print({"jobs": [shown]}, json.dumps(shown, ensure_ascii=False, indent=2), settings)


@jobs_app.command("stop")
@with_common(usual=FEW)
def jobs_stop(common: Common, job_id: IdArgument) -> None:
    """Stop a job at its next checkpoint, whichever process runs it, and wait for that."""
    settings = common.settings
    with compressing(settings) as studio:
        job = studio.jobs.stop(job_id)
        if not job.finished:
            job = studio.jobs.wait(job.id, STOP_S)
    _print_jobs(common, settings, [job])


@jobs_app.command("resume")
@with_common(usual=FEW)
def jobs_resume(common: Common, job_id: IdArgument) -> None:
    """Go on with a job that was stopped, interrupted or failed, and follow it to its end."""
    settings = common.settings
    with compressing(settings) as studio:
        job = follow(studio.jobs, studio.jobs.resume(job_id), settings.lang)
    _print_jobs(common, settings, [job])


@jobs_app.command("log")
@with_common(usual=FEW)
def jobs_log(
    common: Common,
    job_id: IdArgument,
    tail: Annotated[str, typer.Option(help="How many lines, from the end.")] = "200",
) -> None:
    """The last lines of a job's log."""
    settings = common.settings
    with compressing(settings) as studio:
        job, text = studio.jobs.get(job_id), studio.jobs.log(job_id, tail)
    result: dict[str, object] = {"jobs": [_entry(job, settings.lang)], "log": text}
    common.print(result, text.rstrip("\n"), settings)


def run_process(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    data: DataOption = None,
    parent: Annotated[int | None, typer.Option(help="The process to end with.")] = None,
    held: Annotated[int | None, typer.Option(help="The descriptor of the lock that it handed over.")] = None,
) -> None:
    """The process of one job; `jobs` and the page start it."""
    if not is_job_id(job_id):
        raise UserError("unknown_job")
    from zimage_studio.services.compression_work import run_compression_job

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    folder: Path = load_settings({"data": data}).data
    raise typer.Exit(run_compression_job(folder, job_id, parent=parent, held=held))


# --- what they share ------------------------------------------------------------------------------------------------


def _list(common: Common) -> None:
    settings = common.settings
    with compressing(settings) as studio:
        found = studio.jobs.list()
    _print_jobs(common, settings, found)


def _print_jobs(common: Common, settings: Settings, found: Sequence[JobRecord]) -> None:
    lines = [_text(job, settings.lang) for job in found]
    common.print({"jobs": [_entry(job, settings.lang) for job in found]}, "\n".join(lines), settings)


def _entry(job: JobRecord, lang: Lang) -> dict[str, object]:
    """A job as --json prints it."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "progress": job.progress,
        "started": job.started,
        "ended": job.ended,
        "reason": _reason(job, lang),
        "model": job.model,
        "eta_s": job.eta_s,
    }


def _reason(job: JobRecord, lang: Lang) -> str:
    return "" if job.problem is None else job.problem.text(lang)


def _text(job: JobRecord, lang: Lang) -> str:
    return f"{job.id}  {job.created[:19]}  {job_line(job, lang)}  {_reason(job, lang)}".rstrip()
