"""The states of a model's own pictures, in one call."""

from typing import Any

from diffusers import ZImagePipeline

from zimage_studio.core.pruning.calibration import Batch, states_of, ways


def calibration_set(pipeline: ZImagePipeline, *arguments: Any, **options: Any) -> Batch:
    """`states_of` the `ways` of these arguments."""
    return states_of(pipeline.transformer, ways(pipeline, *arguments, **options))
