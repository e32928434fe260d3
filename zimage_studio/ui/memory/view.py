"""Profiles and plans as HTML: what each switch really does, and what fits."""

from collections.abc import Sequence

from zimage_studio.messages import CATALOGUES as MESSAGES
from zimage_studio.messages import say
from zimage_studio.records.memory import EXACT, PRESETS, MemoryProfile, Phase, PhasePeak, Plan, SwitchState
from zimage_studio.services.memory import States
from zimage_studio.ui import present
from zimage_studio.ui.memory.gauge import amount
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

_MARKS = {"applied": "✓", "no_effect": "–", "refused": "✕"}


# --- switches -------------------------------------------------------------------------------------------------------


def truth(name: str, wanted: object, live: SwitchState | None, t: Texts) -> str:
    """What the live pipeline says of the switch `name`; `wanted` is what the form asks for now."""
    hint = t(f"hint_{name}")
    if live is None:
        return _truth("none", "", hint)
    if live.requested != wanted:
        return _truth("pending", t("truth_pending"), hint)
    reason = say(live.reason, t.lang, **live.values)
    if live.reason == "memory.off":
        return _truth("off", t("truth_off"), hint)
    return _truth(live.state, t(f"truth_{live.state}"), reason)


def heads(t: Texts) -> str:
    """Over the two columns."""
    switch, says = escape(t("column_switch")), escape(t("column_truth"))
    return f'<div class="zs-heads"><span>{switch}</span><span>{says}</span></div>'


def _truth(kind: str, head: str, words: str) -> str:
    mark = f'<i aria-hidden="true">{_MARKS[kind]}</i>' if kind in _MARKS else ""
    bold = f"<b>{escape(head)}</b> " if head else ""
    return f'<p class="zs-truth zs-truth-{kind}" data-state="{kind}">{mark}<span>{bold}{escape(words)}</span></p>'


def summary(found: States, t: Texts) -> str:
    """Under which profile the model in memory stands, how many switches are at work, and which were asked in vain."""
    words = []
    if found.states:
        applied = sum(state.state == "applied" for state in found.states)
        words.append(t("live_under", name=profile_name(found.profile, t), applied=applied))
        asked = [state for state in found.states if state.name in found.profile.changed]
        for kind, key in (("no_effect", "live_idle"), ("refused", "live_refused")):
            if names := [switch_name(state.name, t) for state in asked if state.state == kind]:
                words.append(t(key, names=_list(names, t)))
    if found.note:
        words.append(say(found.note, t.lang))
    if found.states and found.pending:
        words.append(say("memory.states.pending", t.lang))
    between = "" if t.lang == "zh" else " "
    return f'<p class="zs-live">{escape(between.join(words))}</p>'


def switch_name(name: str, t: Texts) -> str:
    """What a switch is called."""
    words = MESSAGES[t.lang][f"field.{name}"]
    return words if words.startswith("fp8") else words[:1].upper() + words[1:]


def profile_name(profile: MemoryProfile, t: Texts) -> str:
    """What a profile is called; a changed one has no name."""
    return profile.name or t("profile_unnamed")


def description(profile: MemoryProfile, base: MemoryProfile, t: Texts) -> str:
    """One honest sentence: of a preset what it gives up, of another profile how it differs from `base`."""
    preset = PRESETS.get(base.name)
    if profile.same_switches(base) and preset is not None and preset.same_switches(base):
        return present.note(say(f"preset.{base.name}", t.lang))
    against = EXACT if profile.same_switches(base) else base
    changes = [
        f"{switch_name(name, t)} {option(value, t)}"
        for name, value in profile.switches.items()
        if value != getattr(against, name)
    ]
    if not changes:
        return present.note(t("profile_as_exact"))
    return present.note(t("profile_edited", name=profile_name(against, t), changes=_list(changes, t)))


def _list(words: Sequence[str], t: Texts) -> str:
    return MESSAGES[t.lang]["list_comma"].join(words)


def option(value: object, t: Texts) -> str:
    """How a value of a switch is written."""
    if isinstance(value, bool):
        return t("option_on") if value else t("option_off")
    return str(value)


def refusal(sentence: str) -> str:
    """Why the switches as they stand cannot be used together."""
    return f'<p class="zs-clash" role="alert">{escape(sentence[:1].upper() + sentence[1:])}</p>'


# --- planner --------------------------------------------------------------------------------------------------------


def plan(found: Plan, t: Texts) -> str:
    """The sentence, and each phase as a bar against what is free."""
    sentence = say(found.reason, t.lang, **found.values)
    faster = ""
    if found.faster is not None:
        faster = f'<p class="zs-quiet">{escape(t("plan_faster", name=found.faster.name))}</p>'
    scale = max(found.free_bytes, found.estimate.peak_bytes) or 1
    rows = "".join(_plan_row(phase, scale, found.free_bytes, t) for phase in found.estimate.phases)
    kind = "fits" if found.fits else "short"
    legend = (
        f'<p class="zs-legend"><span class="zs-weights">{escape(t("plan_weights"))}</span>'
        f'<span class="zs-computed">{escape(t("plan_computed"))}</span>'
        f'<span class="zs-limit">{escape(t("plan_free", free=amount(found.free_bytes)))}</span></p>'
    )
    host = ""
    if found.estimate.host_bytes:
        host = f'<p class="zs-quiet">{escape(t("plan_host", host=amount(found.estimate.host_bytes)))}</p>'
    return (
        f'<div class="zs-plan zs-plan-{kind}" data-fits="{str(found.fits).lower()}">'
        f'<p class="zs-sentence">{escape(sentence)}</p>{faster}'
        f'<table class="zs-bars">{rows}</table>{legend}{host}</div>'
    )


def plan_failed(sentence: str) -> str:
    """Where nothing can be foretold."""
    return f'<div class="zs-plan"><p class="zs-quiet">{escape(sentence)}</p></div>'


def _plan_row(phase: PhasePeak, scale: int, free: int, t: Texts) -> str:
    weights, computed = phase.weights_bytes, phase.peak_bytes - phase.weights_bytes
    return (
        f'<tr><th scope="row">{escape(phase_name(phase.phase, t))}</th><td><div class="zs-track" aria-hidden="true">'
        f'<i class="zs-weights" style="width:{_share(weights, scale)}"></i>'
        f'<i class="zs-computed" style="width:{_share(computed, scale)}"></i>'
        f'<s style="left:{_share(free, scale)}"></s></div></td>'
        f'<td class="zs-number">{escape(amount(phase.peak_bytes))}</td></tr>'
    )


def _share(part: float, scale: float) -> str:
    return f"{max(0.0, min(100.0, 100 * part / scale)):.2f}%"


def phase_name(phase: Phase, t: Texts) -> str:
    """What a phase is called."""
    words = MESSAGES[t.lang][f"field.phase_{phase}"]
    return words[:1].upper() + words[1:]
