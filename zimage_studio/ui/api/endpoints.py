"""The public API: named, typed, documented. On the page at `/` only.

Gradio hands `gr.api` functions the raw JSON, so the annotations describe what is wanted and records.request
refuses what is not, with the same sentence as the page and the command line.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData

from zimage_studio.errors import Cancelled, ModelError, UserError
from zimage_studio.messages import Lang, say
from zimage_studio.records.checks import flag
from zimage_studio.records.progress import Preview
from zimage_studio.records.verdict import Verdict
from zimage_studio.services.generation import GenerationJob
from zimage_studio.services.images import StoredImage
from zimage_studio.services.replay import Original, read_pasted, read_picture
from zimage_studio.services.studio import Studio
from zimage_studio.ui import forms
from zimage_studio.ui.api.compress import compress_endpoints
from zimage_studio.ui.api.memory import memory_endpoints
from zimage_studio.ui.api.refine import refine_endpoints
from zimage_studio.ui.doors import errors_as_answers, lang_of, session_of, shown_file, uploaded
from zimage_studio.ui.texts import Texts

WATCH_S = 5.0
MAX_GALLERY = 100
OFFICIAL_RESOLUTION = "1024x1024 ( 1:1 )"


def add_api(studio: Studio) -> None:
    """Add the endpoints to the Blocks that is being built."""
    made = (*_generation(studio), *_replay(studio), *refine_endpoints(studio), *_history(studio), *_state(studio))
    for endpoint in (*made, *memory_endpoints(studio), *compress_endpoints(studio)):
        gr.api(endpoint, api_name=endpoint.__name__, api_description=endpoint.__doc__, concurrency_limit=None)


def _generation(studio: Studio) -> list[Any]:
    def generate_image(
        request: gr.Request,
        prompt: str,
        negative_prompt: str = "",
        seed: str = "",
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        count: int = 1,
        model: str = "",
        variation_seed: str = "",
        variation_strength: float | None = None,
        variety: float | None = None,
        image: FileData | None = None,
        strength: float | None = None,
        parent: str = "",
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Make images. Empty values come from the model's defaults; `model` is a key of /models, empty: the default.

        `seed` is text, 0 to 2^64-1; empty or -1 draws one. Image i has seed + i, or with a variation the same seed and
        variation_seed + i. `variation_strength` (0 to 1) turns the start noise towards that of `variation_seed` (text).
        `variety` (0 to 1) makes seeds differ more and follow the prompt less. `image` is uploaded (in Python:
        `handle_file(path)`) and drawn over at `strength` (0.01 to 1; 1 forgets it). `parent` is the id of the image
        that this one comes from, for its lineage. Returns the PNG files, which carry their recipe, and for each its
        id, seed (text), sha256 of the pixels, seconds and recipe.
        """
        values = {
            "prompt": prompt, "negative_prompt": negative_prompt, "seed": seed, "width": width, "height": height,
            "steps": steps, "guidance": guidance, "count": count, "variation_seed": variation_seed,
            "variation_strength": variation_strength, "variety": variety, "strength": strength,
        }  # fmt: skip
        with errors_as_answers(lang_of(request)):
            values["source"] = None if image is None else _kept(studio, image)
            made_from = _pixels_of(studio, parent)
        images = _run(studio, values, model, request, made_from)
        return [shown_file(image.path) for image in images], [forms.result_entry(image) for image in images]

    def generate(
        request: gr.Request,
        prompt: str,
        resolution: str = OFFICIAL_RESOLUTION,
        seed: int = 42,
        steps: int = 8,
        shift: float = 3.0,
        random_seed: bool = True,
        gallery_images: list[dict[str, Any]] | None = None,
    ) -> tuple[list[dict[str, Any]], str, int]:
        """The same call as the official Z-Image-Turbo Space, for clients written for it.

        `resolution` reads `WIDTHxHEIGHT ( RATIO )`. Returns the gallery (newest first, then those of
        `gallery_images` that this Studio made), the seed as text and the seed as a number.
        """
        with errors_as_answers(lang_of(request)):
            width, height = forms.parse_resolution(resolution)
            drawn = flag("seed", random_seed)
        values = {
            "prompt": prompt, "width": width, "height": height, "steps": steps, "shift": shift,
            "seed": None if drawn else seed,
        }  # fmt: skip
        images = _run(studio, values, "", request)
        paths = [image.path for image in images] + _earlier(studio, gallery_images)
        used = images[0].recipe.request.seed
        return [{"image": shown_file(path), "caption": None} for path in paths], str(used), used

    def stop(request: gr.Request) -> int:
        """Stop everything this client has waiting or running, within one step. Returns how many jobs that was."""
        who = session_of(request)
        return studio.generation.stop(who) + studio.memory.stop(who)

    return [generate_image, generate, stop]


