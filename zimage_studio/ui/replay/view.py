"""What was read, and the verdict, as HTML. Every value that came from outside is escaped here, and nowhere else."""

import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from zimage_studio.core.metadata.inspect import Inspection
from zimage_studio.messages import CATALOGUES as MESSAGES
from zimage_studio.records.verdict import Verdict
from zimage_studio.services.images import StoredImage
from zimage_studio.services.replay import Original, flat
from zimage_studio.ui import present
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

MAX_VALUE_CHARS = 160
SHOWN_DIGITS = 16
FEW = 6
_HASH = re.compile(r"[0-9a-f]{64}")
PROGRAMS = {
    "zimage_studio": "Z-Image Studio",
    "a1111": "A1111, Forge, SD.Next",
    "comfyui": "ComfyUI",
    "invokeai": "InvokeAI",
    "swarmui": "SwarmUI",
    "fooocus": "Fooocus",
}
_FIRST = ("model.name", "model.sha256", "numerics.device", "created", "outcome.pixels_sha256")
_NAMES = {
    "model.name": "model",
    "model.sha256": "recorded_weights",
    "numerics.device": "recipe_device",
    "numerics.attention_backend": "recorded_attention",
    "numerics.sigmas": "recorded_sigmas",
    "numerics.sequence_length": "recorded_length",
    "numerics.noise": "recorded_noise",
    "stack.cpu": "recorded_cpu",
    "stack.threads": "recorded_threads",
    "created": "recipe_created",
    "outcome.seconds": "recipe_seconds",
    "outcome.pixels_sha256": "recipe_hash",
}
_PREFIXES = {
    "stack.": "recorded_version",
    "numerics.dtypes.": "recorded_precision",
    "numerics.scheduler.": "recorded_scheduler",
    "numerics.memory.": "recorded_memory",
}
_MARKS = {"identical": "✓", "differs": "≠", "compared": "⇄", "changed": "✎"}


def idle(t: Texts) -> str:
    """Before anything is read."""
    return (
        '<div class="zs-stage zs-stage-idle">'
        f'<p class="zs-big">{escape(t("replay_idle"))}</p><p>{escape(t("replay_idle_hint"))}</p>'
        f'<p class="zs-quiet">{escape(t("replay_programs", programs=_joined(PROGRAMS.values(), t)))}</p></div>'
    )


def unreadable(sentence: str) -> str:
    """A file or a text that was refused."""
    return f'<section class="zs-card zs-refused" role="alert"><p>{escape(sentence)}</p></section>'


def reading(original: Original, t: Texts, *, picture: str = "", filled: Iterable[str] = (), chosen: str = "") -> str:
    """Everything that was understood, converted, and not understood.

    `picture` is a file that Gradio serves; `filled` the fields that the model's defaults had to fill; `chosen` the
    name of the model that will draw instead of a named one that is not known here.
    """
    found = original.found
    parts = [_head(original, picture, t)]
    if original.values.get("prompt"):
        parts.append(f'<p class="zs-prompt">{escape(original.values["prompt"])}</p>')
    parts.append(_understood(original, t))
    notes = [t("read_filled", fields=_listed(filled, t))] if filled and found.recipe else []
    notes += [t("read_other_model", named=original.model_name, chosen=chosen)] if chosen else []
    parts += [f'<p class="zs-remark">{escape(words)}</p>' for words in notes]
    parts += [_converted(found, t), _unknown(found, t)]
    return f'<section class="zs-card zs-reading">{"".join(parts)}</section>'


def only_a_seed(seed: str, t: Texts) -> str:
    """A pasted text that is nothing but a number."""
    return f'<section class="zs-card zs-reading"><p>{escape(t("read_seed", seed=seed))}</p></section>'


