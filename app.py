"""The door of the page: settings -> studio -> ui -> serve. Nothing else."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from zimage_studio.errors import UserError
from zimage_studio.messages import LANGS, Lang, say
from zimage_studio.settings import AUTO_LOGIN, Settings, load_settings
from zimage_studio.web.environment import prepare_environment, without_collector
from zimage_studio.web.login import AUTO_USER, check_exposure, read_logins
from zimage_studio.web.port import PortTakenError, listen

if TYPE_CHECKING:
    from zimage_studio.web.serve import Composition

EXIT_REFUSED = 2
HEAD_START_S = 1.0


def compose(settings: Settings) -> "Composition":
    """The Studio and its two pages. Imported here: the environment must be prepared before Gradio is imported."""
    from zimage_studio.services.studio import build_studio
    from zimage_studio.ui.app import build_page, css, head, theme
    from zimage_studio.web.serve import Composition, Look

    studio = dataclasses.replace(build_studio(settings), head_start_s=HEAD_START_S)
    return Composition(
        studio=studio,
        pages={"zh": build_page(studio, "zh", with_api=False), "en": build_page(studio, "en", with_api=True)},
        looks={lang: Look(theme=theme(), css=css(), head=head(lang)) for lang in LANGS},
    )


def main(arguments: Sequence[str], compose: "Callable[[Settings], Composition]" = compose) -> int:
    """Run until a signal. 0 after a requested stop, 2 for refused options, 98 when the port is taken."""
    options = vars(_parser().parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    lang: Lang = "zh" if options["lang"] == "zh" else "en"
    try:
        settings = load_settings(options)
        lang = settings.lang
        return _run(settings, compose)
    except PortTakenError as error:
        _say(sys.stderr, f"error: {error.text(lang)}")
        return error.exit_status
    except UserError as error:
        _say(sys.stderr, f"error: {error.text(lang)}")
        return EXIT_REFUSED


def _run(settings: Settings, compose: "Callable[[Settings], Composition]") -> int:
    logins, made = read_logins(settings)
    check_exposure(settings, logins)
    sock = listen(settings.host, settings.port)  # before the seconds that the imports below take
    cache = prepare_environment(settings)
    if made:
        _say(sys.stdout, say("login_made", settings.lang, user=AUTO_USER, value=made))
    with without_collector():
        composition = compose(settings)

    from zimage_studio.web.serve import run_studio

    return run_studio(
        settings, composition, sock=sock, cache=cache, logins=logins, announce=lambda text: _say(sys.stdout, text)
    )


def _parser() -> argparse.ArgumentParser:
    """One option for each field of Settings, with its own help text."""
    parser = argparse.ArgumentParser(
        prog="app.py",
        description="Z-Image Studio in the browser. Each option can also be set as ZIMAGE_NAME in the environment "
        "or as a line in DATA/settings.toml; the option wins.",
    )
    for item in dataclasses.fields(Settings):
        name = "--" + item.name.replace("_", "-")
        text = item.metadata["help"].replace("%", "%%")
        if item.type is bool:
            parser.add_argument(name, action="store_true", default=None, help=text)
        elif item.name in ("auth", "models", "public_hosts"):
            shown = {"auth": f"USER:PASSWORD|{AUTO_LOGIN}", "models": "DIR", "public_hosts": "NAME"}[item.name]
            parser.add_argument(name, action="append", metavar=shown, help=f"{text} Repeat for more.")
        else:
            shown = {"lang": "en|zh", "model": "KEY", "data": "DIR"}.get(item.name, item.name.upper())
            parser.add_argument(name, metavar=shown, help=text)
    return parser


def _say(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
