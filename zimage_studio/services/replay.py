"""Replay: make an image again from its recipe, and say whether it is the same."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zimage_studio.core.comparison import difference_map, distance
from zimage_studio.core.metadata.inspect import Inspection, inspect_file, inspect_text
from zimage_studio.core.metadata.png import OWN_KEY, read_own_recipe, read_texts
from zimage_studio.errors import ModelError, UserError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.checks import whole
from zimage_studio.records.memory import parse_profile, placed_as
from zimage_studio.records.progress import Progress
from zimage_studio.records.recipe import Recipe
from zimage_studio.records.verdict import Difference, Verdict
from zimage_studio.services.generation import GenerationJob, GenerationService
from zimage_studio.services.images import StoredImage
from zimage_studio.services.models import ModelService

log = logging.getLogger(__name__)

UNTOLD = frozenset({"outcome", "created", "job", "index", "parent"})
"""Fields of a recipe that say what came out, not what was asked."""
FOR_PEOPLE = frozenset({"model.key", "model.name", "model.parent"})
"""The hash decides which weights they were."""
TRIED = frozenset({"numerics.memory.out_of_memory", "numerics.memory.ladder.not_finite"})
"""What was tried before the picture was made: a replay begins where that ended."""
_FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True, slots=True)
class Original:
    """What is replayed: its recipe when it is one of ours, what else it says, and its picture when it has one."""

    recipe: Recipe | None
    path: Path | None = None
    found: Inspection = field(default_factory=Inspection)
    name: str = ""

    @property
    def values(self) -> dict[str, object]:
        """The fields of a request that it names."""
        if self.recipe is not None:
            return self.recipe.request.to_dict()
        return {name: value for name, value in (self.found.recipe or {}).items() if name != "model"}

    @property
    def model_name(self) -> str:
        """The model that it names, for a person to read; empty when it names none."""
        if self.recipe is not None:
            return self.recipe.model.name
        return str((self.found.recipe or {}).get("model", ""))


@dataclass(frozen=True, slots=True)
class Pictures:
    """Two pictures of one size, each (H, W, 3) uint8, and where they differ, amplified `factor` times."""

    before_HWC: NDArray[np.uint8]
    after_HWC: NDArray[np.uint8]
    map_HWC: NDArray[np.uint8]
    factor: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and the two pictures when there are two of one size."""

    verdict: Verdict
    pictures: Pictures | None = None


def read_original(path: Path, *, name: str | None = None) -> Original:
    """The recipe in the PNG at `path`. Raises UserError when it has none that this version reads."""
    recipe = read_own_recipe(path)
    if recipe is None:
        read_texts(path, name=name)  # a file that cannot be read at all says why
        raise UserError("no_recipe", value=name or path.name)
    return Original(recipe, path)


def read_picture(path: Path, *, name: str | None = None) -> Original:
    """Everything that the PNG, JPEG or WebP at `path` says, by any program; no pixel is decoded.

    Raises UserError when it is none of the three, is damaged or too large.
    """
    found = inspect_file(path, name=name)
    return Original(_own(found), path, found, name or path.name)


def read_pasted(text: str) -> Original:
    """The same of a text: our recipe, an infotext, or the JSON of another program. Raises UserError (too long)."""
    found = inspect_text(text)
    return Original(_own(found), None, found)


class ReplayService:
    """Looks for the model of a recipe by its hash, runs the request again, compares."""

    def __init__(self, generation: GenerationService, models: ModelService) -> None:
        self._generation = generation
        self._models = models

    def start(
        self,
        original: Original,
        progress: Progress,
        *,
        overrides: Mapping[str, object] | None = None,
        model: str | None = None,
        session: str,
    ) -> GenerationJob:
        """Queue the request of `original`, with `overrides` on top.

        Our own recipe runs on the very weights it was made with, unless `model` (a key) says otherwise; anything
        else needs `model`. Raises ModelError naming the wanted hash and the nearest model (`values["nearest"]`)
        when those weights are not here, and what GenerationService.submit raises. `progress` is for hashing models
        that were never hashed before; Cancelled may be raised from it.
        """
        recipe = original.recipe
        whole("count", (overrides or {}).get("count", 1), 1, 1)
        if model is None:
            if recipe is None:
                raise ValueError("without a recipe of our own, the model must be chosen")
            model = self.model_of(recipe, progress).key
        values = {**original.values, **(overrides or {})}
        if recipe is None:
            return self._generation.submit(values, model=model, session=session)
        memory = recipe.numerics.memory
        parent = recipe.outcome.pixels_sha256
        profile = placed_as(parse_profile(memory), self._generation.usual_profile)
        return self._generation.submit(
            values, model=model, session=session, parent=parent, profile=profile, rung=_rung(memory)
        )

    def verdict(self, original: Original, made: StoredImage) -> Verdict:
        """Compare what came out with what was recorded, and with the picture itself when there is one."""
        return self.judge(original, made).verdict

    def judge(self, original: Original, made: StoredImage) -> Judgement:
        """The verdict, with the two pictures to look at."""
        if original.recipe is None:
            return _comparison(original, made)
        then, now = original.recipe, made.recipe
        before = _pixels(original.path, then.request.width, then.request.height)
        edited = original.path is not None and original.path.exists() and _hash(before) != then.outcome.pixels_sha256
        pictures = _pictures(before, made)
        changed = changed_fields(then, now)
        if then.outcome.pixels_sha256 == now.outcome.pixels_sha256:
            verdict = _same(changed, edited=edited)
        else:
            verdict = _different(recorded_differences(then, now), changed, edited=edited)
        return Judgement(_measured(replace(verdict, path=str(made.path)), pictures), pictures)

    def model_of(self, recipe: Recipe, progress: Progress) -> ModelArtifact:
        """The model with the very weights of `recipe`. Raises ModelError, see `start`."""
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
            related = hashed.sha256 == recipe.model.parent or hashed.parent == wanted
            if related or (nearest is None and artifact.key == recipe.model.key):
                nearest = hashed
        if nearest is None:
            raise ModelError("model_hash_missing", value=recipe.model.name, sha256=wanted[:16])
        raise ModelError("model_hash_other", value=recipe.model.name, sha256=wanted[:16], nearest=nearest.key)