def verdict(found: Verdict, original: Original, made: StoredImage, t: Texts) -> str:
    """The end of a replay: what it is, how far apart the pictures are, and what is recorded differently."""
    kind = "changed" if found.changed and found.verdict == "differs" else found.verdict
    lines = [f'<p class="zs-big"><i aria-hidden="true">{_MARKS[kind]}</i>{escape(found.sentence(t.lang))}</p>']
    if found.verdict == "identical":
        sha256 = made.recipe.outcome.pixels_sha256
        lines.append(f'<p class="zs-hash">{escape(t("recipe_hash"))} <code>{escape(sha256)}</code></p>')
    remarks = []
    if found.edited and found.reason != "replay.edited":
        remarks.append(t("verdict_edited"))
    if original.path is None and original.recipe is not None:
        remarks.append(t("verdict_by_hash"))
    elif found.verdict == "differs" and found.max_difference is None:
        remarks.append(t("verdict_no_comparison"))
    lines += [f'<p class="zs-remark">{escape(words)}</p>' for words in remarks]
    lines += [_measures(found, t), _differences(found, t)]
    live = f'role="status" data-verdict="{found.verdict}"'
    return f'<section class="zs-card zs-verdict zs-verdict-{kind}" {live}>{"".join(lines)}</section>'


def model_missing(sentence: str, wanted: str, t: Texts) -> str:
    """The weights of the recipe are not here."""
    sha256 = f'<p class="zs-hash">{escape(t("wanted_hash"))} <code>{escape(wanted)}</code></p>' if wanted else ""
    words = f'<p class="zs-big"><i aria-hidden="true">!</i>{escape(sentence)}</p>'
    return f'<section class="zs-card zs-verdict zs-verdict-missing" role="alert">{words}{sha256}</section>'


def difference_caption(factor: int, largest: int | None, t: Texts) -> str:
    """Under the map: how many times the differences were enlarged."""
    words = t("map_equal") if not largest else t("map_plain") if factor == 1 else t("map_caption", factor=factor)
    return f'<p class="zs-caption">{escape(words)}</p>'


def new_recipe(made: StoredImage, t: Texts) -> str:
    """The recipe of the image that came out, folded away."""
    summary = escape(t("new_recipe"))
    return f'<details class="zs-card zs-fold"><summary>{summary}</summary>{present.recipe(made, t)}</details>'


def recorded_name(dotted: str, t: Texts) -> str:
    """What a recorded value is called; its name in the recipe where there is no better one."""
    if dotted in _NAMES:
        return t(_NAMES[dotted])
    for prefix, key in _PREFIXES.items():
        if dotted.startswith(prefix):
            return t(key, name=dotted.removeprefix(prefix))
    return present.field_name(dotted.removeprefix("request."), t) if dotted.startswith("request.") else dotted


def recorded_value(value: object) -> str:
    """A recorded value as HTML, a long one cut (a hash to 16 digits); the whole of it is the tooltip."""
    text = _as_text(value)
    if _HASH.fullmatch(text):
        return f'<code title="{text}">{text[:SHOWN_DIGITS]}…</code>'
    if len(text) <= MAX_VALUE_CHARS:
        return escape(text)
    return f'<span title="{escape(text)}">{escape(text[:MAX_VALUE_CHARS])}…</span>'


def _head(original: Original, picture: str, t: Texts) -> str:
    found = original.found
    program = t("program_a1111") if found.dialect == "a1111" else PROGRAMS.get(found.dialect, "")
    words = t("read_from", program=program) if program else t("read_nothing")
    hint = t("read_nothing_hint") if original.path is None else t("read_nothing_picture")
    quiet = [original.name] if program else [original.name, hint]
    name = "".join(f'<p class="zs-quiet">{escape(line)}</p>' for line in quiet if line)
    image = f'<img alt="{escape(t("read_picture"))}" src="gradio_api/file={quote(picture)}">' if picture else ""
    return f'<div class="zs-read-head">{image}<div><p class="zs-big">{escape(words)}</p>{name}</div></div>'


