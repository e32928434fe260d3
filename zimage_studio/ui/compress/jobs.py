"""The jobs of the Compress tab: what runs now, with Stop; the list of all, each with its log, and what can be done."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.records.job import JobRecord
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.compress import jobs_view
from zimage_studio.ui.compress.frame import Frame, Step, pick_of
from zimage_studio.ui.doors import PRIVATE, Update, errors_as_toasts
from zimage_studio.ui.family import PICK
from zimage_studio.ui.memory.widgets import title
from zimage_studio.ui.texts import Texts

LISTED = 40
LOG_LINES = 200


class NowStrip:
    """The job that runs, or else the first that waits; nothing when there is none."""

    def __init__(self, studio: Studio, t: Texts) -> None:
        self._studio = studio
        self._t = t
        with gr.Row(visible=False, elem_classes="zs-box zs-now-box") as self._row:
            self._html = gr.HTML("", elem_id="zs-now")
            self._stop = gr.Button(t("stop"), size="md", min_width=80, scale=0, elem_id="zs-now-stop")
        self._job = gr.State("")
        self._wire()

    @property
    def outputs(self) -> list[Any]:
        """All that `shown` changes."""
        return [self._row, self._html, self._stop, self._job]

    def shown(self, jobs: Sequence[JobRecord]) -> Update:
        """The strip for these jobs, newest first."""
        unfinished = [job for job in reversed(jobs) if not job.finished]
        if not unfinished:
            return {self._row: gr.update(visible=False), self._html: "", self._job: ""}
        job = next((job for job in unfinished if job.state != "queued"), unfinished[0])
        slowed = self._studio.compression.slowed(self._t.lang)
        return {
            self._row: gr.update(visible=True),
            self._html: jobs_view.now(job, len(unfinished) - 1, slowed, self._t),
            self._stop: gr.update(interactive=job.state != "stopping"),
            self._job: job.id,
        }

    def _wire(self) -> None:
        def on_stop(job_id: object) -> Update:
            with errors_as_toasts(self._t):
                self._studio.jobs.stop(job_id)
            return self.shown(self._studio.jobs.list())

        self._stop.click(on_stop, self._job, self.outputs, **PRIVATE)


class JobsCard:
    """The list. It is drawn anew only when a job begins or ends; the log that was opened follows its job."""

    def __init__(self, studio: Studio, t: Texts) -> None:
        self._studio = studio
        self._t = t
        title(t("jobs_title"))
        self._list = gr.HTML(present.note(t("jobs_none")), js_on_load=PICK, elem_id="zs-jobs")
        with gr.Column(visible=False, elem_classes="zs-log-box") as self._box:
            self._log = gr.HTML("", max_height=260, autoscroll=True, elem_id="zs-job-log")
            self._close = gr.Button(t("jobs_log_close"), size="sm", elem_id="zs-job-log-close")
        self.picked = gr.State("")

    @property
    def outputs(self) -> list[Any]:
        """All that `shown` and `log` change."""
        return [self._list, self._box, self._log, self.picked]

    def shown(self, jobs: Sequence[JobRecord]) -> Update:
        """The list of the newest jobs."""
        return {self._list: jobs_view.listed(jobs[:LISTED], self._t)}

    def log(self, picked: object, jobs: Sequence[JobRecord]) -> Update:
        """The log that is open, while its job runs."""
        job = next((job for job in jobs if job.id == picked), None)
        return {} if job is None or job.finished else {self._log: self._tail(job)}

    def wire(self, frame: Frame) -> None:
        """A click in the list does what its button says; `show` chooses the model and goes to the step."""

        def on_pick(event: gr.EventData) -> Update:
            verb, _, job_id = pick_of(event).partition(":")
            with errors_as_toasts(self._t):
                return self._do(verb, job_id, frame)

        outputs = [*self.outputs, frame.model, frame.fresh, frame.steps]
        self._list.click(on_pick, None, outputs, **PRIVATE)
        closed: Update = {self._box: gr.update(visible=False), self.picked: ""}
        self._close.click(lambda: closed, None, [self._box, self.picked], **PRIVATE)

    def _do(self, verb: str, job_id: str, frame: Frame) -> Update:
        jobs = self._studio.jobs
        if verb == "log":
            job = jobs.get(job_id)
            return {self._box: gr.update(visible=True), self._log: self._tail(job), self.picked: job.id}
        if verb == "show":
            return self._show(jobs.get(job_id), frame)
        if verb in ("stop", "resume", "delete"):
            {"stop": jobs.stop, "resume": jobs.resume, "delete": jobs.delete}[verb](job_id)
        return self.shown(jobs.list())

    def _show(self, job: JobRecord, frame: Frame) -> Update:
        """Where what came out can be seen."""
        step, model = place_of(job)
        if all(artifact.key != model for artifact in self._studio.models.list()):
            raise UserError("unknown_model", value=model, known=", ".join(m.key for m in self._studio.models.list()))
        return {frame.model: model, frame.fresh: job.id, frame.steps: gr.Tabs(selected=step)}

    def _tail(self, job: JobRecord) -> str:
        return jobs_view.log(job, self._studio.jobs.log(job.id, LOG_LINES), self._t)


def place_of(job: JobRecord) -> tuple[Step, str]:
    """The step and the model that show what a job made."""
    made = str(job.result.get("model", "")) or job.model
    if job.kind in ("prune", "recover"):
        return ("recover" if job.kind == "prune" else "judge"), made
    steps: dict[str, Step] = {"plan": "plan", "evaluate": "judge", "sensitivity": "understand"}
    return steps[job.kind], job.model
