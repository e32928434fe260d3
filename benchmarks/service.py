"""Time per image through the service over the plain diffusers call on the same loaded model."""

import time
from pathlib import Path

from zimage_studio.records.progress import silent
from zimage_studio.services.studio import build_studio
from zimage_studio.settings import Settings

PROMPT = "a red circle on a blue background"


def seconds_per_image(work: Path, repeats: int, count: int = 1) -> tuple[list[float], list[float]]:
    """(ours, plain): wall seconds per image of `repeats` jobs of `count` images each, taken in turns so that noise
    hits both alike.

    Ours counts from submit to the last saved PNG with its row. Plain is `pipeline(...)` to the PIL image, `count`
    times, on the same thread that owns the pipeline, with the text padded as Studio pads it.
    """
    studio = build_studio(Settings(data=work, offline=True))
    studio.start()
    defaults = studio.models.get("tiny").defaults

    def plain_call(seed: int) -> float:
        import torch

        with studio.manager.borrow("tiny", silent) as lent:
            pipeline = lent.model.pipeline
            started = time.perf_counter()
            for image in range(count):
                pipeline(
                    PROMPT,
                    width=defaults.width,
                    height=defaults.height,
                    num_inference_steps=defaults.steps,
                    guidance_scale=defaults.guidance,
                    generator=torch.Generator().manual_seed(seed + image),
                    max_sequence_length=64,
                )
            return (time.perf_counter() - started) / count

    def our_call(seed: int) -> float:
        started = time.perf_counter()
        studio.generation.submit({"prompt": PROMPT, "seed": seed, "count": count}, model="tiny").result(120)
        return (time.perf_counter() - started) / count

    def idle() -> None:
        """What the last loan left to do is not the next one's time."""
        studio.manager.submit(lambda: None).result(120)

    try:
        for seed in (0, 1):  # warm up
            our_call(seed)
            studio.manager.submit(lambda: plain_call(0)).result(120)
        ours, plain = [], []
        for seed in range(repeats):
            idle()
            ours.append(our_call(seed))
            idle()
            plain.append(studio.manager.submit(lambda seed=seed: plain_call(seed)).result(120))
    finally:
        studio.begin_stop()
        studio.close()
    return ours, plain
