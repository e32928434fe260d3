"""Options that commands share: declared once, appended to each command, handed over as one value."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from zimage_studio.cli.common import (
    DataOption,
    FoldersOption,
    JsonOption,
    LangOption,
    ModelOption,
    OfflineOption,
    Printer,
    ProfileOption,
)
from zimage_studio.settings import Settings, load_settings

Name = Literal["model", "profile", "folders", "data", "lang", "offline", "as_json"]
OPTIONS: dict[Name, tuple[object, object]] = {
    "model": (ModelOption, None),
    "profile": (ProfileOption, None),
    "folders": (FoldersOption, None),
    "data": (DataOption, None),
    "lang": (LangOption, None),
    "offline": (OfflineOption, None),
    "as_json": (JsonOption, False),
}
"""Their declarations and defaults, in the order in which --help shows them."""
USUAL: tuple[Name, ...] = ("folders", "data", "lang", "offline", "as_json")


@dataclass(frozen=True, slots=True)
class Common:
    """What the shared options held; None for one that was not given, or that the command does not have."""

    model: str | None = None
    profile: str | None = None
    folders: list[str] | None = None
    data: str | None = None
    lang: str | None = None
    offline: bool | None = None
    as_json: bool = False

    @property
    def settings(self) -> Settings:
        """The settings with these options. Raises InvalidInputError."""
        return load_settings(
            {"data": self.data, "lang": self.lang, "models": self.folders, "offline": self.offline, "model": self.model}
        )

    def print(self, result: dict[str, object], text: str, settings: Settings) -> None:
        """`result` as JSON where --json was given, else `text`."""
        Printer(self.as_json, settings.lang).result(result, text)


def with_common(*more: Name) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Append the usual options, and those in `more`, to those of a command, which takes them as `common`."""
    names = [name for name in OPTIONS if name in USUAL or name in more]

    def extended(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(common=Common(**{name: values.pop(name) for name in names}), **values)

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "common"]
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=OPTIONS[name][1], annotation=OPTIONS[name][0]
            )
            for name in names
        ]
        named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*named, *shared)}
        run.__dict__["__signature__"] = signature.replace(parameters=[*named, *shared])
        return run

    return extended
