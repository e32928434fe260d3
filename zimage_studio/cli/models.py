"""Commands about models: list, show, add, compact."""

import json
import sys
from typing import Annotated

import typer

from zimage_studio.cli.common import quiet, services
from zimage_studio.cli.options import FEW, Common, with_common
from zimage_studio.messages import Lang, say
from zimage_studio.records.progress import Progress

models_app = typer.Typer(help="The models Studio knows.", invoke_without_command=True, rich_markup_mode=None)

KeyArgument = Annotated[str, typer.Argument(help="Key, path or hub id.")]


@models_app.callback()
@with_common("folders", usual=FEW)
def models(context: typer.Context, common: Common) -> None:
    """List the models, show one, add one, or write a smaller copy of one."""
    if context.invoked_subcommand is None:
        _list_models(common)


@models_app.command("list")
@with_common(usual=FEW)
def models_list(common: Common) -> None:
    """All models."""
    _list_models(common)


@models_app.command("show")
@with_common(usual=FEW)
def models_show(common: Common, key: KeyArgument) -> None:
    """One model, with its hash computed."""
    settings = common.settings
    with services(settings) as studio:
        artifact = studio.models.get(key, allow_paths=True)
        if not artifact.missing and artifact.kind != "hub":
            artifact = studio.models.identity(artifact, quiet)
    data_out = artifact.public()
    common.print({"models": [data_out]}, json.dumps(data_out, ensure_ascii=False, indent=2), settings)


@models_app.command("add")
@with_common(usual=FEW)
def models_add(
    common: Common,
    path: Annotated[str, typer.Argument(help="A diffusers folder, a .safetensors or a .gguf file, or a hub id.")],
) -> None:
    """Check a model and remember it."""
    settings = common.settings
    with services(settings) as studio:
        artifact = studio.models.add(path)
    common.print({"models": [artifact.public()]}, artifact.key, settings)


@models_app.command("compact")
@with_common(usual=FEW)
def models_compact(common: Common, key: KeyArgument) -> None:
    """Write a bfloat16 copy of weights that are stored wider, so that loading reads half the bytes."""
    settings = common.settings
    with services(settings) as studio:
        made = studio.models.compact(studio.models.get(key, allow_paths=True), shown(settings.lang))
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    said = say(
        "compacted" if made.path else "compact_nothing", settings.lang, value=made.model, path=made.path,
        before_gb=f"{made.bytes_before / 1e9:.2f}", after_gb=f"{made.bytes_after / 1e9:.2f}",
    )  # fmt: skip
    common.print(made.public(), said, settings)


def shown(lang: Lang) -> Progress:
    """Progress as one line of the terminal, written over the last one; nothing where nobody watches."""

    def report(done: float, total: float, note: str, /, preview: object = None) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{say(note, lang)} {done / total if total else 1:.0%}")
            sys.stderr.flush()

    return report


def _list_models(common: Common) -> None:
    settings = common.settings
    with services(settings) as studio:
        found = studio.models.list()
    lines = [f"{m.key:32} {m.kind:12} {m.name}" for m in found]
    common.print({"models": [m.public() for m in found]}, "\n".join(lines), settings)
