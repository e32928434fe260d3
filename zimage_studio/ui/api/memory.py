"""The public API of memory: what the switches do, what would fit, what it takes, and which profile is in use."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import gradio as gr

from zimage_studio.errors import Cancelled, InvalidInputError, UserError
from zimage_studio.messages import Lang, say
from zimage_studio.records.checks import whole
from zimage_studio.records.memory import MemoryProfile
from zimage_studio.records.request import MAX_SIDE_PX, MIN_SIDE_PX
from zimage_studio.services.measuring import MeasureJob
from zimage_studio.services.memory import MAX_MEASURED_PROFILES
from zimage_studio.services.studio import Studio
from zimage_studio.ui import forms
from zimage_studio.ui.doors import errors_as_answers, lang_of, session_of

WATCH_S = 5.0
FAILED = "web.failed"


def memory_endpoints(studio: Studio) -> list[Any]:
    """The functions to hand to gr.api."""
    return [_status(studio), _plan(studio), _measure(studio), _choose(studio)]


def _status(studio: Studio) -> Any:
    def memory_status(request: gr.Request, width: int | None = None, height: int | None = None) -> dict[str, Any]:
        """What every memory switch really does, read from the live pipeline, and what the devices hold.

        Returns "profile" (what the pipeline is under), "chosen" (what the next image will be under), "pending"
        (whether the two differ), "switches" ([{"name", "requested", "state", "reason"}], the state being "applied",
        "no_effect" or "refused"), "note" (empty, or when this was read), "devices" (bytes, each may be null) and
        "profiles" (the names to choose from). `width` and `height` in px, for switches that depend on them.
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            states = studio.memory.states(_size(width, height))
        return {
            "profile": asdict(states.profile),
            "chosen": asdict(states.chosen),
            "pending": states.pending,
            "switches": [
                {"name": s.name, "requested": s.requested, "state": s.state, "reason": say(s.reason, lang, **s.values)}
                for s in states.states
            ],
            "model": states.model,
            "note": say(states.note, lang) if states.note else "",
            "devices": studio.memory.reading().to_dict(),
            "profiles": list(studio.memory.profiles()),
        }

    return memory_status


def _plan(studio: Studio) -> Any:
    def memory_plan(
        request: gr.Request,
        width: int | None = None,
        height: int | None = None,
        free_gib: float | None = None,
        guidance: float | None = None,
        model: str = "",
    ) -> dict[str, Any]:
        """The least lossy memory profile that fits. Nothing is loaded.

        `free_gib` is the free memory to plan for; empty: what is free now, and what the model in memory would give
        back. `model` is a key of /models, empty: the default. Returns "profile", "reason" (a sentence), "predicted"
        ([{"phase", "peak_bytes", "weights_bytes", "host_bytes"}]), "fits", "free_bytes", "headroom_bytes", "size" (the
        largest that would fit, when nothing does) and "faster" (a quicker profile that loses more, or null).
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            key = _text("model", model) or None
            made = studio.memory.plan(_size(width, height), model=key, guidance=guidance, free_gib=free_gib)
        return {
            "profile": asdict(made.profile),
            "reason": say(made.reason, lang, **made.values),
            "predicted": made.predicted(),
            "fits": made.fits,
            "free_bytes": made.free_bytes,
            "headroom_bytes": made.headroom_bytes,
            "size": None if made.size is None else list(made.size),
            "faster": None if made.faster is None else made.faster.name,
        }

    return memory_plan


def _measure(studio: Studio) -> Any:
    def memory_measure(
        request: gr.Request,
        profiles: list[str] | None = None,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        prompt: str = "",
        model: str = "",
    ) -> list[dict[str, Any]]:
        """Run one request under several memory profiles, by name; none: the one in use. At most 12, one run at a time.

        Images of others get their turn between two profiles. Returns a row for each: "profile", "phase_peak_bytes"
        (text, denoise, decode), "seconds", "psnr_db_to_exact" (null where "identical"), "refused" (switches that could
        not be had) and "error" (empty, or why there are no numbers).
        """
        lang = lang_of(request)
        values = {"width": width, "height": height, "steps": steps, "guidance": guidance, "prompt": prompt or None}
        with errors_as_answers(lang):
            job = studio.memory.measure(
                _profiles(studio, profiles), values, model=_text("model", model) or None, session=session_of(request)
            )
            return [{**row.public(), "error": _problem(row.problem, lang)} for row in _finish(job, lang)]

    return memory_measure


def _choose(studio: Studio) -> Any:
    def set_memory_profile(
        request: gr.Request, profile: str = "", switches: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Take a memory profile from the next job on: a name of /memory_status, or an object of `switches`.

        Switches that are left out are as in the profile named, without one as in `exact`. This is a setting of the
        whole machine, kept over a restart: everyone's images that name no profile are made under it, and anyone who
        may log in may change it. A running job keeps what it has. Returns the profile.
        """
        with errors_as_answers(lang_of(request)):
            return asdict(studio.memory.choose(_chosen(studio, profile, switches)))

    return set_memory_profile


def _chosen(studio: Studio, profile: object, switches: object) -> MemoryProfile:
    name = _text("profile", profile)
    if not name and switches is None:
        raise InvalidInputError("bad_choice", field="profile", value="", known=", ".join(studio.memory.profiles()))
    base = studio.memory.find(name) if name else None
    if switches is None and base is not None:
        return base
    if not isinstance(switches, Mapping) or not all(isinstance(key, str) for key in switches):
        raise InvalidInputError("bad_switches", field="profile", value=switches)
    return studio.memory.parse(switches, base)


def _profiles(studio: Studio, names: object) -> list[MemoryProfile]:
    if not names:
        return [studio.memory.profile]
    if not isinstance(names, list):
        raise InvalidInputError("bad_choice", field="profile", value=names, known=", ".join(studio.memory.profiles()))
    whole("profiles", len(names), 1, MAX_MEASURED_PROFILES)
    return [studio.memory.find(name) for name in names]


def _size(width: object, height: object) -> tuple[int, int] | None:
    """Both sides or none. Raises InvalidInputError."""
    if width is None and height is None:
        return None
    return whole("width", width, MIN_SIDE_PX, MAX_SIDE_PX), whole("height", height, MIN_SIDE_PX, MAX_SIDE_PX)


def _text(field: str, value: object) -> str:
    return forms.text_or_refuse(field, "" if value is None else value)


def _problem(error: UserError | None, lang: Lang) -> str:
    return "" if error is None else error.text(lang)


def _finish(job: MeasureJob, lang: Lang) -> Any:
    """Forward the progress, wait for the end. Raises UserError, or gr.Error where the fault is ours."""
    progress = gr.Progress()
    view = job.view
    while not view.finished:
        words = " · ".join(part for part in (view.profile, say(view.note, lang, ahead=0)) if part)
        progress((view.done, view.total), desc=words, unit="")
        view = job.wait_change(view.version, WATCH_S)
    try:
        return job.result()
    except Cancelled:
        raise UserError("measure_stopped") from None
    except RuntimeError as error:
        raise gr.Error(say(FAILED, lang), print_exception=False) from error
