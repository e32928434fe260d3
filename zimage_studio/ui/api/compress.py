"""The public API of compression: every step as a job, and the jobs themselves."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import gradio as gr

from zimage_studio.errors import Cancelled, InvalidInputError, UserError
from zimage_studio.messages import Lang, say
from zimage_studio.records.job import JobRecord
from zimage_studio.services.knockouts import KnockOutJob, KnockOutView
from zimage_studio.services.studio import Studio
from zimage_studio.ui import forms
from zimage_studio.ui.compress.lab import file_stem, served_png
from zimage_studio.ui.doors import errors_as_answers, lang_of, session_of
from zimage_studio.ui.texts import Texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WATCH_S = 0.5
PROGRESS_STEPS = 1000


def compress_endpoints(studio: Studio) -> list[Any]:
    """The functions to hand to gr.api."""
    return [
        _plan(studio), _prune(studio), _recover(studio), _evaluate(studio), _sensitivity(studio), _knock_out(studio),
        _jobs(studio), _job(studio), _stop(studio), _resume(studio), _log(studio), _family(studio),
    ]  # fmt: skip


def _plan(studio: Studio) -> Any:
    def compress_plan(
        request: gr.Request,
        model: str = "",
        kinds: list[str] | None = None,
        criterion: str = "l1",
        ratio: float | None = None,
        gigabytes: float | None = None,
        speedup: float | None = None,
        seed: int | None = None,
        prompts: int | None = None,
        allocation: str = "",
        protect_ends: bool = True,
        name: str = "",
        wait: bool = True,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Decide what to cut from a model and foretell what comes of it, as a job. Nothing is cut.

        `kinds` are of depth, ffn, heads, or dim alone; give one of `ratio` (0..1), `gigabytes`, `speedup`. Every step
        of compression returns the job: "id", "kind", "state", "progress", "note", "eta_s", "reason", "request" and
        "result". With `wait` it returns when the job is over and fails when the job did; else at once. The result has
        "id" (its name for /compress_prune), "plan", "parameters_before", "parameters_after", "bytes_after",
        "predicted_speedup", "loads_in" and "blocks". A `name` that is taken is refused unless it may be overwritten.
        """
        lang = lang_of(request)
        values = {
            "model": model or studio.settings.model, "kinds": kinds or [], "criterion": criterion, "ratio": ratio,
            "gigabytes": gigabytes, "speedup": speedup, "seed": seed, "prompts": prompts, "allocation": allocation,
            "protect_ends": protect_ends,
        }  # fmt: skip
        with errors_as_answers(lang):
            job = studio.compression.plan(values, save_as=_text("name", name), overwrite=overwrite)
            return _over(studio, job, lang, wait)

    return compress_plan


def _prune(studio: Studio) -> Any:
    def compress_prune(request: gr.Request, plan: str, name: str = "", wait: bool = True) -> dict[str, Any]:
        """Make the smaller model that the plan called `plan` describes, as a job; its parent stays as it is.

        The result has "model" (its key), "parameters", "bytes", "peak_memory_bytes" and "seconds".
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            job = studio.compression.prune(_text("plan", plan), _text("name", name))
            return _over(studio, job, lang, wait)

    return compress_prune


def _recover(studio: Studio) -> Any:
    def compress_recover(
        request: gr.Request,
        model: str,
        steps: int | None = None,
        minutes: float | None = None,
        method: str = "flow",
        data_set: str = "drawn",
        teacher: str = "",
        settings: dict[str, Any] | None = None,
        name: str = "",
        wait: bool = False,
    ) -> dict[str, Any]:
        """Train a cut model until it draws like its parent again, as a job; the result is a new model.

        `method` is flow, distil or both; `data_set` is `drawn` or a name in DATA/datasets; `settings` holds any other
        field of the recovery settings (batch, lr, trainable, …). The result has "model", "steps", "loss_first",
        "loss_last" and "seconds".
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            values = {
                **_object("settings", settings),
                "method": method,
                "data_set": data_set,
                "teacher": teacher or None,
            }
            values |= {key: value for key, value in (("steps", steps), ("minutes", minutes)) if value is not None}
            job = studio.compression.recover(_text("model", model), values, _text("name", name))
            return _over(studio, job, lang, wait)

    return compress_recover


