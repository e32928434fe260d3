"""Step one: the model that is to become smaller, and the family tree it stands in."""

from typing import Any

import gradio as gr

from zimage_studio.services.studio import Studio
from zimage_studio.ui.compress import family as compress_family
from zimage_studio.ui.compress.frame import Frame, pick_of
from zimage_studio.ui.doors import PRIVATE, Update
from zimage_studio.ui.family import PICK
from zimage_studio.ui.memory.widgets import title
from zimage_studio.ui.texts import Texts

KINDS = ("folder", "hub")
"""What can be cut: a whole folder, or a hub model once it is one."""


class ChooseCard:
    """A list of the models that can be cut, and the tree; a click in the tree chooses too."""

    def __init__(self, studio: Studio, t: Texts) -> None:
        self._studio = studio
        self._t = t
        title(t("compress_choose"))
        chosen = self.known(studio.settings.model)
        self.model = gr.Dropdown(
            self._choices(), value=chosen, label=t("model"), filterable=False, elem_id="zs-compress-model"
        )
        self._note = gr.HTML("", elem_id="zs-compress-note")
        self._tree = gr.HTML("", js_on_load=PICK, elem_id="zs-family")

    @property
    def outputs(self) -> list[Any]:
        """All that `shown` changes."""
        return [self.model, self._note, self._tree]

    def known(self, model: object) -> str:
        """`model` if it can be cut, else the first that can; empty where there is none."""
        keys = [key for _, key in self._choices()]
        return model if isinstance(model, str) and model in keys else next(iter(keys), "")

    def shown(self, model: str) -> Update:
        """The list and the tree as they are now."""
        return {**self.listed(model), **self.told(model)}

    def listed(self, model: str) -> Update:
        """The list as it is now, with the same choice, and the tree."""
        return {self.model: gr.update(choices=self._choices(), value=self.known(model)), **self.told(model)}

    def told(self, model: object) -> Update:
        """What is said of the choice."""
        members = self._studio.compression.family()
        note = compress_family.note(members, model, self._t)
        return {self._note: note, self._tree: compress_family.tree(members, model, self._t)}

    def offer(self, frame: Frame) -> None:
        """Wire the tree; a click chooses."""

        def on_pick(event: gr.EventData) -> Any:
            picked = pick_of(event)
            return picked if self.known(picked) == picked else gr.skip()

        self._tree.click(on_pick, None, frame.model, **PRIVATE)

    def _choices(self) -> list[tuple[str, str]]:
        return [(model.name, model.key) for model in self._studio.models.list() if model.kind in KINDS]
