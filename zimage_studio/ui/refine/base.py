"""What is refined: an image of the history, or a picture that was dropped; and what the form shows of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from zimage_studio.errors import Cancelled, UserError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import Preview
from zimage_studio.records.recipe import ModelIdentity
from zimage_studio.services.images import StoredImage
from zimage_studio.services.replay import Original, read_picture
from zimage_studio.services.studio import Studio
from zimage_studio.ui import request_form, sizes
from zimage_studio.ui.texts import Texts

NOISE, PICTURE, RECORDED = "noise", "picture", "recorded"
"""What an image is started from: noise alone, the picture that is refined, or the one its recipe names."""
FIRST_STRENGTH = 0.6
"""For a picture that says nothing of its making: its composition stays, the rest is drawn anew."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Base:
    """An image to begin with.

    `ref` finds it again: the id of an image, or the pixel hash of a dropped picture. `values` are the request that
    made it, or for a dropped picture one that draws over it; `model` is the key of the model that will draw, `memory`
    the switches of the memory profile it was made under (None: nothing says so), `weights` the recorded hash of its
    model (or empty). `notes` are sentences a person should read, `words` what the picture is called.
    """

    ref: str
    sha256: str
    values: Mapping[str, object]
    model: str
    size: sizes.Size
    words: str
    image: StoredImage | None = None
    notes: tuple[str, ...] = ()
    memory: Mapping[str, object] | None = None
    weights: str = ""


class Bases:
    """Finds bases by their ref."""

    def __init__(self, studio: Studio, t: Texts) -> None:
        self._studio = studio
        self._t = t

    def path(self, base: Base) -> Path:
        """The file with its pixels."""
        return base.image.path if base.image is not None else self._studio.sources.path(base.sha256)

    def find(self, ref: str, dropped: Mapping[str, Base]) -> Base:
        """The base `ref`; `dropped` are the pictures that this page was given. Raises UserError."""
        if not _SHA256.fullmatch(ref):
            return self.of_image(self._studio.images.get(ref))
        base = dropped.get(ref)
        if not isinstance(base, Base):
            self._studio.sources.path(ref)
            raise UserError("replay_lost")  # what the file said of its making went with the last run of Studio
        return base

    def of_image(self, image: StoredImage) -> Base:
        """An image of the history."""
        recipe = image.recipe
        model, note = self._model_like(recipe.model)
        return Base(
            ref=image.id, sha256=recipe.outcome.pixels_sha256, values=recipe.request.to_dict(), model=model.key,
            size=(recipe.request.width, recipe.request.height), words=recipe.request.prompt, image=image, notes=note,
            memory=recipe.numerics.memory, weights=recipe.model.sha256,
        )  # fmt: skip

    def of_pixels(self, sha256: str | None, dropped: Mapping[str, Base]) -> Base | None:
        """What has these pixels, when it is still here."""
        if sha256 is None:
            return None
        image = next((image for image in self._studio.images.with_pixels(sha256) if image.path.exists()), None)
        return dropped.get(sha256) if image is None else self.of_image(image)

    def of_file(self, path: Path, name: str) -> Base:
        """A picture that was dropped: what it says of its making, else a request that draws over it.

        Its pixels are kept. Raises UserError when it is no picture.
        """
        sha256 = self._studio.sources.keep(path, name=name)
        if (known := self.of_pixels(sha256, {})) is not None:
            return known
        with Image.open(self._studio.sources.path(sha256)) as image:
            size = image.size
        original = _read(path, name)
        if original.recipe is not None and original.recipe.outcome.pixels_sha256 == sha256:
            model, notes = self._model_like(original.recipe.model)
            return Base(
                sha256, sha256, original.values, model.key, size, name, notes=notes,
                memory=original.recipe.numerics.memory, weights=original.recipe.model.sha256,
            )  # fmt: skip
        return self._drawn_over(sha256, original, size, name)

    def _drawn_over(self, sha256: str, original: Original, size: sizes.Size, name: str) -> Base:
        t = self._t
        model = self._named(original.model_name)
        said = {key: value for key, value in original.values.items() if key not in ("source", "strength")}
        values = {**request_form.defaults_of(model.defaults), **said, "source": sha256, "strength": FIRST_STRENGTH}
        notes = [t("base_says") if said else t("base_says_nothing")]
        if "width" not in said or "height" not in said:
            width, height = sizes.drawable(size, (model.defaults.width, model.defaults.height))
            values |= {"width": width, "height": height}
        if (values["width"], values["height"]) != size:
            notes.append(
                t("base_size", width=size[0], height=size[1], to_width=values["width"], to_height=values["height"])
            )
        return Base(sha256, sha256, values, model.key, size, name, notes=tuple(notes))

    def _model_like(self, recorded: ModelIdentity) -> tuple[ModelArtifact, tuple[str, ...]]:
        """The model with the recorded weights, else of the same key, else the default one; and what to say of it."""
        here = [model for model in self._studio.models.list() if not model.missing]
        here.sort(key=lambda model: model.key != recorded.key)
        hashes = [self._known_hash(model) for model in here]
        if recorded.sha256 in hashes:
            return here[hashes.index(recorded.sha256)], ()
        namesake = here[0] if here and here[0].key == recorded.key else None
        if namesake is not None and hashes[0] is None:
            return namesake, ()  # what it really is, the result says
        chosen = namesake or self._default()
        words = self._t("base_other_model", name=recorded.name, sha256=recorded.sha256[:8], chosen=chosen.name)
        return chosen, (words,)

    def _known_hash(self, model: ModelArtifact) -> str | None:
        """The hash of its weights where it is known already: to hash a large model takes minutes."""
        if model.kind == "hub":
            return None
        try:
            return self._studio.models.identity(model, _unless_known).sha256
        except (Cancelled, UserError):
            return None

    def _named(self, name: str) -> ModelArtifact:
        wanted = name.casefold()
        here = (model for model in self._studio.models.list() if not model.missing)
        return next((m for m in here if wanted in (m.name.casefold(), m.key.casefold())), None) or self._default()

    def _default(self) -> ModelArtifact:
        return self._studio.models.get(self._studio.settings.model)


