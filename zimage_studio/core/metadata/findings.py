"""What was found in a picture's texts: taken over, converted, or listed as unknown.

Every value passes the same bounds as a request from any door, so that a recipe taken from a stranger's file can be
sent as it stands. What does not pass is listed with the reason, never bent into shape; the one exception, a side
that is no multiple of 16 px, is moved to the nearest and listed too.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from zimage_studio.errors import InvalidInputError
from zimage_studio.messages import Lang, say
from zimage_studio.records.checks import whole
from zimage_studio.records.request import (
    MAX_PROMPT_CHARS,
    MAX_SIDE_PX,
    SIDE_STEP_PX,
    Variation,
    check_size,
    checked,
)

MAX_SHOWN_CHARS = 2000
MAX_KEY_CHARS = 100
MAX_LISTED = 300
MORE = "…"
"""Stands for the entries beyond; a stranger's key of that name gives way to it."""
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_NUMBER = re.compile(r"[+-]?\d{1,30}(?:\.\d{0,30})?", re.ASCII)
_OLD_DIFFUSERS = re.compile(r"0\.(\d{1,3})(?:\.|$)", re.ASCII)
DIFFUSERS_CHANGED = 39
"""Before diffusers 0.39, Z-Image's last step was one of no length."""
_OUR_SAMPLERS = {"euler", "euler flowmatch", "flowmatch euler", "flowmatcheulerdiscrete", "euler flow match"}
_OUR_SCHEDULES = {"simple", "flow", "flowmatch"}


@dataclass(frozen=True, slots=True)
class Conversion:
    """One value that means something else here: what stood there, what it is for us, and why.

    `value` is None when it was not taken over, or cannot be honoured here. `reason` is a message key.
    """

    field: str
    source: object
    value: object
    reason: str
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def to_dict(self, lang: Lang = "en") -> dict[str, object]:
        """As the command line and the API print it."""
        why = say(self.reason, lang, **self.details)
        return {"field": self.field, "from": self.source, "to": self.value, "why": why}


@dataclass(frozen=True, slots=True)
class Inspection:
    """`recipe` holds what was understood; `unknown` everything else, as text.

    `dialect` is `zimage_studio`, `a1111` (also Forge, SD.Next), `comfyui`, `invokeai`, `swarmui`, `fooocus`, or
    empty. The recipe of our own dialect is a whole Recipe; of the others, fields of a request and `model`, a name.
    """

    dialect: str = ""
    recipe: dict[str, object] | None = None
    converted: tuple[Conversion, ...] = ()
    unknown: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self, lang: Lang = "en") -> dict[str, object]:
        """As the command line and the API print it."""
        return {
            "dialect": self.dialect or None,
            "recipe": self.recipe,
            "converted": [conversion.to_dict(lang) for conversion in self.converted],
            "unknown": self.unknown,
        }


