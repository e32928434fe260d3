"""The switches of a memory profile as widgets, made from the record itself, each beside what it really does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gradio as gr

from zimage_studio.records.memory import EXACT, MemoryProfile, SwitchState, parse_profile
from zimage_studio.ui import present
from zimage_studio.ui.doors import Update
from zimage_studio.ui.memory import view as memory_view
from zimage_studio.ui.texts import Texts

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("precision", ("transformer_precision", "text_encoder_precision", "vae_precision")),
    ("attention", ("attention_backend", "attention_slicing", "attention_query_chunk")),
    ("transformer", ("feed_forward_chunks", "gradient_checkpointing")),
    ("vae", ("vae_tile_px", "vae_slicing")),
    ("text", ("evict_text_encoder", "embedding_cache")),
    (
        "offload",
        (
            "model_offload", "group_offload", "group_offload_blocks", "group_offload_stream", "group_offload_disk",
        ),
    ),
    ("quantization", ("fp8_storage", "quantization")),
    ("compile", ("compile",)),
)  # fmt: skip
STEPS: Mapping[str, int] = {"attention_query_chunk": 64, "vae_tile_px": 32}


@dataclass(frozen=True, slots=True)
class ProfileForm:
    """One widget for each switch, and beside it what the live pipeline says of it."""

    switches: Mapping[str, Any]
    truths: Mapping[str, gr.HTML]

    @property
    def widgets(self) -> list[Any]:
        """The switches, in their order."""
        return list(self.switches.values())

    @property
    def cells(self) -> list[gr.HTML]:
        """What stands beside them."""
        return list(self.truths.values())

    def values(self, widgets: Sequence[object]) -> dict[str, object]:
        """What the widgets hold, in their order; an emptied number means as in `exact`."""
        return {name: None if value == "" else value for name, value in zip(self.switches, widgets, strict=True)}

    def profile(self, widgets: Sequence[object], name: str = "") -> MemoryProfile:
        """The profile that the widgets ask for. Raises InvalidInputError."""
        return parse_profile({**self.values(widgets), "name": name})

    def show(self, profile: MemoryProfile) -> Update:
        """Set the widgets."""
        return {widget: getattr(profile, name) for name, widget in self.switches.items()}

    def tell(self, wanted: Mapping[str, object], states: Sequence[SwitchState], t: Texts) -> Update:
        """What the live pipeline says, beside what is asked for now."""
        live = {state.name: state for state in states}
        asked = {name: getattr(EXACT, name) if value is None else value for name, value in wanted.items()}
        return {cell: memory_view.truth(name, asked[name], live.get(name), t) for name, cell in self.truths.items()}


def add_profile_form(profile: MemoryProfile, t: Texts) -> ProfileForm:
    """Add the switches, set as in `profile`, in groups.

    The numbers have no bounds here: records.memory refuses in the page's language, Gradio would in English.
    """
    switches: dict[str, Any] = {}
    truths: dict[str, gr.HTML] = {}
    hints = get_type_hints(MemoryProfile)
    with gr.Column(elem_classes="zs-switches"):
        gr.HTML(memory_view.heads(t))
        for group, names in GROUPS:
            gr.HTML(f'<h3 class="zs-group-name">{present.escape(t(f"group_{group}"))}</h3>')
            for name in names:
                with gr.Row(elem_classes="zs-switch", equal_height=False):
                    value = getattr(profile, name)
                    switches[name] = _widget(name, hints[name], value, t)
                    truths[name] = gr.HTML(
                        memory_view.truth(name, value, None, t), elem_id=f"zs-truth-{name.replace('_', '-')}"
                    )
    return ProfileForm(switches, truths)


def option_words(value: str, t: Texts) -> str:
    """How a choice is called; names of kernels and formats stay as they are."""
    words = {"auto": t("option_auto"), "none": t("option_none"), "block": t("option_block"), "leaf": t("option_leaf")}
    return words.get(value, value)


def _widget(name: str, hint: Any, value: Any, t: Texts) -> Any:
    label, elem_id = memory_view.switch_name(name, t), f"zs-{name.replace('_', '-')}"
    if get_origin(hint) is Literal:
        choices = [(option_words(choice, t), choice) for choice in get_args(hint)]
        return gr.Dropdown(choices, value=value, label=label, filterable=False, min_width=120, elem_id=elem_id)
    if hint is bool:
        return gr.Checkbox(value, label=label, min_width=120, elem_id=elem_id)
    return gr.Number(value, label=label, step=STEPS.get(name, 1), min_width=120, elem_id=elem_id)
