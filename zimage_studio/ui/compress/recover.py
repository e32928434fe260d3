"""Step five, recovery: train the cut model, and watch the loss and the same pictures get better."""

from pathlib import Path
from typing import Any

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.job import JobKind, JobRecord
from zimage_studio.ui import present
from zimage_studio.ui.compress import recover_view
from zimage_studio.ui.compress.frame import Frame
from zimage_studio.ui.compress.recover_form import RecoverForm, add_recover_form
from zimage_studio.ui.doors import PRIVATE, Update, errors_as_toasts


class RecoverCard:
    """Widgets and wiring. What a training leaves in its folder is shown while it runs and after."""

    kinds: frozenset[JobKind] = frozenset({"recover"})

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._t = t = frame.t
        settings = frame.studio.settings
        gr.HTML(present.note(t("recover_intro")))
        self._about = gr.HTML("", elem_id="zs-recover-about")
        self._form: RecoverForm = add_recover_form(settings.loopback and not settings.share, t)
        with gr.Row(elem_classes="zs-profile-row"):
            self._name = gr.Textbox(
                "", label=t("cut_name"), placeholder=t("name_of_itself"), max_lines=1, min_width=160,
                elem_id="zs-recover-name",
            )  # fmt: skip
            self._go = gr.Button(t("recover_go"), variant="primary", min_width=140, elem_id="zs-recover")
            self._resume = gr.Button(t("jobs_resume"), min_width=90, visible=False, elem_id="zs-recover-resume")
        self._html = gr.HTML("", elem_id="zs-recovery")
        self._on = gr.Button("", visible=False, elem_id="zs-recover-on")
        self._child = gr.State("")
        self._wire()

    @property
    def outputs(self) -> list[Any]:
        """All that `shown` and `live` change."""
        return [self._about, self._html, self._resume, self._on, self._child]

    def shown(self, model: str, fresh: str) -> Update:
        """What is known of `model`, and the last training of it or from which it came."""
        artifact = next((found for found in self._frame.studio.models.list() if found.key == model), None)
        job = self._job_of(model)
        child = str(job.result.get("model", "")) if job is not None else ""
        here = any(found.key == child for found in self._frame.studio.models.list())
        return {
            self._about: self._told(artifact),
            self._html: "" if job is None else self._view(job),
            self._resume: gr.update(visible=job is not None and job.resumable and job.model == model),
            self._on: gr.update(visible=here and child != model, value=self._t("recover_on", name=child)),
            self._child: child,
        }

    def live(self, job: JobRecord) -> Update:
        """The loss and the pictures of the training that runs."""
        return {self._html: self._view(job)}

    def _job_of(self, model: str) -> JobRecord | None:
        """The newest training that began with `model` or made it."""
        jobs = (job for job in self._frame.studio.jobs.list() if job.kind == "recover")
        return next((job for job in jobs if model in (job.model, job.result.get("model"))), None)

    def _view(self, job: JobRecord) -> str:
        folder: Path = self._frame.studio.jobs.folder(job.id)
        return recover_view.recovery(job, folder, self._t)

    def _told(self, artifact: ModelArtifact | None) -> str:
        if artifact is None:
            return present.note(self._t("compress_no_model"))
        return present.note(self._t("recover_uncut" if artifact.parent is None else "recover_of", name=artifact.name))

    def _wire(self) -> None:
        frame, t = self._frame, self._t

        def on_go(model: object, name: object, *widgets: Any) -> Update:
            with errors_as_toasts(t):
                values = self._form.values(widgets)
                job = frame.studio.compression.recover(
                    str(model or ""), values, name if isinstance(name, str) else "", allow_paths=False
                )
            gr.Info(present.error_text(t("job_queued")), title="", duration=4)
            return {frame.fresh: job.id, self._name: ""}

        def on_resume(model: object) -> Update:
            with errors_as_toasts(t):
                job = self._job_of(str(model or ""))
                if job is None:
                    raise UserError("unknown_job")
                frame.studio.jobs.resume(job.id)
            return {frame.fresh: job.id, self._resume: gr.update(visible=False)}

        def on_on(child: str) -> Update:
            return {frame.model: child, frame.steps: gr.Tabs(selected="judge")}

        inputs = [frame.model, self._name, *self._form.widgets]
        self._go.click(on_go, inputs, [frame.fresh, self._name], trigger_mode="once", **PRIVATE)
        self._resume.click(on_resume, frame.model, [frame.fresh, self._resume], trigger_mode="once", **PRIVATE)
        self._on.click(on_on, self._child, [frame.model, frame.steps], **PRIVATE)
