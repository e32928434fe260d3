"""Commands about jobs: list, show, stop, resume, log; and the process of a job itself."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from zimage_studio.cli.common import DataOption, JsonOption, LangOption, Printer
from zimage_studio.cli.following import compressing, follow, job_line
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
def jobs(context: typer.Context, data: DataOption = None, lang: LangOption = None, as_json: JsonOption = False) -> None:
    """List jobs, show one, stop it, resume it, read its log."""
    context.obj = {"data": data, "lang": lang, "as_json": as_json}
    if context.invoked_subcommand is None:
        _list(context.obj)


@jobs_app.command("list")
def jobs_list(
    context: typer.Context, data: DataOption = None, lang: LangOption = None, as_json: JsonOption = False
) -> None:
    """All jobs, newest first."""
    _list(_merged(context, data, lang, as_json))


@jobs_app.command("show")
def jobs_show(
    context: typer.Context,
    job_id: IdArgument,
    data: DataOption = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """One job with its request and its result."""
    options = _merged(context, data, lang, as_json)
    settings = _settings(options)
    with compressing(settings) as studio:
        job = studio.jobs.get(job_id)
    shown = {**job.public(), "reason": _reason(job, settings.lang)}
    _print(options, settings, [shown], json.dumps(shown, ensure_ascii=False, indent=2))


@jobs_app.command("stop")
def jobs_stop(
    context: typer.Context,
    job_id: IdArgument,
    data: DataOption = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a job at its next checkpoint, whichever process runs it, and wait for that."""
    options = _merged(context, data, lang, as_json)
    settings = _settings(options)
    with compressing(settings) as studio:
        job = studio.jobs.stop(job_id)
        if not job.finished:
            job = studio.jobs.wait(job.id, STOP_S)
    _print_jobs(options, settings, [job])


@jobs_app.command("resume")
def jobs_resume(
    context: typer.Context,
    job_id: IdArgument,
    data: DataOption = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a job that was stopped, interrupted or failed, and follow it to its end."""
    options = _merged(context, data, lang, as_json)
    settings = _settings(options)
    with compressing(settings) as studio:
        job = follow(studio.jobs, studio.jobs.resume(job_id), settings.lang)
    _print_jobs(options, settings, [job])


@jobs_app.command("log")
def jobs_log(
    context: typer.Context,
    job_id: IdArgument,
    tail: Annotated[str, typer.Option(help="How many lines, from the end.")] = "200",
    data: DataOption = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """The last lines of a job's log."""
    options = _merged(context, data, lang, as_json)
    settings = _settings(options)
    with compressing(settings) as studio:
        job, text = studio.jobs.get(job_id), studio.jobs.log(job_id, tail)
    result: dict[str, object] = {"jobs": [_entry(job, settings.lang)], "log": text}
    Printer(bool(options["as_json"]), settings.lang).result(result, text.rstrip("\n"))


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


def _list(options: dict[str, object]) -> None:
    settings = _settings(options)
    with compressing(settings) as studio:
        found = studio.jobs.list()
    _print_jobs(options, settings, found)


def _print_jobs(
    options: dict[str, object], settings: Settings, found: "tuple[JobRecord, ...] | list[JobRecord]"
) -> None:
    lines = [_text(job, settings.lang) for job in found]
    _print(options, settings, [_entry(job, settings.lang) for job in found], "\n".join(lines))


def _print(options: dict[str, object], settings: Settings, found: list[dict[str, object]], text: str) -> None:
    Printer(bool(options["as_json"]), settings.lang).result({"jobs": found}, text)


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


def _settings(options: dict[str, object]) -> Settings:
    return load_settings({name: options.get(name) for name in ("data", "lang")})


def _merged(context: typer.Context, data: str | None, lang: str | None, as_json: bool) -> dict[str, object]:
    """Options may stand before or after the sub-command."""
    before: dict[str, object] = context.obj
    return {
        "data": data or before["data"],
        "lang": lang or before["lang"],
        "as_json": as_json or before["as_json"],
    }