def _evaluate(studio: Studio) -> Any:
    def compress_evaluate(
        request: gr.Request,
        model: str,
        against: str = "",
        prompts: list[str] | None = None,
        count: int | None = None,
        seed: int | None = None,
        settings: dict[str, Any] | None = None,
        wait: bool = False,
    ) -> dict[str, Any]:
        """Compare a model with its uncut parent (or `against`) at the same prompts and seeds, as a job.

        The result has "metrics" ([{"name", "value", "parent", "unit", "better", "interval", …}]) and "not_measured";
        `settings` holds any other field of the evaluation (repeats, size, steps, quantised, clip, …).
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            values = {**_object("settings", settings), "prompts": prompts, "count": count, "seed": seed}
            job = studio.compression.evaluate(_text("model", model), values, _text("against", against))
            return _over(studio, job, lang, wait)

    return compress_evaluate


def _sensitivity(studio: Studio) -> Any:
    def compress_sensitivity(
        request: gr.Request,
        model: str = "",
        count: int | None = None,
        seed: int | None = None,
        by_timestep: bool = False,
        heads: bool = False,
        wait: bool = True,
    ) -> dict[str, Any]:
        """How much the model changes without each block and half (and head), as a job. The result has the "cells"."""
        lang = lang_of(request)
        with errors_as_answers(lang):
            values = {"count": count, "seed": seed, "by_timestep": by_timestep, "heads": heads}
            job = studio.compression.sensitivity(_text("model", model) or studio.settings.model, values)
            return _with_cells(studio, _over(studio, job, lang, wait))

    return compress_sensitivity


def _knock_out(studio: Studio) -> Any:
    def compress_knock_out(
        request: gr.Request,
        parts: list[str],
        prompt: str = "",
        negative_prompt: str = "",
        seed: str = "",
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        model: str = "",
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Draw one picture twice, with the whole model and without `parts`; the model stays as it is.

        `parts` are called as on the page: layers.2 (a block), layers.2.attention, layers.2.feed_forward,
        layers.1.head.3; also of noise_refiner and context_refiner. The rest is as in /generate_image. Returns both
        PNG files, which no recipe makes again, and {"parts", "model", "seed" (text), "psnr_db" (null when equal),
        "ssim", "max_difference"}.
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            values = {
                "prompt": prompt, "negative_prompt": negative_prompt, "seed": seed, "width": width, "height": height,
                "steps": steps, "guidance": guidance,
            }  # fmt: skip
            key = _text("model", model) or studio.settings.model
            job = studio.compression.knock_out(values, parts, model=key, session=session_of(request))
            view = _drawn(job, lang)
        assert view.whole_HWC is not None  # it came to its end
        assert view.knocked_HWC is not None
        assert view.distance is not None
        facts = {"parts": [str(knock) for knock in job.knocks], "model": job.model, "seed": str(job.request.seed)}
        return (
            _picture(view.whole_HWC, "whole"),
            _picture(view.knocked_HWC, file_stem(job.knocks)),
            {**facts, **asdict(view.distance)},
        )

    return compress_knock_out


def _drawn(job: KnockOutJob, lang: Lang) -> KnockOutView:
    """The end of a knock-out, with the progress forwarded. Raises UserError, gr.Error where the fault is ours."""
    progress = gr.Progress()
    view = job.view
    while not view.finished:
        progress((int(view.done), int(view.total) or 1), desc=say(view.note, lang, ahead=0), unit="")
        view = job.wait_change(view.version, WATCH_S)
    try:
        return job.result()
    except Cancelled:
        raise UserError("job_stopped") from None
    except RuntimeError as error:
        raise gr.Error(Texts(lang)("stage_bug"), print_exception=False) from error


def _picture(pixels_HWC: "NDArray[np.uint8]", stem: str) -> dict[str, Any]:
    """A picture as Gradio's clients download it."""
    served = served_png(pixels_HWC, stem)
    return {"path": served, "orig_name": f"{stem}.png", "mime_type": "image/png", "meta": {"_type": "gradio.FileData"}}


def _jobs(studio: Studio) -> Any:
    def compress_jobs(request: gr.Request, count: int = 50) -> list[dict[str, Any]]:
        """The newest jobs of everyone, newest first, without requests and results."""
        lang = lang_of(request)
        with errors_as_answers(lang):
            found = [_shown(job, lang) for job in studio.jobs.list(count)]
        return [{key: job[key] for key in job if key not in ("request", "result", "reason_values")} for job in found]

    return compress_jobs


