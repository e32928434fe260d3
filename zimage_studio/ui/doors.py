"""What every handler needs at the border to Gradio: errors as toasts, the session, files by way of the cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils
from gradio.utils import get_upload_folder

from zimage_studio.errors import UserError
from zimage_studio.messages import Lang
from zimage_studio.ui.present import error_text
from zimage_studio.ui.texts import Texts

LOCAL = {"queue": False, "show_progress": "hidden"}  # runs in the browser only: fn=None, js=...
PRIVATE = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None, "preprocess": False}
Update = dict[Any, Any]


@contextmanager
def errors_as_toasts(t: Texts) -> Iterator[None]:
    """Show a UserError in the page's language. Anything else is a bug and flies on, with its traceback."""
    try:
        yield
    except UserError as error:
        raise toast(error, t) from error


def toast(error: UserError, t: Texts) -> gr.Error:
    """The toast of `error`."""
    return plain_toast(error.text(t.lang), t)


def plain_toast(sentence: str, t: Texts) -> gr.Error:
    """A toast with `sentence`; `print_exception=False` keeps a person's typo out of the log."""
    return gr.Error(error_text(sentence), title=t("error_title"), print_exception=False)


@contextmanager
def errors_as_answers(lang: Lang) -> Iterator[None]:
    """The same for an API client, which gets the sentence as it is."""
    try:
        yield
    except UserError as error:
        raise gr.Error(error.text(lang), print_exception=False) from error


def session_of(request: gr.Request) -> str:
    """Whose jobs these are: one open page, or one API client."""
    return str(request.session_hash or "nobody")


def shown(path: Path) -> str:
    """A copy of `path`, bytes untouched, in the folder that Gradio serves from.

    The images themselves lie in a folder that Gradio may not serve: what it may serve it serves inline and to
    anyone who names it. The copies are swept after a day (`delete_cache` of the page).
    """
    return str(processing_utils.save_file_to_cache(path, cache_dir=get_upload_folder()))


def uploaded(value: object) -> tuple[Path, str]:
    """The file that a person uploaded, and what they called it. Raises UserError for anything else.

    A path from outside is read only when it lies in the folder where Gradio puts uploads, each under the hash of
    its content: nobody can name what they do not have. The name is for showing only.
    """
    path, name = (value.get("path"), value.get("orig_name")) if isinstance(value, dict) else (None, None)
    try:
        place = Path(path).resolve(strict=True) if isinstance(path, str) else None
    except (OSError, ValueError, RuntimeError):
        place = None
    if place is None or not place.is_file() or not place.is_relative_to(Path(get_upload_folder()).resolve()):
        raise UserError("not_uploaded")
    return place, name if isinstance(name, str) and name else place.name


def lang_of(request: gr.Request) -> Lang:
    """English, unless the client's Accept-Language prefers Chinese."""
    header = str(request.headers.get("accept-language", ""))
    weights: dict[str, float] = {}
    for part in header.split(","):
        tag, _, quality = part.strip().lower().partition(";q=")
        try:
            weights.setdefault(tag.partition("-")[0], float(quality or 1))
        except ValueError:
            continue
    return "zh" if weights.get("zh", 0.0) > weights.get("en", 0.0) else "en"


def shown_file(path: Path) -> dict[str, Any]:
    """A file as Gradio's clients download it; only ever of a path that our own stores gave."""
    return {"path": shown(path), "orig_name": path.name, "mime_type": "image/png", "meta": {"_type": "gradio.FileData"}}
