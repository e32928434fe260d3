"""Put the card beside the model: JSON, HTML and Markdown in both languages, pictures, contact sheet; all or nothing."""

import secrets
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zimage_studio.core.evaluation.card_html import html
from zimage_studio.core.evaluation.card_markdown import markdown
from zimage_studio.core.evaluation.pictures import PictureStore
from zimage_studio.core.sheet import draw_sheet
from zimage_studio.messages import LANGS, Lang, say
from zimage_studio.records.report import Column, ReportCard

CARD, SHEET = "card.json", "sheet.png"
SHEET_PAIRS = 24
SHOWN: tuple[Column, ...] = ("parent", "model", "quantised")


def file_name(kind: str, lang: Lang) -> str:
    """`card.html`, `card.zh.html`."""
    return f"card.{kind}" if lang == "en" else f"card.{lang}.{kind}"


def publish(card: ReportCard, store: PictureStore, out: Path) -> None:
    """Write the folder `out`, replacing an older one only when the new one is whole."""
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(card, store, beside)
        if out.exists():
            out.replace(old)
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write(card: ReportCard, store: PictureStore, folder: Path) -> None:
    for index, pair in enumerate(card.pairs):
        for column in SHOWN:
            if column in pair.files:
                target = folder / pair.files[column]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(store.path(column, index), target)
    Image.fromarray(_sheet(card, folder)).save(folder / SHEET)
    (folder / CARD).write_text(card.to_json(), "utf-8")
    for lang in LANGS:
        (folder / file_name("md", lang)).write_text(markdown(card, lang, SHEET), "utf-8")
        (folder / file_name("html", lang)).write_text(html(card, lang, folder), "utf-8")


def _sheet(card: ReportCard, folder: Path) -> NDArray[np.uint8]:
    shown = card.pairs[:SHEET_PAIRS]
    columns = [column for column in SHOWN if column in shown[0].files]
    cells = {
        (x, y): Image.open(folder / pair.files[column]).convert("RGB")
        for y, pair in enumerate(shown)
        for x, column in enumerate(columns)
    }
    return draw_sheet(cells, [say(f"report.column.{column}", "en") for column in columns], [str(p.seed) for p in shown])