def _replay(studio: Studio) -> list[Any]:
    def inspect(request: gr.Request, file: FileData | None = None, text: str = "") -> dict[str, Any]:
        """Say what a PNG, JPEG or WebP, or a pasted text, says about its making. No pixel is decoded.

        `file` is uploaded (in Python: `handle_file(path)`). `text` is a recipe, an infotext or the JSON of another
        program; with both, it is read when the file says nothing. Returns {"dialect", "recipe", "converted",
        "unknown"} and "seed" (text).
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            words = forms.text_or_refuse("text", "" if text is None else text)
            if file is None and not words.strip():
                raise UserError("nothing_to_read")
            original = read_pasted("") if file is None else _uploaded(file)
            if not original.found.dialect and words.strip():
                original = read_pasted(words)
            return forms.inspection_entry(original.found, lang)

    def replay(
        request: gr.Request,
        file: FileData | None = None,
        id: str = "",
        overrides: dict[str, Any] | None = None,
        model: str = "",
    ) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]:
        """Make an image again and say whether it is the same. Give a `file`, or the `id` of an image of /history.

        `overrides` are fields of /generate_image that replace the recorded ones. `model` is a key of /models; empty:
        the very weights of the recipe, found by their hash, or for other programs' images the default model. Returns
        the verdict ("identical", "differs", "compared" where no pixel hash is recorded, or "refused"), the new PNG
        and its entry as in /generate_image; both are null when refused.
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            original = _original(studio, file, id)
            job = _start_replay(studio, original, forms.overrides_or_refuse(overrides), model, request)
            if isinstance(job, Verdict):
                return forms.verdict_entry(job, lang), None, None
            (made,) = _finish(job, lang)
            verdict = forms.verdict_entry(studio.replay.verdict(original, made), lang)
            return verdict, shown_file(made.path), forms.result_entry(made)

    return [inspect, replay]


def _uploaded(file: object) -> Original:
    path, name = uploaded(file)
    return read_picture(path, name=name)


def _original(studio: Studio, file: object, image_id: object) -> Original:
    known = forms.text_or_refuse("image", "" if image_id is None else image_id)
    if file is not None and known:
        raise UserError("two_to_replay")
    if file is None and not known:
        raise UserError("nothing_to_replay")
    return _uploaded(file) if file is not None else read_picture(studio.images.get(known).path)


def _start_replay(
    studio: Studio, original: Original, overrides: dict[str, object], model: object, request: gr.Request
) -> GenerationJob | Verdict:
    """The job, or the refusal as a verdict when the weights are not here. Raises UserError on bad input."""
    key = forms.text_or_refuse("model", "" if model is None else model) or None
    if key is None and original.recipe is None:
        key = studio.settings.model
    progress = gr.Progress()
    lang = lang_of(request)

    def report(done: float, total: float, note: str, /, preview: Preview | None = None) -> None:
        progress((int(done), int(total) or 1), desc=say(note, lang), unit="")

    try:
        return studio.replay.start(original, report, overrides=overrides, model=key, session=session_of(request))
    except ModelError as error:
        return Verdict(verdict="refused", reason=error.key, details=error.values)


