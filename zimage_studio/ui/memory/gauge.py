"""Live readouts as HTML: the thin bar in the header, and each memory with a line of the last minutes."""

from collections.abc import Callable, Sequence

from zimage_studio.messages import say
from zimage_studio.records.memory import GIB
from zimage_studio.records.telemetry import GpuReading, Reading, TorchUsage
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

MIB = 2**20
LINE_S = 300.0
"""How far back the line goes, in seconds."""
LINE_POINTS = 100
LINE_WIDTH, LINE_HEIGHT = 300, 40
FULL = 0.9
"""From this share on a memory is shown as nearly full."""

Part = Callable[[Reading], float | None]


def amount(count: float) -> str:
    """`412 MiB`, `3.1 GiB`, `139 GiB`."""
    if count < GIB:
        return f"{count / MIB:.0f} MiB" if count >= 10 * MIB else f"{count / MIB:.1f} MiB"
    return f"{count / GIB:.1f} GiB" if count < 100 * GIB else f"{count / GIB:.0f} GiB"


def ram_used(reading: Reading) -> int | None:
    """What all programs hold of the RAM."""
    if reading.ram_total_bytes is None or reading.ram_available_bytes is None:
        return None
    return max(0, reading.ram_total_bytes - reading.ram_available_bytes)


def ram_ours(reading: Reading) -> int | None:
    """What Studio and the processes it started hold."""
    if reading.process_bytes is None:
        return None
    return reading.process_bytes + (reading.children_bytes or 0)


def main_gpu(reading: Reading) -> GpuReading | None:
    """The GPU that torch uses, else the first one that answers."""
    held = {part.id for part in reading.torch}
    answering = [gpu for gpu in reading.gpus if not gpu.lost]
    return next((gpu for gpu in answering if gpu.id in held), answering[0] if answering else None)


# --- in the header --------------------------------------------------------------------------------------------------


def slim(reading: Reading | None, t: Texts) -> str:
    """One thin bar with the numbers over it: the GPU's memory, the RAM where there is no GPU."""
    if reading is None:
        return ""
    kind, used, ours, total = t("gauge_ram"), ram_used(reading), ram_ours(reading), reading.ram_total_bytes
    gpu = main_gpu(reading)
    if gpu is not None and gpu.total_bytes and gpu.used_bytes is not None:
        kind, used, ours, total = t("gauge_gpu"), gpu.used_bytes, gpu.ours_bytes, gpu.total_bytes
    if not total or used is None:
        return ""
    words = t("gauge_of", used=amount(used), total=amount(total))
    title = _holders(used, ours, total, t)
    return (
        f'<div class="zs-slim" title="{escape(title)}"><p><span>{escape(kind)}</span> <b>{escape(words)}</b></p>'
        f"{_bar(used, ours, total)}</div>"
    )


# --- on the tab -----------------------------------------------------------------------------------------------------


def gauge(recent: Sequence[Reading], t: Texts) -> str:
    """Every memory at the newest of `recent` (oldest first), and what is said where GPUs cannot be read."""
    if not recent:
        return '<div class="zs-gauges"></div>'
    now = recent[-1]
    torch = {part.id: part for part in now.torch}
    meters = [_gpu(gpu, torch.get(gpu.id), recent, t) for gpu in now.gpus]
    meters.append(_ram(now, recent, t))
    note = f'<p class="zs-quiet">{escape(say(now.note, t.lang))}</p>' if now.note else ""
    return f'<div class="zs-gauges">{"".join(meters)}{note}</div>'


def _gpu(gpu: GpuReading, torch: TorchUsage | None, recent: Sequence[Reading], t: Texts) -> str:
    name = t("gauge_gpu_name", index=gpu.index, name=gpu.name) if gpu.name else f"{t('gauge_gpu')} {gpu.index}"
    if gpu.lost:
        return _meter(name, "", f'<p class="zs-quiet">{escape(say("telemetry.gpu_lost", t.lang))}</p>')
    facts = _gpu_facts(gpu, t)
    if torch is not None:
        facts.append(t("gauge_torch", allocated=amount(torch.allocated_bytes), reserved=amount(torch.reserved_bytes)))
    if not gpu.total_bytes or gpu.used_bytes is None:
        return _meter(name, "", f'<p class="zs-quiet">{escape(t("gauge_silent"))}</p>{_facts(facts)}')
    total = gpu.total_bytes

    def of(pick: Callable[[GpuReading], float | None]) -> Part:
        def part(reading: Reading) -> float | None:
            value = next((pick(one) for one in reading.gpus if one.id == gpu.id and one.index == gpu.index), None)
            return None if value is None else value / total

        return part

    line = _line(
        recent,
        used=of(lambda one: one.used_bytes),
        ours=of(lambda one: one.ours_bytes),
        load=of(lambda one: None if one.utilisation_percent is None else one.utilisation_percent / 100 * total),
        t=t,
    )
    holders = _holders_html(gpu.used_bytes, gpu.ours_bytes, total, t)
    return _meter(name, amount(total), _bar(gpu.used_bytes, gpu.ours_bytes, total) + holders + _facts(facts) + line)