class Findings:
    """Collects what one file says. A key is the name in the file, a field the name in our requests."""

    def __init__(self) -> None:
        self.recipe: dict[str, object] = {}
        self.converted: list[Conversion] = []
        self.unknown: dict[str, str] = {}
        self._beyond = 0

    def inspection(self, dialect: str) -> Inspection:
        """The result; without a single field there is no recipe."""
        unknown = self.unknown | ({MORE: f"+{self._beyond}"} if self._beyond else {})
        return Inspection(dialect, self.recipe or None, tuple(self.converted[:MAX_LISTED]), unknown)

    def leave(self, key: str, value: object) -> None:
        """Not understood, or not used: shown only. Beyond 300 entries, or under a name taken, counted under `…`."""
        name = clean(key[:MAX_KEY_CHARS])
        if name in self.unknown:
            self._beyond += self.unknown[name] != shown(value)
        elif len(self.unknown) < MAX_LISTED:
            self.unknown[name] = shown(value)
        else:
            self._beyond += 1

    def note(self, field: str, source: object, value: object, reason: str, /, **details: object) -> None:
        """Say that a value means something else here, or nothing."""
        shortened = {name: brief(detail) for name, detail in details.items()}
        self.converted.append(Conversion(clean(field[:MAX_KEY_CHARS]), brief(source), value, reason, shortened))

    def take(self, field: str, key: str, value: object) -> bool:
        """Take the value over as it is, if a request would accept it; else list it with the reason."""
        try:
            self.recipe[field] = checked(field, number(value) if field in _REALS else value)
        except InvalidInputError as error:
            self.leave(key, value)
            self.note(field, value, None, error.key, **error.values)
            return False
        return True

    def text(self, field: str, key: str, value: object) -> None:
        """A prompt. Characters that cannot be stored are replaced, which is listed."""
        if not isinstance(value, str):
            if value is not None:
                self.leave(key, value)
            return
        words = clean(value) if len(value) <= MAX_PROMPT_CHARS else value
        if self.take(field, key, words) and words != value:
            self.note(field, value, brief(words), "meta.cleaned")

    def variation(self, seed: object, strength: object) -> None:
        """One turn of the start noise towards that of another seed, as A1111 counts it."""
        try:
            link = Variation(seed=seed, strength=strength)  # type: ignore[arg-type]
        except InvalidInputError as error:
            self.leave("Variation seed", seed)
            self.leave("Variation seed strength", strength)
            self.note("variations", seed, None, error.key, **error.values)
            return
        self.recipe["variations"] = [dataclasses.asdict(link)]

    def model(self, name: object) -> None:
        """The model's name, for a person to read: nothing is looked up with it here."""
        if isinstance(name, str) and name:
            self.recipe["model"] = clean(name[:MAX_KEY_CHARS])

    def size(self, key: str, width: object, height: object) -> None:
        """Both sides, moved to multiples of 16 px."""
        try:
            sides = [whole(name, side, 1, MAX_SIDE_PX) for name, side in (("width", width), ("height", height))]
            near = [(side + SIDE_STEP_PX // 2) // SIDE_STEP_PX * SIDE_STEP_PX for side in sides]
            for name, side in zip(("width", "height"), near, strict=True):
                checked(name, side)
            check_size(*near)
        except InvalidInputError as error:
            self.leave(key, f"{brief(width)}x{brief(height)}")
            self.note("size", f"{brief(width)}x{brief(height)}", None, error.key, **error.values)
            return
        self.recipe |= {"width": near[0], "height": near[1]}
        for name, side, taken in zip(("width", "height"), sides, near, strict=True):
            if side != taken:
                self.note(name, side, taken, "meta.side", step=SIDE_STEP_PX)

    def cfg_scale(self, key: str, value: object) -> None:
        """Everyone else's CFG scale, one more than our guidance."""
        scale = number(value)
        if not isinstance(scale, float):
            self.take("guidance", key, value)  # says what is wrong with it
            return
        guidance = round(scale - 1, 6)
        if guidance < 0:
            self.leave(key, value)
            self.note("guidance", value, None, "meta.cfg_below_one")
        elif self.take("guidance", key, guidance):
            self.note("guidance", value, guidance, "meta.cfg")

    def steps(self, key: str, value: object, *, diffusers: object = None, by_diffusers: bool = False) -> None:
        """Steps; nine of an old diffusers were eight. `diffusers` is the version, where the file says one."""
        if not self.take("steps", key, value):
            return
        steps = self.recipe["steps"]
        old = _OLD_DIFFUSERS.match(diffusers) if isinstance(diffusers, str) else None
        if old and int(old[1]) < DIFFUSERS_CHANGED and isinstance(steps, int) and steps > 1:
            self.recipe["steps"] = steps - 1
            self.note("steps", value, steps - 1, "meta.old_steps", value=diffusers)
        elif by_diffusers and diffusers is None:
            self.note("steps", value, steps, "meta.steps_hint")

    def sampler(self, key: str, value: object) -> None:
        """Studio samples with Euler; anything else is listed as another picture."""
        self._same_or_left("sampler", key, value, "euler", _OUR_SAMPLERS)

    def scheduler(self, key: str, value: object) -> None:
        """Studio takes the even times of flow matching; anything else is listed as another picture."""
        self._same_or_left("scheduler", key, value, "simple", _OUR_SCHEDULES)

    def _same_or_left(self, field: str, key: str, value: object, ours: str, names: set[str]) -> None:
        if isinstance(value, str) and value.strip().lower() in names:
            self.note(field, value, ours, "meta.same")
        elif value is not None and value != "":
            self.leave(key, value)
            self.note(field, value, None, f"meta.{field}_other")


_REALS = {"guidance", "shift"}


def number(value: object) -> object:
    """A number as float, also from its text; anything else unchanged (NaN and infinity are no numbers here)."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**64 else value
    return value


def clean(text: str) -> str:
    """`text` without NUL and lone surrogates, which no file and no answer can hold."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def shown(value: object) -> str:
    """Any value as a text of at most 2000 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return clean(text[:MAX_SHOWN_CHARS])


def brief(value: object) -> object:
    """A value that may stand in an answer: numbers and flags as they are, anything else as a short text."""
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**64):
        return value
    return shown(value)[:200]
