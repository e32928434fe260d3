"""All commands together, and how they end."""

import itertools
import os
import sys
from collections.abc import Sequence

import typer

from zimage_studio.cli import compress, images, understand
from zimage_studio.cli.jobs import jobs_app, run_process
from zimage_studio.cli.memory import memory_app
from zimage_studio.cli.models import models_app
from zimage_studio.errors import Cancelled, UserError
from zimage_studio.messages import LANGS, Lang, say

REFUSED, FAILED, STOPPED = 2, 1, 130
NOT_THE_INPUT = frozenset(
    {
        "out_of_memory", "not_finite", "flat_image", "disk_full", "cannot_write", "job_bug", "job_killed",
        "job_process_gone", "job_app_ended", "recover_process",
    }
)  # fmt: skip


def build_app() -> typer.Typer:
    """The command tree."""
    app = typer.Typer(
        help="Z-Image Studio: make images with Z-Image models, and read what images say about their making.",
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    for command in (
        images.generate, images.inspect, images.replay, images.grid,
        understand.sensitivity, understand.knock_out,
        compress.plan, compress.prune, compress.recover, compress.evaluate, compress.carry_lora,
    ):  # fmt: skip
        app.command()(command)
    app.command("job", hidden=True)(run_process)
    app.add_typer(models_app, name="models")
    app.add_typer(memory_app, name="memory")
    app.add_typer(jobs_app, name="jobs")
    return app


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    lang = _wanted_lang(arguments)
    command = typer.main.get_command(build_app())
    try:
        status = command.main(args=list(arguments), prog_name="python -m zimage_studio", standalone_mode=False)
    except UserError as error:
        return _refuse(error.text(lang), REFUSED if _refusal(error) else FAILED)
    except typer.TyperException as error:
        return _refuse(str(error), REFUSED)
    except (Cancelled, KeyboardInterrupt, typer.Abort):
        return _refuse(say("note.stopped", lang), STOPPED)
    return status if isinstance(status, int) else 0


def _refusal(error: UserError) -> bool:
    """Whether the input was at fault, or something that happened while working."""
    return error.key not in NOT_THE_INPUT


def _refuse(sentence: str, status: int) -> int:
    sys.stderr.write(f"error: {sentence}\n")
    return status


def _wanted_lang(arguments: Sequence[str]) -> Lang:
    """The language for messages about the arguments themselves, before they are read properly."""
    words = [*arguments, ""]
    for word, following in itertools.pairwise(words):
        wanted = following if word == "--lang" else word.removeprefix("--lang=") if word.startswith("--lang=") else ""
        if wanted in LANGS:
            return "zh" if wanted == "zh" else "en"
    return "zh" if os.environ.get("ZIMAGE_LANG") == "zh" else "en"
