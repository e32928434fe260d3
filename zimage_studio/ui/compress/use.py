"""Step seven, use: the chosen model goes to work on the Generate tab."""

from typing import Any

import gradio as gr

from zimage_studio.records.job import JobKind, JobRecord
from zimage_studio.ui import present
from zimage_studio.ui.compress import family as compress_family
from zimage_studio.ui.compress.frame import Frame
from zimage_studio.ui.doors import Update


class UseCard:
    """One sentence and one button; what the button does, the page wires (`CompressTab.offer`)."""

    kinds: frozenset[JobKind] = frozenset({"prune", "recover", "evaluate"})

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        gr.HTML(present.note(frame.t("use_intro")))
        self._about = gr.HTML("", elem_id="zs-use-about")
        self.button = gr.Button(frame.t("use_go"), variant="primary", elem_id="zs-use")

    @property
    def outputs(self) -> list[Any]:
        """All that `shown` changes."""
        return [self._about, self.button]

    def shown(self, model: str, fresh: str) -> Update:
        """What the model is, and whether it can be used now."""
        t = self._frame.t
        members = self._frame.studio.compression.family()
        found = next((member.artifact for member in members if member.key == model), None)
        if found is None:
            return {self._about: present.note(t("compress_no_model")), self.button: gr.update(interactive=False)}
        name = f'<p class="zs-sentence"><b>{present.escape(found.name)}</b></p>'
        return {self._about: name + compress_family.note(members, model, t), self.button: gr.update(interactive=True)}

    def live(self, job: JobRecord) -> Update:
        """Nothing."""
        return {}
