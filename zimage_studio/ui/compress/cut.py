"""Step four, the cut: which plan, what will be written, under which name; then the new model is in the list."""

import shutil
from typing import Any

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.records.job import JobKind, JobRecord
from zimage_studio.services.plans import StoredPlan
from zimage_studio.ui import present
from zimage_studio.ui.compress import view as compress_view
from zimage_studio.ui.compress.frame import Frame
from zimage_studio.ui.doors import PRIVATE, Update, errors_as_toasts
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts


class CutCard:
    """Widgets and wiring; the plan is the one that step three shows."""

    kinds: frozenset[JobKind] = frozenset({"prune"})

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._t = t = frame.t
        gr.HTML(present.note(t("cut_intro")))
        self._about = gr.HTML(self._no_plan(), elem_id="zs-cut-about")
        with gr.Row(elem_classes="zs-profile-row"):
            self._name = gr.Textbox(
                "", label=t("cut_name"), placeholder=t("name_of_itself"), max_lines=1, min_width=160,
                elem_id="zs-cut-name",
            )  # fmt: skip
            self._cut = gr.Button(t("cut_go"), variant="primary", min_width=160, interactive=False, elem_id="zs-cut")
        self._made_html = gr.HTML("", elem_id="zs-cut-made")
        self._on = gr.Button("", visible=False, elem_id="zs-cut-on")
        self._child = gr.State("")
        self._wire()

    @property
    def outputs(self) -> list[Any]:
        """All that `shown` changes."""
        return [self._made_html, self._on, self._child]

    def shown(self, model: str, fresh: str) -> Update:
        """What the last cut of `model` made."""
        t = self._t
        done = (job for job in self._frame.studio.jobs.list() if job.kind == "prune" and job.model == model)
        job = next((job for job in done if job.state in ("done", "failed")), None)
        if job is None:
            return {self._made_html: "", self._on: gr.update(visible=False), self._child: ""}
        if job.state == "failed":
            why = job.problem.text(t.lang) if job.problem is not None else t("stage_bug")
            return {self._made_html: _failed(why), self._on: gr.update(visible=False), self._child: ""}
        child = str(job.result.get("model", ""))
        here = any(artifact.key == child for artifact in self._frame.studio.models.list())
        return {
            self._made_html: self._made(job, child, here),
            self._on: gr.update(visible=here, value=t("cut_on", name=child)),
            self._child: child,
        }

    def live(self, job: JobRecord) -> Update:
        """The strip above says how far a cut is."""
        return {}

    def _wire(self) -> None:
        frame = self._frame

        def on_plan(plan: object) -> Update:
            try:
                stored = frame.studio.compression.get_plan(plan)
            except UserError:
                return {self._about: self._no_plan(), self._cut: gr.update(interactive=False)}
            return {self._about: self._told(stored), self._cut: gr.update(interactive=True)}

        def on_cut(plan: object, name: object) -> Update:
            with errors_as_toasts(self._t):
                job = frame.studio.compression.prune(str(plan or ""), name if isinstance(name, str) else "")
            gr.Info(present.error_text(self._t("job_queued")), title="", duration=4)
            return {frame.fresh: job.id, self._name: ""}

        def on_go(child: str) -> Update:
            return {frame.model: child, frame.steps: gr.Tabs(selected="recover")}

        frame.plan.change(on_plan, frame.plan, [self._about, self._cut], trigger_mode="always_last", **PRIVATE)
        self._cut.click(on_cut, [frame.plan, self._name], [frame.fresh, self._name], trigger_mode="once", **PRIVATE)
        self._on.click(on_go, self._child, [frame.model, frame.steps], **PRIVATE)

    def _told(self, stored: StoredPlan) -> str:
        """The plan in a sentence, and what will be written."""
        t, plan = self._t, stored.plan
        free = shutil.disk_usage(self._frame.studio.settings.data).free
        written = t("cut_writes", size=present.size(plan.bytes_after, t), free=present.size(free, t), model=plan.model)
        return (
            f'<div class="zs-about-cut"><p class="zs-about-plan"><b>{escape(stored.id)}</b></p>'
            f'{compress_view.sentence(plan, t)}<p class="zs-quiet">{escape(written)}</p></div>'
        )

    def _no_plan(self) -> str:
        return present.note(self._t("cut_no_plan"))

    def _made(self, job: JobRecord, child: str, here: bool) -> str:
        t, result = self._t, job.result
        words = t("cut_made", name=child, size=present.size(_number(result, "bytes"), t),
                  parameters=present.parameters(_number(result, "parameters"), t),
                  time=_time(_number(result, "seconds"), t))  # fmt: skip
        if not here:
            words = t("cut_gone", name=child)
        return f'<p class="zs-made">{escape(words)}</p>'


def _number(result: Any, name: str) -> int:
    value = result.get(name)
    return int(value) if isinstance(value, int | float) else 0


def _failed(why: str) -> str:
    return f'<p class="zs-clash" role="alert">{escape(why)}</p>'


def _time(seconds: float, t: Texts) -> str:
    """How long it took; small models are written at once."""
    return present.duration(seconds, t) if seconds >= 1 else t("cut_at_once")
