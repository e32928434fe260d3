"""Commands about memory: show, plan, measure; and the profiles."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from zimage_studio.cli.common import (
    Printer,
    given,
    load_profile,
    parse_size,
    running_studio,
    services,
    stopped_by_signals,
    wanted_profile,
)
from zimage_studio.cli.options import FEW, Common, with_common
from zimage_studio.errors import UserError
from zimage_studio.messages import Lang, say
from zimage_studio.records.checks import whole
from zimage_studio.records.measured import MeasuredRow
from zimage_studio.records.memory import GIB, PHASES, PRESETS, MemoryProfile, SwitchState
from zimage_studio.records.request import MAX_SIDE_PX, MIN_SIDE_PX
from zimage_studio.services.measuring import MeasureJob
from zimage_studio.services.memory import AUTO

memory_app = typer.Typer(help="How models fit into memory.", no_args_is_help=True, rich_markup_mode=None)

SizeOption = Annotated[str | None, typer.Option(metavar="WxH", help="In px; the model's usual size when not given.")]


@memory_app.command("show")
@with_common("model", "profile")
def show(common: Common, size: SizeOption = None) -> None:
    """Load the model under the profile and say what each switch really does; and what the devices hold."""
    settings = common.settings
    pixels = _size(size)
    with running_studio(settings) as studio:
        wanted = load_profile(studio, common.profile)
        studio.memory.apply(profile=wanted).result()
        states, reading = studio.memory.states(pixels), studio.memory.reading()
    switches = [switch_entry(state, settings.lang) for state in states.states]
    found = reading.to_dict()
    ram = {name: found[name] for name in found if name.startswith(("ram_", "process_", "children_"))}
    gpus = found["gpus"] if isinstance(found["gpus"], list) else []
    devices = [*({"kind": "gpu", **gpu} for gpu in gpus), {"kind": "ram", **ram}]
    lines = [f"{entry['name']:24} {entry['state']:10} {entry['reason']}" for entry in switches]
    result: dict[str, object] = {
        "profile": asdict(wanted),
        "model": states.model,
        "switches": switches,
        "devices": devices,
    }
    common.print(result, "\n".join(lines), settings)


@memory_app.command("plan")
@with_common("model")
def plan(
    common: Common,
    size: SizeOption = None,
    free_gib: Annotated[
        str | None, typer.Option(metavar="X", help="Free memory to plan for; what is free now when not given.")
    ] = None,
    guidance: Annotated[str | None, typer.Option(help="Above 0 two images are drawn at once.")] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Kind of device to plan for.")] = "auto",
) -> None:
    """Choose the least lossy profile that fits, and foretell its peaks. No weight is read."""
    settings = common.settings
    pixels = _size(size)
    with running_studio(settings) as studio:
        made = studio.memory.plan(pixels, free_gib=free_gib, guidance=guidance, device=device)
    reason = say(made.reason, settings.lang, **made.values)
    result = {
        "profile": asdict(made.profile),
        "reason": reason,
        "predicted": made.predicted(),
        "fits": made.fits,
        "free_bytes": made.free_bytes,
        "headroom_bytes": made.headroom_bytes,
        "size": None if made.size is None else list(made.size),
        "faster": None if made.faster is None else made.faster.name,
    }
    common.print(result, f"{made.profile.name}: {reason}", settings)


@memory_app.command("measure")
@with_common("model")
def measure(
    common: Common,
    profiles: Annotated[str, typer.Option(metavar="A,B,…", help="Presets, saved profiles or files.")],
    size: SizeOption = None,
    steps: Annotated[str | None, typer.Option(help="Transformer passes.")] = None,
    guidance: Annotated[str | None, typer.Option(help="0 is off.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the image should show.")] = None,
    seed: Annotated[str | None, typer.Option(help="0 to 2^64-1.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write all rows: .csv or .json.")] = None,
) -> None:
    """Run one request under several profiles: peak memory by phase, time, distance to the exact image."""
    settings = common.settings
    values = parse_size(size) | given(steps=steps, guidance=guidance, prompt=prompt, seed=seed)
    printer = Printer(common.as_json, settings.lang)
    with running_studio(settings) as studio:
        wanted = [load_profile(studio, name.strip()) for name in profiles.split(",")]
        rows = _watch(studio.memory.measure(wanted, values), printer)
        if out is not None:
            _write(out, studio.memory.export_rows(out.suffix.removeprefix(".").lower()))
    printer.result({"rows": [row.public() for row in rows]}, _table(rows, settings.lang))


@memory_app.command("profiles")
@with_common(usual=FEW)
def profiles(common: Common) -> None:
    """All profiles: the presets, then the saved ones; and which one is in use."""
    settings = common.settings
    with services(settings) as studio:
        known, used = studio.memory.profiles(), studio.memory.profile
    lines = [f"{_mark(profile, used)} {name:18} {_about(name, settings.lang)}" for name, profile in known.items()]
    result: dict[str, object] = {"profile": asdict(used), "profiles": [asdict(profile) for profile in known.values()]}
    common.print(result, "\n".join(lines), settings)


@memory_app.command("use")
@with_common(usual=FEW)
def use(
    common: Common,
    profile: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A preset, a saved profile, a file or `auto`.")],
) -> None:
    """Make a profile the one in use, for every image from now on that names none. `auto` lets Studio choose."""
    settings = common.settings
    with services(settings) as studio:
        chosen = wanted_profile(studio, profile)
        if chosen is None:
            studio.memory.choose_none()
        else:
            studio.memory.choose(chosen)
    shown = {"name": AUTO} if chosen is None else asdict(chosen)
    common.print({"profile": shown}, str(shown["name"] or profile), settings)


def switch_entry(state: SwitchState, lang: Lang) -> dict[str, object]:
    """A switch as --json and the API print it."""
    reason = say(state.reason, lang, **state.values)
    return {"name": state.name, "requested": state.requested, "state": state.state, "reason": reason}


def _size(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = parse_size(size)
    width, height = (whole(name, sides[name], MIN_SIDE_PX, MAX_SIDE_PX) for name in ("width", "height"))
    return width, height


def _watch(job: MeasureJob, printer: Printer) -> tuple[MeasuredRow, ...]:
    """Follow the measuring to its end; Ctrl+C and SIGTERM stop it at its next step."""
    with stopped_by_signals(job.stop):
        view = job.view
        while not view.finished:
            view = job.wait_change(view.version, 1.0)
            if sys.stderr.isatty():
                note = say(view.note, printer.lang, ahead=0)
                sys.stderr.write(f"\r\x1b[K[{view.done}/{view.total}] {view.profile} {note}")
                sys.stderr.flush()
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    return job.result()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError("cannot_write", folder=path, why=error.strerror) from error


def _table(rows: tuple[MeasuredRow, ...], lang: Lang) -> str:
    lines = [f"{'':18} " + " ".join(f"{phase:>11}" for phase in PHASES) + f" {'s':>8} {'PSNR dB':>8}"]
    for row in rows:
        if row.problem is not None:
            lines.append(f"{row.name:18} {row.problem.text(lang)}")
            continue
        peaks = " ".join(f"{row.phase_peak_bytes.get(phase, 0) / GIB:>7.2f} GiB" for phase in PHASES)
        apart = "=" if row.identical else "-" if row.psnr_db is None else f"{row.psnr_db:.1f}"
        lines.append(f"{row.name:18} {peaks} {row.seconds or 0:>8.2f} {apart:>8}")
    return "\n".join(lines)


def _mark(profile: MemoryProfile, used: MemoryProfile) -> str:
    return "*" if profile.same_switches(used) else " "


def _about(name: str, lang: Lang) -> str:
    return say(f"preset.{name}", lang) if name in PRESETS else ""
