"""Records as HTML for the page. Every value that came from outside is escaped here, and nowhere else."""

import base64
import html
import io
import json
from collections.abc import Iterable
from datetime import datetime

from PIL import Image

from zimage_studio.messages import CATALOGUES as MESSAGES
from zimage_studio.messages import say
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import Preview
from zimage_studio.records.recipe import Recipe
from zimage_studio.records.request import Variation
from zimage_studio.services.generation import JobView
from zimage_studio.services.images import StoredImage
from zimage_studio.services.manager import ManagerState
from zimage_studio.ui.texts import CATALOGUES, Texts

PREVIEW_PX = 256
MAX_ALT_CHARS = 200
_COUNTED_NOTES = ("note.encoding", "note.denoising")


def escape(value: object) -> str:
    """`value` as text that HTML shows literally; bidirectional and other invisible marks are made visible."""
    text = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return html.escape(text)


def name(t: Texts) -> str:
    """The name, as the heading of the page."""
    return f'<h1 class="zs-name">{escape(t("app_name"))}</h1>'


def language_link(t: Texts) -> str:
    """The way to the page in the other language."""
    other = "zh" if t.lang == "en" else "en"
    return (
        f'<a class="zs-lang" href="/lang/{other}" hreflang="{other}" lang="{other}"'
        f' title="{escape(t("other_language_label"))}">{escape(t("other_language"))}</a>'
    )


def chip(state: ManagerState, model_name: str, t: Texts) -> str:
    """The model and what the device does, in a few words."""
    words = t(f"chip_{state.phase}", model=model_name or state.model, percent=round(100 * state.fraction))
    title = state.why.text(t.lang) if state.why is not None else (say(state.note, t.lang) if state.note else "")
    return (
        f'<div class="zs-chip zs-{state.phase}" role="status" title="{escape(title)}">'
        f'<i aria-hidden="true"></i><span>{escape(words)}</span></div>'
    )


def stage_idle(t: Texts) -> str:
    """Before the first image."""
    return _frame(f'<p class="zs-big">{escape(t("stage_idle"))}</p><p>{escape(t("stage_idle_hint"))}</p>', "idle")


def stage_working(view: JobView, aspect: float, t: Texts) -> str:
    """The picture forming, and how far it is."""
    picture = _picture(view.preview, t)
    words = [say(view.note, t.lang, ahead=view.ahead)]
    fraction = view.done / view.total if view.total else 0.0
    if view.note in _COUNTED_NOTES:
        words.append(t("stage_step", done=f"{view.done:g}", total=f"{view.total:g}"))
    elif view.total and view.state == "running":
        words.append(t("stage_percent", percent=round(100 * fraction)))
    if view.recovered and view.note != f"recovery.{view.recovered[-1]}":
        words.append(say(f"recovery.{view.recovered[-1]}", t.lang))
    if view.count > 1 and view.state == "running":
        words.append(t("stage_image", index=view.index + 1, count=view.count))
    if view.seconds_left is not None:
        words.append(t("stage_left", time=duration(view.seconds_left, t)))
    counter = " · ".join(words)
    return _frame(
        f'<div class="zs-canvas" style="aspect-ratio:{aspect:.4f};--zs-aspect:{aspect:.4f}">{picture}</div>'
        f'<div class="zs-bar" role="progressbar" aria-label="{escape(t("stage_progress_label"))}"'
        f' aria-valuemin="0" aria-valuemax="100" aria-valuenow="{round(100 * fraction)}">'
        f'<i style="width:{100 * fraction:.1f}%"></i></div><p class="zs-count">{escape(counter)}</p>',
        "working",
    )


def stage_stopped(last: JobView, aspect: float, t: Texts) -> str:
    """After a Stop: how far it had come."""
    words = t("stage_stopped")
    if last.note in _COUNTED_NOTES:
        words = t("stage_stopped_at", done=f"{last.done:g}", total=f"{last.total:g}")
    picture = _picture(last.preview, t)
    canvas = f'<div class="zs-canvas zs-dim" style="aspect-ratio:{aspect:.4f};--zs-aspect:{aspect:.4f}">{picture}</div>'
    return _frame(f'{canvas if last.preview else ""}<p class="zs-count">{escape(words)}</p>', "stopped")


def stage_failed(sentence: str, t: Texts) -> str:
    """After a failure: what a person can do."""
    return _frame(f'<p class="zs-big">{escape(t("stage_failed"))}</p><p>{escape(sentence)}</p>', "failed")


def recipe(stored: StoredImage, t: Texts) -> str:
    """The recipe in readable form, the whole of it as JSON underneath."""
    made, request, outcome = stored.recipe, stored.recipe.request, stored.recipe.outcome
    rows = [
        (t("recipe_seed"), f"<b class=zs-seed>{request.seed}</b>"),
        (t("recipe_size"), f"{request.width} × {request.height}"),
        (t("recipe_steps"), str(request.steps)),
        (t("recipe_guidance"), f"{request.guidance:g}"),
        (t("recipe_shift"), "" if request.shift is None else f"{request.shift:g}"),
        (t("recipe_negative"), escape(request.negative_prompt) if request.guidance > 0 else ""),
        (field_name("variations", t), _chain(request.variations, t)),
        (field_name("variety", t), f"{request.variety:g}" if request.variety else ""),
        (field_name("source", t), "" if request.source is None else _short_hash(request.source, 8)),
        (field_name("strength", t), "" if request.strength is None else f"{request.strength:g}"),
        (t("recipe_model"), f"{escape(made.model.name)} {_short_hash(made.model.sha256, 8)}"),
        (t("recipe_seconds"), escape(duration(outcome.seconds, t))),
        (t("recipe_device"), escape(made.numerics.device)),
        (t("recipe_created"), escape(local_minute(made.created))),
        (t("recipe_hash"), _short_hash(outcome.pixels_sha256, 16)),
    ]
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in rows if value)
    summary, whole = escape(t("recipe_json")), escape(pretty_json(made))
    return (
        f'<div class="zs-recipe"><p class="zs-prompt">{escape(request.prompt)}</p><dl>{cells}</dl>'
        f"<details><summary>{summary}</summary><pre tabindex=0>{whole}</pre></details></div>"
    )


