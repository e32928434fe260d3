"""The only reader of environment and config file: option, then ZIMAGE_*, then DATA/settings.toml, then default."""

import dataclasses
import ipaddress
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from zimage_studio.errors import InvalidInputError
from zimage_studio.messages import LANGS, Lang
from zimage_studio.records.checks import refuse_unknown

CONFIG_NAME = "settings.toml"
PREFIX = "ZIMAGE_"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
AUTO_LOGIN = "auto"


def default_data() -> Path:
    """The folder of this user that the system keeps for application data; private and outside any repository."""
    return platformdirs.user_data_path("zimage-studio", appauthor=False)


def about(text: str, *, low: int | None = None, high: int | None = None) -> dict[str, Any]:
    """What a field is for, and its bounds; --help and the docs are made from it."""
    return {"help": text, "low": low, "high": high}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """One snapshot of all settings, taken at the start. `load_settings` makes it; tests may call it directly."""

    host: str = field(
        default="127.0.0.1", metadata=about("Address to listen on. Anything but this machine needs a login.")
    )
    port: int = field(
        default=7860, metadata=about("Port to listen on. When it is taken, Studio ends.", low=1, high=65535)
    )
    share: bool = field(default=False, metadata=about("Make a public link. Needs a login."))
    auth: tuple[str, ...] = field(
        default=(), repr=False, metadata=about("Logins, USER:PASSWORD each; `auto` makes one and prints it once.")
    )
    auth_file: Path | None = field(
        default=None, metadata=about("File with one USER:PASSWORD a line, unseen in the process list.")
    )
    insecure_no_auth: bool = field(
        default=False, metadata=about("Allow other machines in, or a public link, without a login.")
    )
    public_hosts: tuple[str, ...] = field(
        default=(), metadata=about("More names to answer to; https://NAME for one behind an HTTPS proxy.")
    )
    models: tuple[Path, ...] = field(default=(), metadata=about("Folders that hold models, besides DATA/models."))
    data: Path = field(
        default_factory=default_data,
        metadata=about("Folder for everything Studio writes: images, history, settings.toml. Private."),
    )
    lang: Lang = field(
        default="en", metadata=about("Language of messages, and of the page when the browser names none.")
    )
    model: str = field(default="tiny", metadata=about("Model to load at the start; `tiny` is the embedded one."))
    profile: str = field(
        default="auto",
        metadata=about("Memory profile until another is chosen: `auto` (what fits), a preset, a saved one or a file."),
    )
    offline: bool = field(default=False, metadata=about("Never use the network."))
    max_waiting: int = field(
        default=16, metadata=about("Image jobs that may wait in all; the next one is refused.", low=1, high=1000)
    )
    max_waiting_per_session: int = field(
        default=4, metadata=about("Image jobs that one visitor may have waiting.", low=1, high=1000)
    )
    disk_reserve_mb: int = field(
        default=512, metadata=about("Free disk space that no image may eat into.", low=0, high=1_000_000)
    )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


def load_settings(options: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Settings:
    """Join the four sources. `options` holds what the command line gave; None means not given.

    Raises InvalidInputError naming the field, the value and the remedy. Makes no folder.
    """
    given = {name: value for name, value in options.items() if value is not None}
    known = {item.name: item for item in dataclasses.fields(Settings)}
    refuse_unknown(given, known)
    from_env = {name: environ[PREFIX + name.upper()] for name in known if environ.get(PREFIX + name.upper())}
    data = _cast(known["data"], given.get("data", from_env.get("data", default_data())))
    from_file = _read_config(data / CONFIG_NAME)
    refuse_unknown(from_file, known)
    merged = {**from_file, **from_env, **given, "data": data}
    return Settings(**{name: _cast(known[name], value) for name, value in merged.items()})


def describe() -> str:
    """The settings as a Markdown table; the docs hold the same text (a test compares)."""
    lines = ["| option | environment | default | what it does |", "|---|---|---|---|"]
    for item in dataclasses.fields(Settings):
        option = "--" + item.name.replace("_", "-")
        lines.append(
            f"| `{option}` | `{PREFIX}{item.name.upper()}` | {_shown_default(item)} | {item.metadata['help']} |"
        )
    return "\n".join(lines) + "\n"


def _shown_default(item: "dataclasses.Field[Any]") -> str:
    if item.name == "data":
        return "the user's data folder"
    if item.default in ((), None):
        return "none"
    return f"`{str(item.default).lower() if isinstance(item.default, bool) else item.default}`"


def _read_config(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidInputError("config_unreadable", field=CONFIG_NAME, value=path, why=error) from error


def _cast(item: "dataclasses.Field[Any]", value: object) -> Any:
    casts: dict[object, Callable[[Any, object], object]] = {
        bool: _flag,
        int: _whole,
        str: _text,
        Path: _path,
        Path | None: _path,
        tuple[str, ...]: _texts,
        tuple[Path, ...]: _paths,
        Lang: _choice,
    }
    return casts[item.type](item, value)


def _choice(item: "dataclasses.Field[Any]", value: object) -> object:
    if value not in LANGS:
        raise InvalidInputError("bad_choice", field=item.name, value=value, known=", ".join(LANGS))
    return value


def _whole(item: "dataclasses.Field[Any]", value: object) -> int:
    low, high = item.metadata["low"], item.metadata["high"]
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.removeprefix("-").isdigit():
        raise InvalidInputError("bad_whole", field=item.name, value=value, low=low, high=high)
    if not low <= int(text) <= high:
        raise InvalidInputError("bad_whole", field=item.name, value=value, low=low, high=high)
    return int(text)


def _flag(item: "dataclasses.Field[Any]", value: object) -> bool:
    if isinstance(value, bool):
        return value
    flags = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if str(value).lower() not in flags:
        raise InvalidInputError("bad_flag", field=item.name, value=value)
    return flags[str(value).lower()]


def _text(item: "dataclasses.Field[Any]", value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InvalidInputError("bad_text", field=item.name, value=repr(value))
    return value.strip()


def _texts(item: "dataclasses.Field[Any]", value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise InvalidInputError("bad_text", field=item.name, value=value)
    return tuple(_text(item, part) for part in value)


def _path(item: "dataclasses.Field[Any]", value: object) -> Path:
    text = str(value) if isinstance(value, Path) else _text(item, value)
    return Path(text).expanduser().absolute()


def _paths(item: "dataclasses.Field[Any]", value: object) -> tuple[Path, ...]:
    """Folders, divided as PATH is; a comma may be part of a name."""
    if isinstance(value, str):
        value = [part for part in value.split(os.pathsep) if part.strip()]
    if isinstance(value, Path):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise InvalidInputError("bad_text", field=item.name, value=value)
    return tuple(_path(item, part) for part in value)
