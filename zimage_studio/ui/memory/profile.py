"""The profile card of the Memory tab: pick, edit, use, keep, hand over; every switch beside what it really does."""

import json
from collections.abc import Iterator
from concurrent.futures import TimeoutError as StillBusy
from pathlib import Path
from typing import Any

import gradio as gr

from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.records.memory import EXACT, PRESETS, MemoryProfile
from zimage_studio.services.memory import AUTO, MAX_FILE_CHARS, MemoryService, States
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.doors import LOCAL, PRIVATE, Update, errors_as_toasts, uploaded
from zimage_studio.ui.memory import view as memory_view
from zimage_studio.ui.memory.widgets import Chooser, Planner, add_chooser
from zimage_studio.ui.texts import Texts

APPLY_S = 30.0
"""How long a page waits to show what became of a choice; after that the tab's timer does."""
MAX_FILE_BYTES = 4 * MAX_FILE_CHARS
IN_USE = ""
"""The choice that means the profile in use, where that is none of those with a name."""
DOWNLOAD = """(file) => {
  const [name, kind, text] = JSON.parse(file);
  const link = Object.assign(document.createElement("a"), {
    href: URL.createObjectURL(new Blob([text], {type: kind})), download: name});
  document.body.append(link); link.click(); link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""
"""Hands a text over as a file; it comes as JSON: [name, type, text]."""


class ProfileCard:
    """Widgets and wiring of the profile. `told` says what the live pipeline answers."""

    def __init__(self, studio: Studio, planner: Planner, t: Texts) -> None:
        self._memory: MemoryService = studio.memory
        self._planner = planner
        self._t = t
        self._card: Chooser = add_chooser(self._memory.profile, profile_choices(self._memory, t), t)
        self._file = gr.Textbox("", visible=False)
        self._wire_form()
        self._wire_use()
        self._wire_keep()
        self._wire_files()

    @property
    def inputs(self) -> list[Any]:
        """What `told` needs: the picture's size, what is picked, the switches."""
        return [self._planner.width, self._planner.height, self._card.pick, *self._card.form.widgets]

    @property
    def outputs(self) -> list[Any]:
        """Everything that shows a profile."""
        return self._card.outputs

    def show(self, profile: MemoryProfile, states: States) -> Update:
        """Set the card to `profile`, which is known by its name, or is the one in use."""
        card, t = self._card, self._t
        pick = profile.name
        if self._memory.settled is None and profile == self._memory.profile:
            pick = AUTO
        elif self._memory.profiles().get(pick) != profile:
            pick = IN_USE if profile == self._memory.profile else EXACT.name
        return {
            card.pick: gr.update(choices=profile_choices(self._memory, t), value=pick),
            card.shown: pick,
            card.name: "" if profile.name in PRESETS else profile.name,
            card.delete: gr.update(interactive=profile.name in self._memory.saved()),
            **card.form.show(profile),
            **self._told(profile, self._base(pick), states),
        }

    def told(self, states: States, pick: object, widgets: tuple[Any, ...]) -> Update:
        """What is said of the switches as they stand in the form."""
        card = self._card
        base = self._base(pick)
        try:
            profile = card.form.profile(widgets)
        except InvalidInputError as error:
            return {
                card.about: "",
                card.clash: memory_view.refusal(error.text(self._t.lang)),
                card.live: memory_view.summary(states, self._t),
                **card.form.tell(card.form.values(widgets), states.states, self._t),
            }
        return self._told(profile, base, states)

    def choices(self) -> Update:
        """The profiles as they are now."""
        return {self._card.pick: gr.update(choices=profile_choices(self._memory, self._t))}

    def _told(self, profile: MemoryProfile, base: MemoryProfile, states: States) -> Update:
        card = self._card
        return {
            card.about: memory_view.description(profile, base, self._t),
            card.clash: "",
            card.live: memory_view.summary(states, self._t),
            **card.form.tell(profile.switches, states.states, self._t),
        }

    def _base(self, pick: object) -> MemoryProfile:
        """The profile that was picked; the one in use has no name when nobody saved it."""
        known = self._memory.profiles()
        if pick == AUTO:
            return self._memory.profile if self._memory.settled is None else EXACT
        return known[pick] if isinstance(pick, str) and pick in known else self._memory.profile

    def _asked(self, pick: object, shown: object, widgets: tuple[Any, ...]) -> MemoryProfile:
        """What the form asks for, under its name if it is just as picked. Raises InvalidInputError.

        Where the form still shows another pick (`shown`), the click came before it could follow: the pick counts.
        """
        base = self._base(pick)
        if pick != shown:
            return base
        profile = self._card.form.profile(widgets)
        return base if profile.same_switches(base) else profile

    def _states(self, width: object, height: object) -> States:
        return states_for(self._memory, width, height)

    def _wire_form(self) -> None:
        card = self._card

        def on_pick(width: object, height: object, pick: object) -> Update:
            with errors_as_toasts(self._t):
                return self.show(self._base(pick), self._states(width, height))

        def on_edit(width: object, height: object, pick: object, *widgets: Any) -> Update:
            return self.told(self._states(width, height), pick, widgets)

        card.pick.input(on_pick, self.inputs[:3], card.outputs, **PRIVATE)
        gr.on(
            [widget.input for widget in card.form.widgets], on_edit, self.inputs, card.told,
            trigger_mode="always_last", **PRIVATE,
        )  # fmt: skip

    def _wire_use(self) -> None:
        card, planner = self._card, self._planner

        def on_use(shown: object, width: object, height: object, pick: object, *widgets: Any) -> Iterator[Update]:
            with errors_as_toasts(self._t):
                asked = self._asked(pick, shown, widgets)
                if pick == AUTO and asked == self._base(pick):
                    self._memory.choose_none()
                    profile = self._memory.profile
                else:
                    profile = self._memory.choose(asked)
            yield from self._put_on(profile, width, height)

        def on_plan(width: object, height: object, name: str) -> Iterator[Update]:
            with errors_as_toasts(self._t):
                profile = self._memory.choose(self._memory.find(name))
            yield from self._put_on(profile, width, height)

        card.use.click(on_use, [card.shown, *self.inputs], card.outputs, trigger_mode="multiple", **PRIVATE)
        taken = [planner.width, planner.height, planner.choice]
        planner.use.click(on_plan, taken, card.outputs, trigger_mode="multiple", **PRIVATE)

    def _put_on(self, profile: MemoryProfile, width: object, height: object) -> Iterator[Update]:
        """Say that it is chosen; once the jobs that wait are done, show what the live pipeline makes of it."""
        name = memory_view.profile_name(profile, self._t)
        gr.Info(present.error_text(self._t("profile_used", name=name)), title="", duration=5)
        yield self.show(profile, self._states(width, height))
        with errors_as_toasts(self._t):
            try:
                self._memory.apply().result(APPLY_S)
            except StillBusy:
                return
        if self._memory.profile == profile:  # nobody chose another one meanwhile
            yield {**self.choices(), **self._told(profile, profile, self._states(width, height))}

    def _wire_keep(self) -> None:
        card = self._card

        def on_save(name: object, shown: object, width: object, height: object, pick: object, *widgets: Any) -> Update:
            with errors_as_toasts(self._t):
                profile = self._memory.save(self._asked(pick, shown, widgets), name)
            self._inform("profile_saved", profile)
            return self.show(profile, self._states(width, height))

        def on_delete(width: object, height: object, pick: object) -> Update:
            with errors_as_toasts(self._t):
                profile = self._base(pick)
                self._memory.delete(str(pick))
            self._inform("profile_deleted", profile)
            return self.show(self._memory.profile, self._states(width, height))

        gr.on(
            [card.save.click, card.name.submit], on_save, [card.name, card.shown, *self.inputs], card.outputs, **PRIVATE
        )
        card.delete.click(on_delete, self.inputs[:3], card.outputs, **PRIVATE)

    def _wire_files(self) -> None:
        card = self._card

        def on_import(file: object, width: object, height: object) -> Update:
            with errors_as_toasts(self._t):
                profile = self._memory.read(text_of(uploaded(file)[0]))
            self._inform("profile_imported", profile)
            return self.show(profile, self._states(width, height))

        def on_export(pick: object, shown: object, *widgets: Any) -> str:
            with errors_as_toasts(self._t):
                profile = self._asked(pick, shown, widgets)
            return json.dumps([f"{file_name(profile)}.json", "application/json", profile.to_json()])

        card.take_in.upload(
            on_import, [card.take_in, self._planner.width, self._planner.height], card.outputs, **PRIVATE
        )
        card.export.click(on_export, [card.pick, card.shown, *card.form.widgets], self._file, **PRIVATE).success(
            None, self._file, None, js=DOWNLOAD, **LOCAL
        )

    def _inform(self, key: str, profile: MemoryProfile) -> None:
        name = memory_view.profile_name(profile, self._t)
        gr.Info(present.error_text(self._t(key, name=name)), title="", duration=5)