def _gpu_facts(gpu: GpuReading, t: Texts) -> list[str]:
    known = (
        ("gauge_load", gpu.utilisation_percent), ("gauge_heat", gpu.temperature_c), ("gauge_power", gpu.power_w),
    )  # fmt: skip
    return [t(key, value=f"{value:.0f}") for key, value in known if value is not None]


def _ram(now: Reading, recent: Sequence[Reading], t: Texts) -> str:
    used, ours, total = ram_used(now), ram_ours(now), now.ram_total_bytes
    if not total or used is None:
        words = "" if ours is None else t("gauge_process", ours=amount(ours))
        return _meter(t("gauge_ram_name"), "", f'<p class="zs-quiet">{escape(words)}</p>')

    def share(pick: Callable[[Reading], int | None]) -> Part:
        return lambda reading: None if (value := pick(reading)) is None else value / total

    line = _line(recent, used=share(ram_used), ours=share(ram_ours), load=None, t=t)
    facts = [t("gauge_children", children=amount(now.children_bytes))] if now.children_bytes else []
    return _meter(
        t("gauge_ram_name"),
        amount(total),
        _bar(used, ours, total) + _holders_html(used, ours, total, t) + _facts(facts) + line,
    )


def _meter(name: str, total: str, inner: str) -> str:
    return f'<section class="zs-meter"><h3>{escape(name)}<small>{escape(total)}</small></h3>{inner}</section>'


def _bar(used: float, ours: float | None, total: float) -> str:
    """Ours, then the others', then what is free. Decoration: the numbers stand beside it."""
    mine = min(max(ours or 0, 0), used)
    full = " zs-full" if used / total >= FULL else ""
    return (
        f'<div class="zs-holders{full}" aria-hidden="true">'
        f'<i class="zs-ours" style="width:{_percent(mine, total)}%"></i>'
        f'<i class="zs-others" style="width:{_percent(used - mine, total)}%"></i></div>'
    )


def _percent(part: float, total: float) -> str:
    return f"{max(0.0, min(100.0, 100 * part / total)):.1f}"


def _shares(used: float, ours: float | None, total: float, t: Texts) -> list[tuple[str, str, str]]:
    """(class, name, amount) of each holder."""
    free = ("zs-free", t("gauge_free"), amount(max(0, total - used)))
    if ours is None:
        return [("zs-others", t("gauge_used"), amount(used)), free]
    return [
        ("zs-ours", t("gauge_ours"), amount(ours)),
        ("zs-others", t("gauge_others"), amount(max(0, used - ours))),
        free,
    ]


def _holders(used: float, ours: float | None, total: float, t: Texts) -> str:
    return " · ".join(f"{name} {value}" for _, name, value in _shares(used, ours, total, t))


def _holders_html(used: float, ours: float | None, total: float, t: Texts) -> str:
    items = (
        f'<li class="{kind}">{escape(name)} <b>{escape(value)}</b></li>'
        for kind, name, value in _shares(used, ours, total, t)
    )
    return f'<ul class="zs-shares">{"".join(items)}</ul>'


def _facts(facts: Sequence[str]) -> str:
    return f'<p class="zs-facts">{escape(" · ".join(facts))}</p>' if facts else ""


# --- the line of the last minutes -----------------------------------------------------------------------------------


def _line(recent: Sequence[Reading], *, used: Part, ours: Part, load: Part | None, t: Texts) -> str:
    """Areas of what is used and of what is ours, and a thin line of the load, against the whole."""
    readings = thinned(recent)
    start = recent[-1].time_s - LINE_S
    shapes = [f'<polygon class="zs-others" points="{_area(run)}"/>' for run in _runs(readings, used, start)] + [
        f'<polygon class="zs-ours" points="{_area(run)}"/>' for run in _runs(readings, ours, start)
    ]
    if load is not None:
        shapes += [f'<polyline class="zs-load" points="{_points(run)}"/>' for run in _runs(readings, load, start)]
    label = t("gauge_line_load") if load is not None else t("gauge_line")
    return (
        f'<svg class="zs-line" role="img" aria-label="{escape(label)}" viewBox="0 0 {LINE_WIDTH} {LINE_HEIGHT}"'
        f' preserveAspectRatio="none">{"".join(shapes)}</svg><p class="zs-line-words">{escape(label)}</p>'
    )


def thinned(recent: Sequence[Reading]) -> list[Reading]:
    """At most about LINE_POINTS of them, the newest included."""
    step = max(1, -(-len(recent) // LINE_POINTS))
    return list(recent[::-1][::step])[::-1]


def _runs(readings: Sequence[Reading], part: Part, start: float) -> list[list[tuple[float, float]]]:
    """Points (x, y) of the drawing in runs without a gap; y grows downwards."""
    runs: list[list[tuple[float, float]]] = [[]]
    for reading in readings:
        value = part(reading)
        if value is None:
            runs.append([])
            continue
        x = (reading.time_s - start) / LINE_S * LINE_WIDTH
        runs[-1].append((max(0.0, min(x, LINE_WIDTH)), LINE_HEIGHT * (1 - max(0.0, min(1.0, value)))))
    return [run for run in runs if len(run) > 1]


def _points(run: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in run)


def _area(run: Sequence[tuple[float, float]]) -> str:
    return f"{run[0][0]:.1f},{LINE_HEIGHT} {_points(run)} {run[-1][0]:.1f},{LINE_HEIGHT}"