def changed_fields(then: Recipe, now: Recipe) -> tuple[str, ...]:
    """What a person set to something else: a replay itself hands on the request and the weights as they were."""
    before, after = then.request.to_dict(), now.request.to_dict()
    names = [name for name in after if before.get(name) != after[name]]
    return (*names, "model") if then.model.sha256 != now.model.sha256 else tuple(names)


def recorded_differences(then: Recipe, now: Recipe) -> tuple[Difference, ...]:
    """Every recorded field that may change pixels and is not what it was, by dotted name."""
    before, after = flat(then.to_dict()), flat(now.to_dict())
    return tuple(
        Difference(name, before.get(name), after.get(name))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
        and name.partition(".")[0] not in UNTOLD
        and name not in FOR_PEOPLE | TRIED
    )


def flat(data: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested values by dotted names."""
    found: dict[str, object] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def _rung(memory: Mapping[str, object]) -> str:
    """The rung of the ladder of precisions that a recipe names, or an empty text."""
    ladder = memory.get("ladder")
    return str(ladder.get("rung", "")) if isinstance(ladder, Mapping) else ""


def _own(found: Inspection) -> Recipe | None:
    return Recipe.from_json(json.dumps(found.recipe)) if found.dialect == OWN_KEY else None


def _same(changed: tuple[str, ...], *, edited: bool) -> Verdict:
    if edited:
        return Verdict(verdict="differs", reason="replay.edited", changed=changed, edited=True)
    if changed:
        return Verdict(
            verdict="identical", reason="replay.identical_changed", details={"fields": changed}, changed=changed,
            ssim=1.0, max_difference=0,
        )  # fmt: skip
    return Verdict(verdict="identical", reason="replay.identical", ssim=1.0, max_difference=0)


def _different(differences: tuple[Difference, ...], changed: tuple[str, ...], *, edited: bool) -> Verdict:
    reason = "replay.changed" if changed else "replay.differs" if differences else "replay.unexplained"
    details = {"fields": changed} if changed else {}
    return Verdict(
        verdict="differs", reason=reason, details=details, differences=differences, changed=changed, edited=edited
    )


def _comparison(original: Original, made: StoredImage) -> Judgement:
    """Of what says nothing about the pixels that came out."""
    request = made.recipe.request
    pictures = _pictures(_pixels(original.path, request.width, request.height), made)
    reason = "replay.no_picture" if original.path is None else "replay.other_size" if pictures is None else ""
    verdict = Verdict(verdict="compared", reason=reason or "replay.compared", path=str(made.path))
    return Judgement(_measured(verdict, pictures), pictures)


def _measured(verdict: Verdict, pictures: Pictures | None) -> Verdict:
    """With the distance of the pictures; identical ones have been told to be so already."""
    if pictures is None or verdict.verdict == "identical":
        return verdict
    apart = distance(pictures.before_HWC, pictures.after_HWC)
    return replace(verdict, psnr_db=apart.psnr_db, ssim=apart.ssim, max_difference=apart.max_difference)


def _pictures(before_HWC: NDArray[np.uint8] | None, made: StoredImage) -> Pictures | None:
    request = made.recipe.request
    after_HWC = _pixels(made.path, request.width, request.height)
    if before_HWC is None or after_HWC is None or before_HWC.shape != after_HWC.shape:
        return None
    return Pictures(before_HWC, after_HWC, *difference_map(before_HWC, after_HWC))


def _hash(pixels_HWC: NDArray[np.uint8] | None) -> str:
    return "" if pixels_HWC is None else sha256(pixels_HWC.tobytes()).hexdigest()


def _pixels(path: Path | None, width: int, height: int) -> NDArray[np.uint8] | None:
    """(H, W, 3), or None when there is no such file, or none of this size: a file may claim any size."""
    if path is None or not path.exists():
        return None
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.size != (width, height):
                return None
            return np.ascontiguousarray(np.asarray(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        log.info("the pixels of %s cannot be read: %s", path.name, error)
        return None