def _job(studio: Studio) -> Any:
    def compress_job(request: gr.Request, job: str) -> dict[str, Any]:
        """One job with its request and its result."""
        lang = lang_of(request)
        with errors_as_answers(lang):
            return _with_cells(studio, _shown(studio.jobs.get(job), lang))

    return compress_job


def _stop(studio: Studio) -> Any:
    def compress_job_stop(request: gr.Request, job: str) -> dict[str, Any]:
        """Ask a job to stop at its next checkpoint; one that waits stops at once."""
        lang = lang_of(request)
        with errors_as_answers(lang):
            return _shown(studio.jobs.stop(job), lang)

    return compress_job_stop


def _resume(studio: Studio) -> Any:
    def compress_job_resume(request: gr.Request, job: str) -> dict[str, Any]:
        """Go on with a job that was stopped, interrupted or failed, from its last checkpoint."""
        lang = lang_of(request)
        with errors_as_answers(lang):
            return _shown(studio.jobs.resume(job), lang)

    return compress_job_resume


def _log(studio: Studio) -> Any:
    def compress_job_log(request: gr.Request, job: str, tail: int = 200) -> str:
        """The last lines of a job's log."""
        with errors_as_answers(lang_of(request)):
            return studio.jobs.log(job, tail)

    return compress_job_log


def _family(studio: Studio) -> Any:
    def compress_family(request: gr.Request) -> list[dict[str, Any]]:
        """All models as a tree, parents before children: "key", "parent", "depth", "parameters", "bytes", "card"."""
        with errors_as_answers(lang_of(request)):
            return [
                {
                    "key": member.key,
                    "parent": member.parent,
                    "depth": member.depth,
                    "cut": member.cut,
                    "parameters": member.artifact.parameters,
                    "bytes": member.artifact.bytes,
                    "card": None if member.card is None else member.card.to_dict(),
                }
                for member in studio.compression.family()
            ]

    return compress_family


# --- what they share ------------------------------------------------------------------------------------------------


def _over(studio: Studio, job: JobRecord, lang: Lang, wait: object) -> dict[str, Any]:
    """The job now, or at its end with the progress forwarded. Raises what it failed of, UserError when stopped."""
    if wait is not True:
        return _shown(job, lang)
    progress = gr.Progress()
    while not job.finished:
        ahead = studio.jobs.ahead(job.id)
        progress((int(job.progress * PROGRESS_STEPS), PROGRESS_STEPS), desc=say(job.note, lang, ahead=ahead), unit="")
        job = _next(studio, job)
    if job.state == "stopped":
        raise UserError("compression_stopped")
    if job.problem is not None:
        raise job.problem
    return _shown(job, lang)


def _next(studio: Studio, job: JobRecord) -> JobRecord:
    try:
        return studio.jobs.wait(job.id, WATCH_S)
    except TimeoutError:
        return studio.jobs.get(job.id)


def _with_cells(studio: Studio, shown: dict[str, Any]) -> dict[str, Any]:
    """The cells of a sensitivity map in its result, once it is there."""
    if shown["kind"] != "sensitivity" or shown["state"] != "done":
        return shown
    found = studio.compression.sensitivity_map(studio.jobs.get(shown["id"]))
    return {**shown, "result": {**shown["result"], "cells": [asdict(cell) for cell in found.cells]}}


def _shown(job: JobRecord, lang: Lang) -> dict[str, Any]:
    """A job as a client may see it."""
    shown = _without_paths({**job.public(), "reason": "" if job.problem is None else job.problem.text(lang)})
    return dict(shown)


def _without_paths(value: Any) -> Any:
    """No place on this machine: files by their names, and no key `path`, which clients take for a file to fetch."""
    if isinstance(value, Mapping):
        return {key: _without_paths(entry) for key, entry in value.items() if key != "path"}
    if isinstance(value, list | tuple):
        return [_without_paths(entry) for entry in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def _text(field: str, value: object) -> str:
    return forms.text_or_refuse(field, "" if value is None else value)


def _object(field: str, value: object) -> dict[str, Any]:
    """An object of fields, or nothing. Raises InvalidInputError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidInputError("bad_object", field=field, value=value)
    return dict(value)
