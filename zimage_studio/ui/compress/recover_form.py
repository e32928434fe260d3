"""What a person asks of a recovery: from which data, by which loss, how long, how; the rest is folded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr

from zimage_studio.records.recover import DRAWN, Method, Optimiser, RecoveryConfig, Schedule, TrainingPrecision
from zimage_studio.ui.doors import LOCAL
from zimage_studio.ui.texts import Texts

FOLDER, NONE = "folder", "none"
NUMBERS = (
    "batch", "accumulation", "lr", "ema", "lora_rank", "size", "trajectories", "samples", "sample_every_s",
    "sparsity_share",
)  # fmt: skip
"""The folded fields that are numbers, in the order of the form."""
WHOLE = frozenset(NUMBERS) - {"lr", "ema", "sparsity_share"}
CHOICES = {"optimiser": Optimiser, "schedule": Schedule, "precision": TrainingPrecision}


@dataclass(frozen=True, slots=True)
class RecoverForm:
    """The widgets; `values` turns what they hold into fields of RecoveryConfig."""

    method: gr.Radio
    data: gr.Radio
    path: gr.Textbox
    prompts: gr.Textbox
    budget: gr.Radio
    amount: gr.Number
    trainable: gr.Radio
    folded: dict[str, Any]
    may_path: bool

    @property
    def widgets(self) -> list[Any]:
        """In the order that `values` takes."""
        first = [self.method, self.data, self.path, self.prompts, self.budget, self.amount, self.trainable]
        return [*first, *self.folded.values()]

    def values(self, widgets: Sequence[Any]) -> dict[str, object]:
        """Fields of RecoveryConfig as the browser holds them; who receives them checks them.

        A path counts only where one may be given, whatever the browser says.
        """
        method, data, path, prompts, budget, amount, trainable, *folded = widgets
        given = dict(zip(self.folded, folded, strict=True))
        return {
            "method": method,
            "data_set": self._data_set(data, path),
            "prompts": _lines(prompts),
            ("minutes" if budget == "minutes" else "steps"): amount,
            "trainable": trainable,
            **{name: value for name, value in given.items() if name != "cuts"},
            "cuts": _cuts(given["cuts"]),
        }

    def _data_set(self, data: object, path: object) -> object:
        if data == FOLDER and self.may_path:
            return path.strip() if isinstance(path, str) else path
        return DRAWN if data == DRAWN else ""


def add_recover_form(may_path: bool, t: Texts) -> RecoverForm:
    """Add the form, with the usual values."""
    usual = RecoveryConfig()
    data_choices = [(t("recover_data_drawn"), DRAWN), (t("recover_data_none"), NONE)]
    if may_path:
        data_choices.insert(1, (t("recover_data_folder"), FOLDER))
    with gr.Column(elem_classes="zs-plan-form"):
        method = gr.Radio(
            [(t(f"recover_method_{name}"), name) for name in get_args(Method)], value=usual.method,
            label=t("recover_method"), info=t("recover_method_info"), elem_id="zs-recover-method",
        )  # fmt: skip
        data = gr.Radio(data_choices, value=DRAWN, label=t("recover_data"), elem_id="zs-recover-data")
        path = gr.Textbox(
            "", label=t("recover_path"), info=t("recover_path_info"), max_lines=1, visible=False,
            elem_id="zs-recover-path",
        )  # fmt: skip
        prompts = gr.Textbox(
            "", label=t("recover_prompts"), info=t("recover_prompts_info"), lines=2, max_lines=8, visible=False,
            elem_id="zs-recover-prompts",
        )  # fmt: skip
        with gr.Row(elem_classes="zs-form-row"):
            budget = gr.Radio(
                [(t(f"recover_{name}"), name) for name in ("steps", "minutes")], value="steps",
                label=t("recover_budget"), min_width=160, elem_id="zs-recover-budget", elem_classes="zs-sizes",
            )  # fmt: skip
            amount = gr.Number(
                usual.steps, label=t("recover_amount"), step=1, min_width=110, elem_id="zs-recover-amount"
            )
            trainable = gr.Radio(
                [(t(f"recover_{name}"), name) for name in ("full", "lora")], value=usual.trainable,
                label=t("recover_trainable"), min_width=200, elem_id="zs-recover-trainable", elem_classes="zs-sizes",
            )  # fmt: skip
        folded = _add_folded(usual, t)
    form = RecoverForm(method, data, path, prompts, budget, amount, trainable, folded, may_path)
    _wire(form)
    return form


def _add_folded(usual: RecoveryConfig, t: Texts) -> dict[str, Any]:
    """The fields that most people leave alone."""
    with gr.Accordion(t("compress_more"), open=False, elem_id="zs-recover-more"):
        with gr.Row(elem_classes="zs-form-row zs-form-grid"):
            numbers: dict[str, Any] = {name: _number(name, getattr(usual, name), t) for name in NUMBERS}
            choices: dict[str, Any] = {name: _choice(name, getattr(usual, name), t) for name in CHOICES}
            seed = gr.Textbox(str(usual.seed), label=t("seed"), max_lines=1, min_width=110)
            processes = gr.Textbox(
                str(usual.processes), label=t("recover_processes"), info=t("recover_processes_info"), max_lines=1,
                min_width=150, elem_id="zs-recover-processes",
            )  # fmt: skip
            cuts = gr.Textbox(
                "", label=t("recover_cuts"), info=t("recover_cuts_info"), max_lines=1, min_width=220,
                elem_id="zs-recover-cuts",
            )  # fmt: skip
        checkpointing = gr.Checkbox(usual.gradient_checkpointing, label=t("recover_gradient_checkpointing"))
    texts = {"seed": seed, "processes": processes, "cuts": cuts}
    return {**numbers, **choices, **texts, "gradient_checkpointing": checkpointing}


def _number(name: str, value: object, t: Texts) -> gr.Number:
    step = 1 if name in WHOLE else None
    elem_id = f"zs-recover-{name.replace('_', '-')}"
    return gr.Number(value, label=t(f"recover_{name}"), step=step, min_width=130, elem_id=elem_id)  # type: ignore[arg-type]


def _choice(name: str, value: str, t: Texts) -> gr.Dropdown:
    choices = [(t(f"recover_{name}_{option}"), option) for option in get_args(CHOICES[name])]
    return gr.Dropdown(choices, value=value, label=t(f"recover_{name}"), filterable=False, min_width=150)


def _wire(form: RecoverForm) -> None:
    """A field shows where it counts. In the browser alone: nothing is asked of the server."""
    shown = "(v) => ({__type__: 'update', visible: %s})"
    form.data.change(None, form.data, form.path, js=shown % f"v === '{FOLDER}'", **LOCAL)
    form.method.change(None, form.method, form.prompts, js=shown % "v !== 'flow'", **LOCAL)


def _lines(text: object) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()] if isinstance(text, str) else []


def _cuts(text: object) -> list[float | str]:
    """Ratios, or names of plans, between commas."""
    parts = [part.strip() for part in text.replace("，", ",").split(",")] if isinstance(text, str) else []
    return [_cut(part) for part in parts if part]


def _cut(part: str) -> float | str:
    try:
        return float(part)
    except ValueError:
        return part
