"""Step three, the plan: ask for one, look at it, change it by hand, keep it, hand it over; cut nothing yet."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.records.job import JobKind, JobRecord
from zimage_studio.records.plan import MAX_PLAN_BYTES, PrunePlan
from zimage_studio.records.strict_json import loads_strict
from zimage_studio.services.plans import StoredPlan, free_name
from zimage_studio.ui import present
from zimage_studio.ui.compress import view as compress_view
from zimage_studio.ui.compress.frame import Frame
from zimage_studio.ui.compress.plan_form import PlanForm, add_plan_form, usual
from zimage_studio.ui.doors import LOCAL, PRIVATE, Update, errors_as_toasts, plain_toast, uploaded
from zimage_studio.ui.memory.profile import DOWNLOAD

MAX_EDITS_CHARS = 200_000
COLLECT = """(edits, plan) => [JSON.stringify(
  [...document.querySelectorAll('#zs-plan-table tbody tr')].flatMap((row) => {
    const edit = {stack: row.dataset.stack, index: Number(row.dataset.index)};
    const [keep, ...numbers] = row.querySelectorAll('input');
    if (keep.checked !== keep.defaultChecked) edit.kept = keep.checked;
    for (const number of numbers) {
      if (number.value !== number.defaultValue) edit[number.dataset.part] = Number(number.value);
    }
    return Object.keys(edit).length > 2 ? [edit] : [];
  })), plan]"""
"""What a person changed in the table; the server checks it."""


class PlanCard:
    """Widgets and wiring. The plan that is looked at is `frame.plan`, which the tab lists by `listed`."""

    kinds: frozenset[JobKind] = frozenset({"plan"})

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._compression = frame.studio.compression
        self._t = t = frame.t
        gr.HTML(present.note(t("plan_intro")))
        self._form: PlanForm = add_plan_form(t)
        with gr.Column(elem_classes="zs-found-plan"):
            with gr.Row(elem_classes="zs-profile-row"):
                frame.plan.render()
                self._delete = gr.Button(
                    t("profile_delete"), size="md", min_width=70, interactive=False, elem_id="zs-plan-delete"
                )
                self._import = gr.UploadButton(t("profile_import"), size="md", min_width=70, elem_id="zs-plan-import")
                self._export = gr.Button(
                    t("profile_export"), size="md", min_width=70, interactive=False, elem_id="zs-plan-export"
                )
            self._html = gr.HTML(self._nothing(), elem_id="zs-cut-plan")
            with gr.Column(visible=False, elem_classes="zs-plan-after") as self._after:
                with gr.Accordion(t("plan_edit"), open=False, elem_id="zs-plan-edit"):
                    gr.HTML(present.note(t("plan_edit_note")))
                    self._table = gr.HTML("", elem_id="zs-plan-table")
                    self._apply = gr.Button(t("plan_apply"), size="md", elem_id="zs-plan-apply")
                self._go = gr.Button(t("plan_go"), variant="primary", elem_id="zs-plan-go")
        self._edits = gr.Textbox("", visible=False)
        self._file = gr.Textbox("", visible=False)
        self._wire_make()
        self._wire_plan()
        self._wire_files()

    @property
    def outputs(self) -> list[Any]:
        """All that `shown` and `live` change."""
        return [self._html, self._table, self._after, self._delete, self._export]

    def shown(self, model: str, fresh: str) -> Update:
        """A plan that a job has just made: one that took the place of another has its name, so nothing else would say
        that it changed. The list is the tab's, which knows which plan is picked."""
        made = self._made(fresh)
        return self._show(made) if made is not None else {}

    def live(self, job: JobRecord) -> Update:
        """The strip above says how far a plan is."""
        return {}

    def listed(self, model: str, fresh: str, picked: object) -> Update:
        """The plans for `model`: the fresh one, else the one that was picked, else the newest."""
        plans = self._plans_for(model)
        names = [stored.id for stored in plans]
        made = self._made(fresh)
        value = next((name for name in (made, picked) if name in names), next(iter(names), None))
        choices = [(self._label(stored), stored.id) for stored in plans]
        return {self._frame.plan: gr.update(choices=choices, value=value, interactive=bool(names))}

    def _made(self, fresh: str) -> object:
        """The plan that a job made; None when it made none."""
        try:
            job = self._frame.studio.jobs.get(fresh)
        except UserError:
            return None
        return job.result.get("id") if job.kind == "plan" else None

    def _plans_for(self, model: str) -> list[StoredPlan]:
        models = self._frame.studio.models
        found = next((models.with_known_hash(artifact) for artifact in models.list() if artifact.key == model), None)
        if found is None:
            return []
        return [
            stored
            for stored in self._compression.plans()
            if found.sha256 == stored.plan.model_sha256
            or (found.sha256 is None and stored.plan.model in (found.key, found.name))
        ]

    def _label(self, stored: StoredPlan) -> str:
        return self._t(
            "plan_listed", name=stored.id, size=present.size(stored.plan.bytes_after, self._t),
            time=present.local_minute(stored.plan.created),
        )  # fmt: skip

    def _nothing(self) -> str:
        return present.note(self._t("plan_none"))

    # --- make

    def _wire_make(self) -> None:
        form = self._form

        def on_make(model: object, name: object, overwrite: object, *widgets: Any) -> Update:
            with errors_as_toasts(self._t):
                values = {"model": model, **form.values(widgets)}
                save_as = name.strip() if isinstance(name, str) else ""
                job = self._compression.plan(values, save_as=save_as, overwrite=overwrite is True)
            gr.Info(present.error_text(self._t("job_queued")), title="", duration=4)
            return {self._frame.fresh: job.id}

        def on_target(target: object, model: object) -> Any:
            models = self._frame.studio.models.list()
            return usual(target, next((found for found in models if found.key == model), None), self._t)

        taken = [form.target, self._frame.model]
        form.target.input(on_target, taken, form.amount, trigger_mode="always_last", **PRIVATE)
        inputs = [self._frame.model, form.name, form.overwrite, *form.widgets]
        form.make.click(on_make, inputs, [self._frame.fresh], trigger_mode="once", **PRIVATE)

    # --- look and change

    def _wire_plan(self) -> None:
        frame = self._frame

        def on_plan(plan: object) -> Update:
            return self._show(plan)

        def on_apply(edits: object, plan: object) -> Update:
            with errors_as_toasts(self._t):
                changes = parse_edits(edits)
                stored = self._compression.get_plan(plan)
                if not changes:
                    raise plain_toast(self._t("plan_no_edits"), self._t)
                kept = self._compression.edit_plan(
                    stored.id, changes, save_as=self._name_for(stored), overwrite=stored.plan.edited
                )
            gr.Info(present.error_text(self._t("plan_applied", name=kept.id)), title="", duration=5)
            return {**self.listed(self._model_of(kept), "", kept.id), **self._show(kept.id)}

        def on_delete(model: object, plan: object) -> Update:
            with errors_as_toasts(self._t):
                self._compression.delete_plan(plan)
            return self.listed(str(model or ""), "", None)

        outputs = [frame.plan, *self.outputs]
        frame.plan.change(on_plan, frame.plan, self.outputs, trigger_mode="always_last", **PRIVATE)
        self._apply.click(on_apply, [self._edits, frame.plan], outputs, js=COLLECT, **PRIVATE)
        self._delete.click(on_delete, [frame.model, frame.plan], [frame.plan], **PRIVATE)
        self._go.click(lambda: gr.Tabs(selected="cut"), None, frame.steps, **PRIVATE)

    def _show(self, plan: object) -> Update:
        """The plan of that name; where there is none, what to do."""
        try:
            found = self._compression.get_plan(plan).plan
        except UserError:
            empty = {self._html: self._nothing(), self._table: "", self._after: gr.update(visible=False)}
            return {**empty, **self._buttons(on=False)}
        return {
            **self._buttons(on=True),
            self._html: compress_view.plan(found, self._t),
            self._table: compress_view.table(found, self._t),
            self._after: gr.update(visible=True),
        }

    def _buttons(self, *, on: bool) -> Update:
        """Without a plan there is nothing to delete or to hand over."""
        return {button: gr.update(interactive=on) for button in (self._delete, self._export)}

    def _name_for(self, stored: StoredPlan) -> str:
        """A plan that was changed before is changed in its place; the first change makes another one."""
        if stored.plan.edited:
            return stored.id
        known = {other.id for other in self._compression.plans()}
        return free_name(f"{stored.id[:48]}-edited", lambda name: name in known)

    def _model_of(self, stored: StoredPlan) -> str:
        models = self._frame.studio.models
        for artifact in models.list():
            if models.with_known_hash(artifact).sha256 == stored.plan.model_sha256:
                return artifact.key
        return stored.plan.model

    # --- files

    def _wire_files(self) -> None:
        frame = self._frame

        def on_import(file: object, model: object) -> Update:
            with errors_as_toasts(self._t):
                path = uploaded(file)[0]
                if path.stat().st_size > MAX_PLAN_BYTES:
                    raise InvalidInputError("bad_plan", field="plan", why=f"> {MAX_PLAN_BYTES // 10**6} MB")
                stored = self._compression.save_plan(_read(path.read_bytes()))
                if all(other.id != stored.id for other in self._plans_for(str(model or ""))):
                    other = self._model_of(stored)
                    gr.Warning(
                        present.error_text(self._t("plan_imported_other", name=stored.id, model=other)), title=""
                    )
            return self.listed(str(model or ""), "", stored.id)

        def on_export(plan: object) -> str:
            with errors_as_toasts(self._t):
                stored = self._compression.get_plan(plan)
            return json.dumps([f"{stored.id}.json", "application/json", stored.plan.to_json()])

        self._import.upload(on_import, [self._import, frame.model], [frame.plan], **PRIVATE)
        self._export.click(on_export, frame.plan, self._file, **PRIVATE).success(
            None, self._file, None, js=DOWNLOAD, **LOCAL
        )


def parse_edits(edits: object) -> list[Mapping[str, object]]:
    """What the table sent. Raises InvalidInputError for anything but a list of objects."""
    try:
        if not isinstance(edits, str) or len(edits) > MAX_EDITS_CHARS:
            raise ValueError(type(edits).__name__)
        found = loads_strict(edits)
    except ValueError as error:
        raise InvalidInputError("bad_plan", field="plan", why=error) from error
    if not isinstance(found, Sequence) or not all(isinstance(edit, dict) for edit in found):
        raise InvalidInputError("bad_plan", field="plan", why=type(found).__name__)
    return list(found)


def _read(content: bytes) -> PrunePlan:
    try:
        return PrunePlan.from_json(content.decode())
    except UnicodeDecodeError as error:
        raise InvalidInputError("bad_plan", field="plan", why="UTF-8") from error