def shown_values(values: Mapping[str, object], model: str, base_sha256: str) -> dict[str, object]:
    """A request as the form shows it: its last variation in two fields, its start as a choice."""
    chain = values.get("variations") or ()
    last = chain[-1] if isinstance(chain, list | tuple) and chain else {}
    source = values.get("source")
    start = NOISE if source is None else PICTURE if source == base_sha256 else RECORDED
    held = {name: values.get(name) for name in request_form.kinds() if name not in ("source", "strength")}
    return {
        **held,
        "variation_seed": None if not last else str(last["seed"]),
        "variation_strength": last["strength"] if last else 0,
        "variety": values.get("variety") or 0,
        "start": start,
        "strength": FIRST_STRENGTH if values.get("strength") is None else values["strength"],
        "model": model,
    }


def earlier_links(values: Mapping[str, object]) -> list[object]:
    """The variations under the last one."""
    chain = values.get("variations") or ()
    return list(chain[:-1]) if isinstance(chain, list | tuple) else []


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """The fields that two forms show differently, each with both values. Without a picture the strength is none."""
    before = {**before, "strength": None} if before.get("start") == NOISE else before
    found = request_form.changed(before, after)
    if after.get("start") == NOISE:
        found.pop("strength", None)
    if not before.get("variation_strength") and not after.get("variation_strength"):
        found.pop("variation_seed", None)
    return {name: (before.get(name), value) for name, value in found.items() if not _alike(before.get(name), value)}


def _alike(one: object, other: object) -> bool:
    """Seeds are text here and a number there; nothing is written as an empty text by browsers."""
    return str("" if one is None else one).strip() == str("" if other is None else other).strip()


def _unless_known(done: float, total: float, _note: str, /, preview: Preview | None = None) -> None:
    """Progress of hashing; what comes from the cache makes none before its end."""
    if done < total:
        raise Cancelled


def _read(path: Path, name: str) -> Original:
    """What the file says of its making; where that part of it is damaged, nothing."""
    try:
        return read_picture(path, name=name)
    except UserError:
        return Original(None)