def _understood(original: Original, t: Texts) -> str:
    """Of ours the request and the main facts, the rest folded; of other programs all there is."""
    if original.recipe is None:
        rest = {name: value for name, value in (original.found.recipe or {}).items() if name != "prompt"}
        return _cells({present.field_name(name, t): value for name, value in rest.items()})
    whole = flat(original.recipe.to_dict())
    request = [name for name in whole if name.startswith("request.") and name != "request.prompt"]
    whole_first = {**whole, "created": present.local_minute(original.recipe.created)}
    first = {recorded_name(name, t): whole_first[name] for name in (*request, *_FIRST) if _said(whole[name])}
    summary = escape(t("read_all", count=len(whole)))
    rows = "".join(f"<tr><th scope=row>{escape(k)}</th><td>{recorded_value(v)}</td></tr>" for k, v in whole.items())
    table = f'<div class="zs-scroll" tabindex=0><table class="zs-table">{rows}</table></div>'
    return f"{_cells(first)}<details><summary>{summary}</summary>{table}</details>"


def _said(value: object) -> bool:
    return value not in (None, "", [], {})


def _cells(values: Mapping[str, object]) -> str:
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{recorded_value(value)}</dd></div>" for name, value in values.items()
    )
    return f"<dl>{cells}</dl>" if cells else ""


def _converted(found: Inspection, t: Texts) -> str:
    if not found.converted:
        return ""
    rows = []
    for conversion in found.converted:
        told = conversion.to_dict(t.lang)
        name = present.field_name(conversion.field, t)
        to = recorded_value(told["to"]) if told["to"] is not None else escape(t("read_not_taken"))
        rows.append([escape(name), recorded_value(told["from"]), to, escape(told["why"])])
    heads = [t("column_field"), t("column_there"), t("column_here"), t("column_why")]
    return _section(t("read_converted"), _table(heads, rows, "zs-converted"))


def _unknown(found: Inspection, t: Texts) -> str:
    if not found.unknown:
        return ""
    rows = [[escape(key), recorded_value(value)] for key, value in found.unknown.items()]
    table = _table([t("column_there"), t("column_value")], rows, "zs-unknown")
    if len(rows) <= FEW:
        return _section(t("read_unknown"), table)
    summary = escape(t("read_unknown_count", count=len(rows)))
    return f"<details><summary>{summary}</summary>{table}</details>"


def _measures(found: Verdict, t: Texts) -> str:
    if found.ssim is None or found.verdict == "identical":
        return ""
    psnr = t("measure_same") if found.psnr_db is None else t("measure_psnr", db=f"{found.psnr_db:.1f}")
    values = {
        "PSNR": psnr, "SSIM": f"{found.ssim:.4f}",
        t("measure_largest"): t("measure_of_255", value=found.max_difference),
    }  # fmt: skip
    return _cells(values)


def _differences(found: Verdict, t: Texts) -> str:
    if not found.differences:
        return ""
    mine = {f"request.{name}" for name in found.changed} | ({"model.sha256"} if "model" in found.changed else set())
    rows = []
    for difference in found.differences:
        mark = f' <small class="zs-mine">{escape(t("by_you"))}</small>' if difference.field in mine else ""
        field = f"{escape(recorded_name(difference.field, t))}{mark}<br><small>{escape(difference.field)}</small>"
        rows.append([field, recorded_value(difference.then), recorded_value(difference.now)])
    return _table([t("column_field"), t("column_then"), t("column_now")], rows, "zs-differences")


def _section(title: str, inner: str) -> str:
    return f"<h3>{escape(title)}</h3>{inner}"


def _table(heads: list[str], rows: list[list[str]], kind: str) -> str:
    """`rows` are HTML already."""
    head = "".join(f"<th scope=col>{escape(words)}</th>" for words in heads)
    body = "".join(f"<tr>{''.join(map(_cell, heads, row))}</tr>" for row in rows)
    return f'<table class="zs-table {kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(head: str, inner: str) -> str:
    """On narrow screens each cell carries the head of its column."""
    return f'<td data-head="{escape(head)}"><div>{inner}</div></td>'


def _listed(names: Iterable[str], t: Texts) -> str:
    return _joined((present.field_name(name, t) for name in names), t)


def _joined(words: Iterable[str], t: Texts) -> str:
    return MESSAGES[t.lang]["list_comma"].join(words)


def _as_text(value: object) -> str:
    if not _said(value):
        return "—"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")  # all digits: two that differ must not look the same
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
