"""How long a picture takes: the models by turns in one run, so that what slows the machine slows all of them."""

import time
from collections.abc import Callable, Mapping

from zimage_studio.records.report import Column

Draw = Callable[[int], object]
Tick = Callable[[], object]


def interleaved(draws: Mapping[Column, Draw], repeats: int, tick: Tick) -> dict[Column, list[float]]:
    """Seconds of `repeats` pictures of each model, after one for warming up that is not counted.

    Each round draws the same picture (its number is handed to `draws`) with every model, and begins with another model
    than the round before. `tick` is called after each picture.
    """
    seconds: dict[Column, list[float]] = {column: [] for column in draws}
    for draw in draws.values():
        draw(0)
        tick()
    order = list(draws)
    for number in range(repeats):
        for column in order[number % len(order) :] + order[: number % len(order)]:
            started = time.perf_counter()
            draws[column](number)
            seconds[column].append(time.perf_counter() - started)
            tick()
    return seconds
