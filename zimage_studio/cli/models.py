"""Commands about models: list, show, add, compact."""

import json
import sys
from typing import Annotated

import typer

from zimage_studio.cli.common import DataOption, FoldersOption, JsonOption, LangOption, Printer, quiet, services
from zimage_studio.messages import Lang, say
from zimage_studio.records.progress import Progress
from zimage_studio.settings import Settings, load_settings

models_app = typer.Typer(help="The models Studio knows.", invoke_without_command=True, rich_markup_mode=None)


@models_app.callback()
def models(
    context: typer.Context,
    data: DataOption = None,
    lang: LangOption = None,
    folders: FoldersOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the models, show one, add one, or write a smaller copy of one."""
    context.obj = {"data": data, "lang": lang, "models": folders, "as_json": as_json}
    if context.invoked_subcommand is None:
        _list_models(context.obj)


@models_app.command("list")
def models_list(
    context: typer.Context, data: DataOption = None, lang: LangOption = None, as_json: JsonOption = False
) -> None:
    """All models."""
    _list_models(_merged(context, data, lang, as_json))


@models_app.command("show")
def models_show(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="Key, path or hub id.")],
    data: DataOption = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """One model, with its hash computed."""
    options = _merged(context, data, lang, as_json)
    settings = _settings(options)
    with services(settings) as studio:
        artifact = studio.models.get(key, allow_paths=True)
        if not artifact.missing and artifact.kind != "hub":
            artifact = studio.models.identity(artifact, quiet)
    data_out = artifact.public()
    Printer(bool(options["as_json"]), settings.lang).result(
        {"models": [data_out]}, json.dumps(data_out, ensure_ascii=False, indent=2)
    )


@models_app.command("add")
def models_add(
    context: typer.Context,
    path: Annotated[str, typer.Argument(help="A diffusers folder, a .safetensors or a .gguf file, or a hub id.")],
    data: DataOption = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a model and remember it."""
    options = _merged(context, data, lang, as_json)
    settings = _settings(options)
    with services(settings) as studio:
        artifact = studio.models.add(path)
    Printer(bool(options["as_json"]), settings.lang).result({"models": [artifact.public()]}, artifact.key)


@models_app.command("compact")
def models_compact(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="Key, path or hub id.")],
    data: DataOption = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a bfloat16 copy of weights that are stored wider, so that loading reads half the bytes."""
    options = _merged(context, data, lang, as_json)
    settings = _settings(options)
    with services(settings) as studio:
        made = studio.models.compact(studio.models.get(key, allow_paths=True), shown(settings.lang))
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    said = say(
        "compacted" if made.path else "compact_nothing", settings.lang, value=made.model, path=made.path,
        before_gb=f"{made.bytes_before / 1e9:.2f}", after_gb=f"{made.bytes_after / 1e9:.2f}",
    )  # fmt: skip
    Printer(bool(options["as_json"]), settings.lang).result(made.public(), said)


def shown(lang: Lang) -> Progress:
    """Progress as one line of the terminal, written over the last one; nothing where nobody watches."""

    def report(done: float, total: float, note: str, /, preview: object = None) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{say(note, lang)} {done / total if total else 1:.0%}")
            sys.stderr.flush()

    return report


def _settings(options: dict[str, object]) -> Settings:
    return load_settings({name: options.get(name) for name in ("data", "lang", "models")})


def _merged(context: typer.Context, data: str | None, lang: str | None, as_json: bool) -> dict[str, object]:
    """Options may stand before or after the sub-command."""
    before: dict[str, object] = context.obj
    return {
        **before,
        "data": data or before["data"],
        "lang": lang or before["lang"],
        "as_json": as_json or before["as_json"],
    }


def _list_models(options: dict[str, object]) -> None:
    settings = _settings(options)
    with services(settings) as studio:
        found = studio.models.list()
    lines = [f"{m.key:32} {m.kind:12} {m.name}" for m in found]
    Printer(bool(options["as_json"]), settings.lang).result({"models": [m.public() for m in found]}, "\n".join(lines))
