"""Write `docs/tiny_model.md` and its pictures from the logs and figures of a run; no figure is typed by hand."""

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from scripts.train_tiny.evaluate import load_pipeline, sheet
from zimage_studio.core.drawn.captions import EN_POSITIONS, ZH_COLOURS, ZH_OBJECTS, ZH_POSITIONS
from zimage_studio.core.drawn.drawings import BACKGROUNDS, COLOURS, OBJECTS, render
from zimage_studio.core.drawn.questions import single_questions
from zimage_studio.core.evaluation.judge import as_tensor

PLOT_PX = (720, 300)
MARGIN_PX = (52, 14, 14, 34)  # left, top, right, bottom
LINE = (38, 82, 190)
TEMPLATE, LIMITS = Path(__file__).with_name("card.md"), Path(__file__).with_name("card_limits.md")


def loss_curve(log: Sequence[Mapping[str, float]], path: Path) -> None:
    """The flow-matching loss over steps, both axes logarithmic, as PNG."""
    image = Image.new("RGB", PLOT_PX, "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    left, top, right, bottom = MARGIN_PX
    width, height = PLOT_PX[0] - left - right, PLOT_PX[1] - top - bottom
    steps, losses = [entry["step"] for entry in log], [entry["loss"] for entry in log]
    low, high = math.log(min(losses) * 0.93), math.log(max(losses) * 1.05)
    first, last = math.log(steps[0]), math.log(steps[-1])

    def place(step: float, loss: float) -> tuple[float, float]:
        x = left + width * (math.log(step) - first) / max(last - first, 1e-9)
        return x, top + height * (high - math.log(loss)) / (high - low)

    for mark in (0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0):
        if low <= math.log(mark) <= high:
            y = place(steps[0], mark)[1]
            canvas.line([(left, y), (left + width, y)], fill=(225, 225, 230))
            canvas.text((left - 6, y), f"{mark:g}", fill="black", font=font, anchor="rm")
    for mark in (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000):
        if steps[0] <= mark <= steps[-1]:
            x = place(mark, losses[0])[0]
            canvas.line([(x, top), (x, top + height)], fill=(225, 225, 230))
            canvas.text((x, top + height + 6), f"{mark}", fill="black", font=font, anchor="ma")
    canvas.line([place(a, b) for a, b in zip(steps, losses, strict=True)], fill=LINE, width=2)
    canvas.text((left + width, top + 4), "flow-matching loss by step", fill="black", font=font, anchor="ra")
    image.save(path, optimize=True)


def reconstructions(tiny: Path, path: Path, *, count: int = 12) -> float:
    """Drawings above what the VAE makes of them; returns the mean PSNR in dB over 200 held-out drawings."""
    vae = load_pipeline(tiny / "model").vae
    drawn = [Image.fromarray(render(question.scene)) for question in single_questions(200)]
    errors, rebuilt = [], []
    for start in range(0, len(drawn), 25):
        x = as_tensor(drawn[start : start + 25], 128)
        with torch.no_grad():
            y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        errors += (y - x).square().mean((1, 2, 3)).tolist()
        rebuilt += [Image.fromarray(p.numpy()) for p in ((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1)]
    sheet(drawn[:count] + rebuilt[:count], path, columns=count)
    return float(10 * np.log10(4 / np.mean(errors)))


def percent(value: float) -> str:
    """0.9542 as 95.4 %."""
    return f"{100 * value:.1f} %"


COLUMNS = ("object", "object_colour", "background_colour", "essentials", "position", "pattern", "all")


def judged_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per setting, in percent."""
    lines = ["| | captions | object | its colour | background | these three | position | pattern | all five | CLIP |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, row in rows.items():
        cells = " | ".join(percent(row[column]) for column in COLUMNS)
        clip = f"{row['clip']['matched']:.3f}" if "clip" in row else ""
        lines.append(f"| {name} | {row.get('count', '')} | {cells} | {clip} |")
    return "\n".join(lines)


def vocabulary() -> str:
    """The words of the grammar, English and Chinese, as a table."""
    lines = ["| | English | 中文 |", "|---|---|---|"]
    lines.append(f"| objects | {', '.join(OBJECTS)} | {'、'.join(ZH_OBJECTS[name] for name in OBJECTS)} |")
    lines.append(f"| object colours | {', '.join(COLOURS)} | {'、'.join(ZH_COLOURS[name] for name in COLOURS)} |")
    lines.append(f"| background colours | {', '.join(BACKGROUNDS)} | {'、'.join(ZH_COLOURS[n] for n in BACKGROUNDS)} |")
    english = ", ".join(word for words in EN_POSITIONS.values() for word in words)
    lines.append(f"| positions | {english} | {'、'.join(ZH_POSITIONS.values())} |")
    lines.append("| sizes | small, little, big, large | 小、大 |")
    lines.append(
        "| backgrounds | (plain) red background; … with horizontal stripes; … with vertical stripes; striped …; "
        "… gradient background | …背景、…纯色背景、…横条纹背景、…竖条纹背景、…条纹背景、…渐变背景 |"
    )
    return "\n".join(lines)


def clip_table(row: Mapping[str, float]) -> str:
    """Scores of the CLIP on held-out drawings."""
    lines = ["| captions | mean cosine | lower than with the right caption |", "|---|---|---|"]
    lines += [f"| right | {row['matched']:.3f} | |", f"| of other pictures | {row['shuffled']:.3f} | |"]
    for word in ("object", "object_colour", "background_colour", "pattern", "position"):
        lower = percent(row[f"lower_with_wrong_{word}"])
        lines.append(f"| {word.replace('_', ' ')} wrong | {row[f'wrong_{word}']:.3f} | {lower} |")
    return "\n".join(lines)


def settings_rows(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The settings beside the default, in words."""
    names = {
        "guidance_0": "guidance 0",
        "guidance_1": "guidance 1",
        "guidance_3": "guidance 3",
        "guidance_4": "guidance 4",
        "steps_2": "2 steps",
        "steps_4": "4 steps",
        "steps_8": "8 steps, the same captions",
        "steps_20": "20 steps",
    }
    return {words: report[key] for key, words in names.items() if key in report}


def total_seconds(log: Sequence[Mapping[str, float]]) -> float:
    """Over all goes of a stage: each go counts from nothing again."""
    seconds = [row["seconds"] for row in log]
    return sum(now for now, after in itertools.pairwise([*seconds, 0.0]) if after < now)


def fill(template: str, out: Path, report: Mapping[str, Any], psnr_db: float, total_bytes: int) -> str:
    """The card: `{{name}}` in the template replaced by what the run gave."""
    flow = json.loads((out / "flow_log.json").read_text())
    vae = json.loads((out / "vae_log.json").read_text())["log"]
    judge, clip = (json.loads((out / f"{name}_log.json").read_text()) for name in ("judge", "clip"))
    default, pairs = report["default"], report["two_objects"]
    values = {
        "vocabulary": vocabulary(),
        "megabytes": f"{total_bytes / 1e6:.1f}",
        "psnr": f"{psnr_db:.1f}",
        "vae_steps": f"{vae[-1]['step']}",
        "vae_seconds": f"{total_seconds(vae):.0f}",
        "flow_steps": f"{flow[-1]['step']}",
        "flow_images": f"{flow[-1]['images']:,}",
        "flow_seconds": f"{total_seconds(flow):.0f}",
        "first_loss": f"{flow[0]['loss']:.2f}",
        "last_loss": f"{flow[-1]['loss']:.3f}",
        "judge_seconds": f"{judge['seconds']}",
        "clip_steps": f"{clip['steps']}",
        "clip_seconds": f"{clip['seconds']}",
        "judge_fresh": percent(judge["fresh"]["all"]),
        "judge_vae": percent(judge["through_vae"]["all"]),
        "judge_pictures": f"{judge['pictures']}",
        "clip_pictures": f"{clip['pictures']}",
        "clip_recall": percent(clip["caption_found_for_picture"]),
        "count": f"{default['count']}",
        "seconds_per_image": f"{default['seconds_per_image']:.2f}",
        "judged": judged_table({"all": default, "English": default["english"], "中文": default["chinese"]}),
        "by_pattern": ", ".join(f"{name} {percent(value)}" for name, value in default["by_pattern"].items()),
        "settings": judged_table(settings_rows(report)),
        "pairs_count": f"{pairs['count']}",
        "pairs_clip": f"{pairs['clip']['matched']:.3f}",
        "pairs_recall": percent(pairs["clip"]["recall_at_1_of_100"]),
        "pairs_drawn_clip": f"{pairs['clip_of_drawings']['matched']:.3f}",
        "pairs_drawn_recall": percent(pairs["clip_of_drawings"]["recall_at_1_of_100"]),
        "clip_table": clip_table(clip),
        "limits": LIMITS.read_text("utf-8").strip(),
    }
    for name, value in values.items():
        template = template.replace("{{" + name + "}}", value)
    if "{{" in template:
        raise ValueError(f"The card asks for something unknown: {template[template.index('{{') :][:40]!r}")
    return template


def make_card(out: Path, tiny: Path, docs: Path) -> None:
    """Write the card and its pictures below `docs`."""
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    report = json.loads((out / "evaluation.json").read_text("utf-8"))
    loss_curve(json.loads((out / "flow_log.json").read_text()), images / "tiny_loss.png")
    psnr_db = reconstructions(tiny, images / "tiny_vae.webp")
    for name in ("samples", "pairs"):
        Image.open(out / f"{name}.png").convert("RGB").save(images / f"tiny_{name}.webp", quality=90)
    total_bytes = sum(path.stat().st_size for path in tiny.rglob("*") if path.is_file())
    card = fill(TEMPLATE.read_text("utf-8"), out, report, psnr_db, total_bytes)
    (docs / "tiny_model.md").write_text(card, "utf-8")


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="work folder of the run")
    parser.add_argument("--tiny", type=Path, required=True, help="folder with model, judge and clip")
    parser.add_argument("--docs", type=Path, required=True)
    options = parser.parse_args()
    make_card(options.out, options.tiny, options.docs)


if __name__ == "__main__":
    main()