def profile_choices(memory: MemoryService, t: Texts) -> list[tuple[str, str]]:
    """Presets, then the saved ones; the one in use is marked, and listed also when it has no name."""
    used, saved = memory.settled, memory.saved()
    known = memory.profiles()
    auto = (
        t("profile_auto", name=memory_view.profile_name(memory.profile, t)) if used is None else t("profile_auto_off")
    )
    choices = [(t("profile_in_use", name=auto) if used is None else auto, AUTO)]
    for name in known:
        words = t("profile_own", name=name) if name in saved else name
        choices.append((t("profile_in_use", name=words) if known[name] == used else words, name))
    if used is not None and used not in known.values():
        choices.insert(0, (t("profile_in_use", name=memory_view.profile_name(used, t)), IN_USE))
    return choices


def states_for(memory: MemoryService, width: object, height: object) -> States:
    """The states for a picture of that size; for any where the numbers are none."""
    if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
        return memory.states((width, height))
    return memory.states()


def text_of(path: Path) -> str:
    """The text of a file that was handed in. Raises InvalidInputError for one that is no profile."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidInputError("too_long", field="profile", count=path.stat().st_size, high=MAX_FILE_BYTES)
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError("profile_unreadable", field="profile", why=error) from error
    except OSError as error:
        raise UserError("file_damaged", value=path.name, why=error) from error


def file_name(profile: MemoryProfile) -> str:
    """A name for its file, of characters that every system takes."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in profile.name) or "memory_profile"
