"""Options that commands share: declared once, appended to each command, handed over as one value."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import typer

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
FEW: tuple[Name, ...] = ("data", "lang", "as_json")
"""Those of a command that loads no model."""
USUAL: tuple[Name, ...] = ("folders", "offline", *FEW)


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

    def over(self, before: Self | None) -> Self:
        """These options, and those of `before` that are not given here."""
        if before is None:
            return self
        joined = {item.name: getattr(self, item.name) or getattr(before, item.name) for item in fields(self)}
        return replace(self, **joined)

    def print(self, result: dict[str, object], text: str, settings: Settings) -> None:
        """`result` as JSON where --json was given, else `text`."""
        Printer(self.as_json, settings.lang).result(result, text)


def with_common(*more: Name, usual: tuple[Name, ...] = USUAL) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Append `usual` and `more` options to those of a command, which takes them as `common`.

    They may stand before or after a sub-command, where the callback of its group has them too; after goes first.
    """
    names = [name for name in OPTIONS if name in usual or name in more]

    def extended(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(context: typer.Context, **values: Any) -> None:
            common = Common(**{name: values.pop(name) for name in names}).over(context.obj)
            context.obj = common
            if "context" in signature.parameters:
                values["context"] = context
            command(common=common, **values)

        own = [parameter for name, parameter in signature.parameters.items() if name not in ("common", "context")]
        added = {"context": (typer.Context, inspect.Parameter.empty)} | {name: OPTIONS[name] for name in names}
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in added.items()
        ]
        parameters = [*(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own), *shared]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__dict__["__signature__"] = signature.replace(parameters=parameters)
        return run

    return extended