def _chain(links: Iterable[Variation], t: Texts) -> str:
    return "<br>".join(escape(t("chain_link", seed=link.seed, strength=f"{link.strength:g}")) for link in links)


def pretty_json(made: Recipe) -> str:
    """The recipe with line breaks; digits of the seed are kept, as this is text."""
    return json.dumps(made.to_dict(), ensure_ascii=False, indent=2)


def field_name(name: str, t: Texts) -> str:
    """What a field of a request is called: above its widget, else in sentences, else as it is written."""
    words = CATALOGUES[t.lang].get(name) or MESSAGES[t.lang].get(f"field.{name}", name.replace("_", " "))
    return words[:1].upper() + words[1:]


def alt_text(stored: StoredImage) -> str:
    """What a screen reader says of an image: its prompt."""
    prompt = stored.recipe.request.prompt
    return prompt if len(prompt) <= MAX_ALT_CHARS else prompt[: MAX_ALT_CHARS - 1] + "…"


def seed_note(seed: int | None, t: Texts) -> str:
    """Under the seed: the one that was used last."""
    if seed is None:
        return f'<p class="zs-note">{escape(t("seed_none"))}</p>'
    return f'<p class="zs-note">{escape(t("seed_last", seed=seed))}</p>'


def note(words: str) -> str:
    """A quiet line."""
    return f'<p class="zs-note">{escape(words)}</p>'


def model_note(artifact: ModelArtifact, t: Texts, parent: str = "") -> str:
    """What the chosen model is, in one line; `parent` is the name of what it was made from, where that is known."""
    parts = []
    if artifact.family != "other":
        parts.append(t(f"model_family_{artifact.family}"))
    if artifact.parameters:
        parts.append(parameters(artifact.parameters, t))
    if artifact.bytes:
        parts.append(size(artifact.bytes, t))
    if artifact.missing == "missing.not_downloaded":
        parts.append(t("model_hub"))
    elif artifact.missing:
        parts.append(say(artifact.missing, t.lang))
    if artifact.parent:
        parts.append(t("model_made_from", parent=parent or artifact.parent[:12]))
    return note(" · ".join(parts))


def page_words(total: int, page: int, pages: int, search: str, t: Texts) -> str:
    """How many images there are, or why there are none."""
    if total == 0:
        return note(t("history_nothing_found" if search.strip() else "history_empty"))
    return note(t("history_count_one") if total == 1 else t("history_count", total=total, page=page, pages=pages))


def duration(seconds: float, t: Texts) -> str:
    """`0.8 s`, `12 s` or `3 min 4 s`."""
    if seconds < 9.95:
        return t("seconds", s=f"{seconds:.1f}")
    whole = round(seconds)
    return t("seconds", s=whole) if whole < 60 else t("minutes", m=whole // 60, s=whole % 60)


def preview_uri(preview: Preview) -> str:
    """The preview as a data URI, enlarged smoothly here: browsers enlarge 16 px to 600 px with visible squares."""
    image = Image.frombytes("RGB", (preview.width, preview.height), preview.rgb)
    scale = PREVIEW_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(preview: Preview | None, t: Texts) -> str:
    if preview is None:
        return '<span class="zs-wait" aria-hidden="true"></span>'
    return f'<img alt="{escape(t("stage_preview_alt"))}" src="{preview_uri(preview)}">'


def _frame(inner: str, kind: str) -> str:
    live = ' role="alert"' if kind == "failed" else ""
    return f'<div class="zs-stage zs-stage-{kind}"{live}>{inner}</div>'


def _short_hash(sha256: str, shown: int) -> str:
    return f'<small title="{escape(sha256)}">{escape(sha256[:shown])}…</small>'


def local_minute(created: str) -> str:
    """A recorded time as the clock of the server shows it; what is no time (a file may say anything) as it stands."""
    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return created


def parameters(number: int, t: Texts) -> str:
    """Chinese counts in 10^4 and 10^8, English in 10^6 and 10^9."""
    if number >= (10**8 if t.lang == "zh" else 10**9):
        yi = f"{number / 1e8:.0f}" if number >= 10**9 else f"{number / 1e8:.1f}"
        return t("model_parameters_billions", billions=f"{number / 1e9:.1f}", yi=yi)
    return t("model_parameters", millions=f"{number / 1e6:.1f}", wan=f"{number / 1e4:.0f}")


def size(number: int, t: Texts) -> str:
    """Bytes in units of 10^6 or 10^9."""
    if number >= 10**9:
        return t("model_bytes_gb", gb=f"{number / 1e9:.1f}")
    return t("model_bytes", mb=f"{number / 1e6:.1f}")


def error_text(sentence: str) -> str:
    """A sentence for a toast: toasts are HTML, so `<` in a value must be escaped to be seen."""
    return escape(sentence)
