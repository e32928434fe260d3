"""What the cards of the Compress tab share, and what each of them answers to."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import gradio as gr

from zimage_studio.records.job import JobKind, JobRecord
from zimage_studio.services.studio import Studio
from zimage_studio.ui.doors import Update
from zimage_studio.ui.texts import Texts

Step = Literal["understand", "plan", "cut", "recover", "judge", "use"]
STEPS: tuple[Step, ...] = ("understand", "plan", "cut", "recover", "judge", "use")


@dataclass(frozen=True, slots=True)
class Frame:
    """The services, the words, and the widgets that every card may read or set.

    `model` holds the key of the chosen model, as the browser says it: services check it. `steps` are the tabs of the
    path: `gr.Tabs(selected=step)` as an output goes to a step. `tabs` are those of the whole page. `fresh` is the id
    of the job that this page started last (or was asked to show), until what came out of it has been shown. `plan` is
    the plan that is looked at and will be cut; the card of the step "plan" puts it in its place.
    """

    studio: Studio
    t: Texts
    model: gr.Dropdown
    steps: gr.Tabs
    tabs: gr.Tabs
    fresh: gr.State
    plan: gr.Dropdown


class Card(Protocol):
    """One step. Made inside its tab: `Card(frame)` adds the widgets there and wires its own events.

    It does not wire `frame.model.change`, the opening of the tab or a timer: the tab does, and calls `shown` and
    `live`. Both return updates of `outputs` only, and raise nothing: what is wrong is said in the card.
    """

    kinds: frozenset[JobKind]
    """When a job of these kinds ends, the card is shown anew."""

    @property
    def outputs(self) -> list[Any]:
        """All that `shown` and `live` may change."""
        ...

    def shown(self, model: str, fresh: str) -> Update:
        """The card for `model` (may be unknown or empty); what a person has typed stays. `fresh`: see Frame."""
        ...

    def live(self, job: JobRecord) -> Update:
        """Once a second while a job of its kinds runs; {} for a card that shows nothing of it."""
        ...


def pick_of(event: gr.EventData) -> str:
    """What a click in a gr.HTML with `trigger('click', {pick: …})` said; empty for one that said nothing."""
    data: object = event._data
    pick = data.get("pick") if isinstance(data, dict) else None
    return pick if isinstance(pick, str) else ""
