"""The command line: the same services as the page, for people and for scripts.

Exit status: 0 done; 2 the input was refused (`error: …` on stderr); 1 anything else; 130 stopped. With --json,
stdout holds exactly one JSON object; progress and logs go to stderr.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from zimage_studio.core.metadata.inspect import inspect_file
from zimage_studio.errors import Cancelled, InvalidInputError, UserError
from zimage_studio.messages import LANGS, Lang, say
from zimage_studio.records.verdict import Verdict
from zimage_studio.services.generation import GenerationJob, JobView
from zimage_studio.services.images import StoredImage
from zimage_studio.services.replay import read_original
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings, load_settings

REFUSED, FAILED, STOPPED = 2, 1, 130
PROFILES = ("exact",)

app = typer.Typer(
    help="Z-Image Studio: make images with Z-Image models, and read what images say about their making.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="The models Studio knows.", invoke_without_command=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")

DataOption = Annotated[str | None, typer.Option("--data", metavar="DIR", help="Where all state lives.")]
LangOption = Annotated[str | None, typer.Option("--lang", metavar="en|zh", help="Language of messages.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="KEY", help="`tiny`, a key of `models`, a path or a hub id.")
]
ProfileOption = Annotated[
    str, typer.Option("--profile", metavar="NAME", help="Memory profile; `exact` changes nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
FoldersOption = Annotated[list[str] | None, typer.Option("--models", metavar="DIR", help="More folders with models.")]
OfflineOption = Annotated[bool | None, typer.Option("--offline", help="Never use the network.")]


@dataclass(frozen=True, slots=True)
class _Printer:
    """Where results and progress go."""

    as_json: bool
    lang: Lang

    def result(self, data: dict[str, object], text: str) -> None:
        sys.stdout.write((json.dumps(data, ensure_ascii=False, allow_nan=False) if self.as_json else text) + "\n")

    def progress(self, view: JobView) -> None:
        note = say(view.note, self.lang, ahead=view.ahead) if view.note else ""
        where = f" {view.done:g}/{view.total:g}" if view.total and view.note == "note.denoising" else ""
        share = f" {view.done / view.total:.0%}" if view.total and "load" in view.note else ""
        line = f"[{view.index + 1}/{view.count}] {note}{where}{share}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the image should show.")],
    negative: Annotated[str, typer.Option(help="What it should not show; needs guidance above 0.")] = "",
    seed: Annotated[str | None, typer.Option(help="0 to 2^64-1; none or -1 draws one.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="In px, multiples of 16.")] = None,
    steps: Annotated[str | None, typer.Option(help="Transformer passes.")] = None,
    guidance: Annotated[str | None, typer.Option(help="0 is off; other programs' CFG scale less 1.")] = None,
    count: Annotated[str | None, typer.Option(help="How many images; image i has seed + i.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also copy the images there.")] = None,
    model: ModelOption = None,
    profile: ProfileOption = "exact",
    data: DataOption = None,
    lang: LangOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make images. Each is a PNG that carries the recipe that makes it again."""
    settings = load_settings({"data": data, "lang": lang, "model": model, "offline": offline})
    if profile not in PROFILES:
        raise InvalidInputError("bad_choice", field="profile", value=profile, known=", ".join(PROFILES))
    values: dict[str, object] = {
        "prompt": prompt,
        "negative_prompt": negative,
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "count": count,
        **_size(size),
    }
    printer = _Printer(as_json, settings.lang)
    with _studio(settings) as studio:
        job = studio.generation.submit(values, model=studio.settings.model)
        images = _watch(job, printer)
        if out is not None:
            images = tuple(_copied(image, out) for image in images)
    entries = [_entry(image) for image in images]
    printer.result(
        {"images": entries}, "\n".join(f"{image.path}  seed {image.recipe.request.seed}" for image in images)
    )


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP file.")],
    lang: LangOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what an image's metadata says: understood, converted, unknown."""
    settings = load_settings({"lang": lang, "data": data})
    result = inspect_file(file).to_dict(settings.lang)
    _Printer(as_json, settings.lang).result(result, json.dumps(result, ensure_ascii=False, indent=2))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="An image that Studio made.")],
    seed: Annotated[str | None, typer.Option(help="Another seed.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Another prompt.")] = None,
    negative: Annotated[str | None, typer.Option(help="Another negative prompt.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Another size.")] = None,
    steps: Annotated[str | None, typer.Option(help="Another number of steps.")] = None,
    guidance: Annotated[str | None, typer.Option(help="Another guidance.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also copy the new image there.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="KEY", help="Another model; else the one of the recipe, by hash.")
    ] = None,
    folders: FoldersOption = None,
    data: DataOption = None,
    lang: LangOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an image again from its recipe and say whether it is the same.

    A changed field keeps the rest. The model is found by its hash, unless --model names another.
    """
    settings = load_settings({"data": data, "lang": lang, "models": folders, "offline": offline})
    given = {"seed": seed, "prompt": prompt, "negative_prompt": negative, "steps": steps, "guidance": guidance}
    overrides = {**{name: value for name, value in given.items() if value is not None}, **_size(size)}
    printer = _Printer(as_json, settings.lang)
    with _studio(settings) as studio:
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
    studio: Studio, file: Path, overrides: dict[str, object], model: str | None, printer: _Printer, out: Path | None
) -> Verdict:
    """A refusal about the model or the recipe is a verdict too; bad overrides are refused as everywhere."""
    try:
        original = read_original(file)
        key = None if model is None else studio.models.get(model, allow_paths=True).key
        job = studio.replay.start(original, _quiet, overrides=overrides, model=key, session="local")
    except InvalidInputError:
        raise
    except UserError as error:
        return Verdict(verdict="refused", reason=error.key, details=error.values)
    (made,) = _watch(job, printer)
    if out is not None:
        made = _copied(made, out)
    return studio.replay.verdict(original, made)


@models_app.callback()
def models(
    context: typer.Context,
    data: DataOption = None,
    lang: LangOption = None,
    folders: FoldersOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the models, show one, or add one."""
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
    with _services(settings) as studio:
        artifact = studio.models.get(key, allow_paths=True)
        if not artifact.missing and artifact.kind != "hub":
            artifact = studio.models.identity(artifact, _quiet)
    data_out = artifact.public()
    _Printer(bool(options["as_json"]), settings.lang).result(
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
    with _services(settings) as studio:
        artifact = studio.models.add(path)
    _Printer(bool(options["as_json"]), settings.lang).result({"models": [artifact.public()]}, artifact.key)


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    lang = _wanted_lang(arguments)
    command = typer.main.get_command(app)
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
    return error.key not in {"out_of_memory", "not_finite", "flat_image", "disk_full", "cannot_write"}


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


def _size(size: str | None) -> dict[str, object]:
    if size is None:
        return {}
    width, cross, height = size.lower().replace("×", "x").partition("x")
    if not cross or not width or not height:
        raise InvalidInputError("bad_size", field="size", value=size)
    return {"width": width, "height": height}


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
    with _services(settings) as studio:
        found = studio.models.list()
    lines = [f"{m.key:32} {m.kind:12} {m.name}" for m in found]
    _Printer(bool(options["as_json"]), settings.lang).result({"models": [m.public() for m in found]}, "\n".join(lines))


@contextmanager
def _services(settings: Settings) -> Iterator[Studio]:
    """The services without the owner thread: nothing is loaded."""
    yield build_studio(settings)


@contextmanager
def _studio(settings: Settings) -> Iterator[Studio]:
    studio = build_studio(settings)
    studio.manager.start()
    try:
        yield studio
    finally:
        studio.begin_stop()
        studio.close()


def _watch(job: GenerationJob, printer: _Printer) -> tuple[StoredImage, ...]:
    """Follow the job to its end; Ctrl+C and SIGTERM stop it at its next step."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        job.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        view = job.view
        while not view.finished:
            view = job.wait_change(view.version, 1.0)
            printer.progress(view)
        if sys.stderr.isatty():
            sys.stderr.write("\n")
        return job.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _copied(image: StoredImage, folder: Path) -> StoredImage:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return StoredImage(image.id, Path(shutil.copy2(image.path, folder / image.path.name)), image.recipe)
    except OSError as error:
        raise UserError("cannot_write", folder=folder, why=error.strerror) from error


def _entry(image: StoredImage) -> dict[str, object]:
    recipe = image.recipe
    return {
        "path": str(image.path),
        "seed": recipe.request.seed,
        "pixels_sha256": recipe.outcome.pixels_sha256,
        "seconds": recipe.outcome.seconds,
        "recipe": recipe.to_dict(),
    }


def _quiet(done: float, total: float, note: str, /, preview: object = None) -> None:
    """Hashing a model that is shown needs no progress."""
