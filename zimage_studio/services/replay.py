"""Replay: make an image again from its recipe, and say whether it is the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zimage_studio.core.comparison import distance
from zimage_studio.core.metadata.png import read_own_recipe, read_texts
from zimage_studio.errors import ModelError, UserError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import Progress
from zimage_studio.records.recipe import Recipe
from zimage_studio.records.verdict import Difference, Verdict
from zimage_studio.services.generation import GenerationJob, GenerationService
from zimage_studio.services.images import StoredImage
from zimage_studio.services.models import ModelService

UNTOLD = frozenset({"outcome", "created", "job", "index", "parent"})
"""Fields of a recipe that say what came out, not what was asked."""


@dataclass(frozen=True, slots=True)
class Original:
    """What is replayed: the recipe, and the pixels when there is a picture to compare with."""

    recipe: Recipe
    path: Path | None = None


def read_original(path: Path, *, name: str | None = None) -> Original:
    """The recipe in the PNG at `path`. Raises UserError when it has none that this version reads."""
    recipe = read_own_recipe(path)
    if recipe is None:
        read_texts(path, name=name)  # a file that cannot be read at all says why
        raise UserError("no_recipe", value=name or path.name)
    return Original(recipe, path)


class ReplayService:
    """Looks for the model of a recipe by its hash, runs the request again, compares."""

    def __init__(self, generation: GenerationService, models: ModelService) -> None:
        self._generation = generation
        self._models = models

    def start(
        self, original: Original, progress: Progress, *, overrides: Mapping[str, object] | None = None, session: str
    ) -> GenerationJob:
        """Queue the request of `original`, with `overrides` on top, on the very weights it was made with.

        Raises ModelError naming the wanted hash and the nearest model when those weights are not here, and what
        GenerationService.submit raises. `progress` is for hashing models that were never hashed before.
        """
        recipe = original.recipe
        artifact = self._model_of(recipe, progress)
        values = {**recipe.request.to_dict(), **(overrides or {})}
        return self._generation.submit(values, model=artifact.key, session=session, parent=recipe.outcome.pixels_sha256)

    def verdict(self, original: Original, made: StoredImage) -> Verdict:
        """Compare what came out with what was recorded, and with the picture itself when there is one."""
        then, now = original.recipe, made.recipe
        same = then.outcome.pixels_sha256 == now.outcome.pixels_sha256
        before = None if original.path is None else _pixels(original.path, then)
        edited = before is not None and sha256(before.tobytes()).hexdigest() != then.outcome.pixels_sha256
        if same and not edited:
            return Verdict(
                verdict="identical", reason="replay.identical", ssim=1.0, max_difference=0, path=str(made.path)
            )
        differences = recorded_differences(then, now)
        reason = "replay.edited" if same else "replay.differs" if differences else "replay.unexplained"
        after = _pixels(made.path, now)
        if before is None or after is None or before.shape != after.shape:
            return Verdict(verdict="differs", reason=reason, differences=differences, path=str(made.path))
        apart = distance(before, after)
        return Verdict(
            verdict="differs",
            reason=reason,
            differences=differences,
            psnr_db=apart.psnr_db,
            ssim=apart.ssim,
            max_difference=apart.max_difference,
            path=str(made.path),
        )

    def _model_of(self, recipe: Recipe, progress: Progress) -> ModelArtifact:
        wanted = recipe.model.sha256
        here = [artifact for artifact in self._models.list() if not artifact.missing and artifact.kind != "hub"]
        here.sort(key=lambda artifact: artifact.key != recipe.model.key)
        nearest: ModelArtifact | None = None
        for artifact in here:
            try:
                hashed = self._models.identity(artifact, progress)
            except UserError:
                continue  # a damaged model is not the one
            if hashed.sha256 == wanted:
                return hashed
            if artifact.key == recipe.model.key or hashed.sha256 == recipe.model.parent:
                nearest = hashed
        if nearest is None:
            raise ModelError("model_hash_missing", value=recipe.model.name, sha256=wanted[:16])
        raise ModelError("model_hash_other", value=recipe.model.name, sha256=wanted[:16], nearest=nearest.key)


def recorded_differences(then: Recipe, now: Recipe) -> tuple[Difference, ...]:
    """Every recorded field that may change pixels and is not what it was, by dotted name."""
    before, after = _flat(then.to_dict()), _flat(now.to_dict())
    return tuple(
        Difference(name, before.get(name), after.get(name))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name) and name.partition(".")[0] not in UNTOLD and name != "model.name"
    )


def _flat(data: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _pixels(path: Path, recipe: Recipe) -> NDArray[np.uint8] | None:
    """(H, W, 3), or None when the file is not of the size its recipe says: a file may claim any size."""
    with Image.open(path) as image:
        if image.size != (recipe.request.width, recipe.request.height):
            return None
        return np.ascontiguousarray(np.asarray(image.convert("RGB")))