def _history(studio: Studio) -> list[Any]:
    def history(request: gr.Request, search: str = "", page: int = 1, rows: int = 24) -> dict[str, Any]:
        """Saved images, newest first: {"total": n, "images": [...]}. `search` is matched literally in the prompt."""
        with errors_as_answers(lang_of(request)):
            images, total = studio.images.page(search=search, page=page, rows=rows)
        return {"total": total, "images": [forms.history_entry(image) for image in images]}

    def image(request: gr.Request, id: str) -> dict[str, Any]:
        """The original PNG of one image, by its id."""
        return shown_file(_get(studio, id, request).path)

    def delete_image(request: gr.Request, id: str) -> bool:
        """Delete one image for good. Returns true."""
        found = _get(studio, id, request)
        with errors_as_answers(lang_of(request)):
            studio.images.delete(found.id)
        return True

    return [history, image, delete_image]


def _state(studio: Studio) -> list[Any]:
    def models() -> list[dict[str, Any]]:
        """The models that can be asked for, with their defaults."""
        # Without their paths: Gradio's clients take any object with a "path" for a file and try to download it.
        listed = [model.public() for model in studio.models.list()]
        return [{name: value for name, value in model.items() if name != "path"} for model in listed]

    def status(request: gr.Request) -> dict[str, Any]:
        """What the device does now: phase, model, what is being loaded and how far (0 to 1), and why it failed."""
        state, lang = studio.manager.state, lang_of(request)
        return {
            "phase": state.phase,
            "model": state.model,
            "note": say(state.note, lang) if state.note else "",
            "fraction": state.fraction,
            "why": state.why.text(lang) if state.why is not None else "",
        }

    return [models, status]


def _run(
    studio: Studio, values: Mapping[str, object], model: object, request: gr.Request, parent: str | None = None
) -> tuple[StoredImage, ...]:
    """Submit, forward the progress, wait for the end. Raises gr.Error with the sentence."""
    lang = lang_of(request)
    with errors_as_answers(lang):
        key = forms.text_or_refuse("model", "" if model is None else model) or studio.settings.model
        job = studio.generation.submit(values, model=key, session=session_of(request), parent=parent)
        return _finish(job, lang)


def _kept(studio: Studio, file: object) -> str:
    """The pixel hash of an uploaded picture, which is kept. Raises UserError."""
    path, name = uploaded(file)
    return studio.sources.keep(path, name=name)


def _pixels_of(studio: Studio, image_id: object) -> str | None:
    known = forms.text_or_refuse("image", "" if image_id is None else image_id)
    return studio.images.get(known).recipe.outcome.pixels_sha256 if known else None


def _finish(job: GenerationJob, lang: Lang) -> tuple[StoredImage, ...]:
    """Forward the progress, wait for the end. Raises UserError, or gr.Error where the fault is ours."""
    _forward(job, lang)
    try:
        return job.result()
    except Cancelled:
        raise UserError("job_stopped") from None
    except RuntimeError as error:
        raise gr.Error(Texts(lang)("stage_bug"), print_exception=False) from error


def _forward(job: GenerationJob, lang: Lang) -> None:
    """Made here, not a parameter: gr.api would list a `gr.Progress` parameter as an input."""
    progress = gr.Progress()
    view = job.view
    while not view.finished:
        progress((int(view.done), int(view.total) or 1), desc=say(view.note, lang, ahead=view.ahead), unit="")
        view = job.wait_change(view.version, WATCH_S)


def _get(studio: Studio, image_id: object, request: gr.Request) -> StoredImage:
    with errors_as_answers(lang_of(request)):
        return studio.images.get(forms.text_or_refuse("image", image_id))


def _earlier(studio: Studio, gallery: object) -> list[Path]:
    """Our own images among those a client sends back, recognised by the id in the file name.

    A path that a client gives is never opened nor returned: Gradio would publish any file it names.
    """
    if not isinstance(gallery, list):
        return []
    paths = []
    for entry in gallery[:MAX_GALLERY]:
        source = entry.get("image", entry) if isinstance(entry, dict) else entry
        name = source.get("orig_name") or source.get("path") if isinstance(source, dict) else source
        if isinstance(name, str):
            try:
                paths.append(studio.images.get(Path(name.replace("\\", "/")).stem).path)
            except UserError:
                continue
    return paths
