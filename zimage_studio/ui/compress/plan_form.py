"""What a person asks of a plan: what is cut, by which criterion, how far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.compress import ALLOCATIONS, TARGETS
from zimage_studio.records.plan import CRITERIA
from zimage_studio.ui import present
from zimage_studio.ui.doors import LOCAL, PRIVATE
from zimage_studio.ui.texts import Texts

USUAL_RATIO, USUAL_SHARE, USUAL_SPEEDUP = 0.4, 0.7, 1.5
"""What the target says at first; of a size the share of what the model weighs."""
GB = 10**9
FIRST_CRITERION = "taylor"


@dataclass(frozen=True, slots=True)
class PlanForm:
    """The widgets; `values` turns what they hold into the fields of PruneRequest."""

    kinds: gr.CheckboxGroup
    criterion: gr.Dropdown
    target: gr.Radio
    amount: gr.Number
    dim: gr.Checkbox
    allocation: gr.Dropdown
    prompts: gr.Number
    seed: gr.Textbox
    protect: gr.Checkbox
    name: gr.Textbox
    overwrite: gr.Checkbox
    make: gr.Button

    @property
    def widgets(self) -> list[Any]:
        """In the order that `values` takes."""
        return [
            self.kinds, self.criterion, self.target, self.amount, self.dim, self.allocation, self.prompts, self.seed,
            self.protect,
        ]  # fmt: skip

    def values(self, widgets: Sequence[Any]) -> dict[str, object]:
        """Fields of PruneRequest as the browser holds them; who receives them checks them."""
        kinds, criterion, target, amount, dim, allocation, prompts, seed, protect = widgets
        return {
            "kinds": ["dim"] if dim is True else kinds,
            "criterion": criterion,
            **({target: amount} if target in TARGETS else {}),
            "allocation": allocation,
            "prompts": prompts,
            "seed": seed,
            "protect_ends": protect,
        }


def add_plan_form(t: Texts) -> PlanForm:
    """Add the form."""
    with gr.Column(elem_classes="zs-plan-form"):
        kinds = gr.CheckboxGroup(
            [(t(f"plan_choose_{kind}"), kind) for kind in ("depth", "ffn", "heads")],
            value=["ffn"], label=t("plan_kinds"), elem_id="zs-plan-kinds",
        )  # fmt: skip
        with gr.Row(elem_classes="zs-form-row"):
            criterion = gr.Dropdown(
                [(t(f"criterion_{name}"), name) for name in CRITERIA], value=FIRST_CRITERION, label=t("plan_criterion"),
                filterable=False, min_width=220, elem_id="zs-plan-criterion",
            )  # fmt: skip
            target = gr.Radio(
                [(t(f"plan_target_{name}"), name) for name in TARGETS], value="ratio", label=t("plan_target"),
                min_width=240, elem_id="zs-plan-target", elem_classes="zs-sizes",
            )  # fmt: skip
            amount = gr.Number(
                USUAL_RATIO, label=t("plan_amount_ratio"), step=0.05, min_width=120, elem_id="zs-plan-amount"
            )
        about = gr.HTML(_about(FIRST_CRITERION, "ratio", t), elem_id="zs-plan-criterion-about")
        with gr.Accordion(t("compress_more"), open=False, elem_id="zs-plan-more"):
            dim = gr.Checkbox(False, label=t("plan_dim"), info=t("plan_dim_info"), elem_id="zs-plan-dim")
            protect = gr.Checkbox(True, label=t("plan_protect"), elem_id="zs-plan-protect")
            with gr.Row(elem_classes="zs-form-row"):
                allocation = gr.Dropdown(
                    [(t(f"plan_allocation_{name}"), name) for name in ALLOCATIONS], value="auto",
                    label=t("plan_allocation"), filterable=False, min_width=160,
                )  # fmt: skip
                prompts = gr.Number(
                    8, label=t("plan_prompts"), step=1, precision=0, min_width=120, elem_id="zs-plan-prompts"
                )
                seed = gr.Textbox("0", label=t("seed"), max_lines=1, min_width=100)
        with gr.Row(elem_classes="zs-profile-row"):
            name = gr.Textbox(
                "", label=t("plan_name"), placeholder=t("plan_name_placeholder"), max_lines=1, min_width=160,
                elem_id="zs-plan-name",
            )  # fmt: skip
            make = gr.Button(t("plan_make"), variant="primary", min_width=160, elem_id="zs-plan-make")
        overwrite = gr.Checkbox(False, label=t("plan_overwrite"), visible=False, elem_id="zs-plan-overwrite")
    form = PlanForm(kinds, criterion, target, amount, dim, allocation, prompts, seed, protect, name, overwrite, make)
    _wire(form, about, t)
    return form


def usual(target: object, model: ModelArtifact | None, t: Texts) -> Any:
    """The field of the amount, when a person has just said what the target is."""
    name = target if target in TARGETS else "ratio"
    size = (model.bytes if model is not None else None) or GB
    value = {"gigabytes": float(f"{USUAL_SHARE * size / GB:.3g}"), "speedup": USUAL_SPEEDUP}.get(str(name), USUAL_RATIO)
    return gr.update(label=t(f"plan_amount_{name}"), value=value)


def _wire(form: PlanForm, about: gr.HTML, t: Texts) -> None:
    def on_choice(criterion: object, target: object) -> str:
        return _about(criterion, target, t)

    chosen = [form.criterion, form.target]
    changes = [widget.change for widget in chosen]
    gr.on(changes, on_choice, chosen, about, trigger_mode="always_last", **PRIVATE)
    named = "(v) => ({__type__: 'update', visible: v.trim() !== ''})"
    form.name.change(None, form.name, form.overwrite, js=named, **LOCAL)


def _about(criterion: object, target: object, t: Texts) -> str:
    """One honest line of the criterion, one of the target."""
    lines = [t(f"criterion_about_{criterion}")] if criterion in CRITERIA else []
    lines += [t(f"plan_amount_{target}_note")] if target in TARGETS else []
    return "".join(present.note(line) for line in lines)
