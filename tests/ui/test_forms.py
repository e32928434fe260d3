"""Widget values and API values become what the services want, and nothing is rounded on the way."""

import json
from pathlib import Path

import pytest

from zimage_studio.errors import InvalidInputError
from zimage_studio.messages import LANGS
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import Preview
from zimage_studio.records.recipe import ModelIdentity, Numerics, Outcome, Recipe
from zimage_studio.records.request import MAX_SEED, GenerationRequest, ModelDefaults, parse_batch
from zimage_studio.services.generation import JobView
from zimage_studio.services.images import StoredImage
from zimage_studio.services.manager import ManagerState
from zimage_studio.ui import forms, present
from zimage_studio.ui.texts import Texts

HOSTILE = "<img src=x onerror=alert(1)>\u202e"
NUMERICS = Numerics(
    device="cpu", dtypes={}, attention_backend="native", memory={}, scheduler={}, sigmas=(1.0,), sequence_length=64
)


def stored(prompt: str = "a fish", seed: int = MAX_SEED) -> StoredImage:
    recipe = Recipe(
        request=GenerationRequest(prompt=prompt, seed=seed, width=128, height=64, steps=8, guidance=2.0),
        model=ModelIdentity(key="tiny", name="Tiny", sha256="ab" * 32),
        numerics=NUMERICS,
        stack={},
        outcome=Outcome(pixels_sha256="cd" * 32, latents_sha256="ef" * 32, seconds=1.5),
        created="2026-01-01T00:00:00.000+00:00",
        job="j",
    )
    return StoredImage("20260101-000000-00000000", Path("x.png"), recipe)


def test_widget_values_reach_the_request_untouched():
    values = forms.to_values("a fish", "", 128, 64, 8, 1.5, str(MAX_SEED), 2, 0.5)
    batch = parse_batch(values, ModelDefaults())
    assert (batch.first.seed, batch.first.width, batch.first.height, batch.count) == (MAX_SEED, 128, 64, 2)


def test_an_emptied_number_means_the_models_own():
    values = forms.to_values("a fish", "", None, "", None, None, "", None, None)
    batch = parse_batch(values, ModelDefaults(width=256, height=192, steps=5, guidance=1.0))
    assert (batch.first.width, batch.first.height, batch.first.steps, batch.count) == (256, 192, 5, 1)


@pytest.mark.parametrize("width", [1000, 8.5, True, "wide", float("nan"), [128], {}])
def test_nothing_is_rounded_or_guessed_on_the_way(width: object):
    with pytest.raises(InvalidInputError) as caught:
        parse_batch(forms.to_values("a fish", "", width, 128, 8, 0, "", 1, 0), ModelDefaults())
    assert caught.value.field == "width"


def test_the_settings_of_an_image_make_the_same_request_again():
    image = stored()
    values = forms.from_recipe(image.recipe)
    again = parse_batch(forms.to_values(*(values[name] for name in forms.FIELDS)), ModelDefaults())
    assert again.first == image.recipe.request


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024x1024 ( 1:1 )", (1024, 1024)), ("1280X720 ( 16:9 )", (1280, 720)), (" 64 × 128 ", (64, 128))],
)
def test_resolutions_of_the_official_space_are_read(text: str, size: tuple[int, int]):
    assert forms.parse_resolution(text) == size


@pytest.mark.parametrize("text", ["", "1024", "axb", "1x2x3", "-1x5", None, 1024, "1" * 5000 + "x1", ["1x1"]])
def test_other_resolutions_are_refused(text: object):
    with pytest.raises(InvalidInputError, match="WIDTHxHEIGHT"):
        forms.parse_resolution(text)


def test_examples_of_a_model_come_first(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "examples.json").write_text(json.dumps({"en": ["a red heart"], "zh": ["红心"]}), encoding="utf-8")
    artifact = ModelArtifact(key="m", kind="folder", path=str(tmp_path / "model"), name="M")
    assert forms.examples(artifact, "en")[0] == "a red heart"
    assert forms.examples(artifact, "zh")[0] == "红心"
    assert all(len(forms.examples(artifact, lang)) == forms.EXAMPLE_COUNT for lang in LANGS)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"en": 5}', '{"en": [5, {}]}'])
def test_a_damaged_list_of_examples_is_no_reason_to_fail(tmp_path: Path, content: str):
    (tmp_path / "examples.json").write_text(content, encoding="utf-8")
    artifact = ModelArtifact(key="m", kind="folder", path=str(tmp_path), name="M")
    assert len(forms.examples(artifact, "en")) == forms.EXAMPLE_COUNT
    assert all(forms.examples(artifact, "en"))


@pytest.mark.parametrize("lang", LANGS)
def test_what_came_from_outside_is_shown_as_text(lang: str):
    t = Texts(lang)  # type: ignore[arg-type]
    shown = [
        present.recipe(stored(HOSTILE), t),
        present.chip(ManagerState("ready", HOSTILE), HOSTILE, t),
        present.stage_failed(HOSTILE, t),
        present.error_text(HOSTILE),
        present.model_note(ModelArtifact(key="k", kind="folder", path="", name=HOSTILE, parent=HOSTILE), t),
    ]
    for html in shown:
        assert "<img" not in html
        assert "\u202e" not in html


@pytest.mark.parametrize("lang", LANGS)
def test_every_moment_of_a_job_can_be_shown(lang: str):
    t = Texts(lang)  # type: ignore[arg-type]
    preview = Preview(2, 1, bytes(6))
    views = [
        JobView(ahead=3),
        JobView(state="running", note="note.loading_vae", done=0.5, total=1),
        JobView(state="running", note="note.denoising", done=3, total=8, count=2, seconds_left=75, preview=preview),
    ]
    pages = [present.stage_working(view, 1.0, t) for view in views]
    assert "3" in pages[0]
    assert "50" in pages[1]
    assert all(part in pages[2] for part in ("3/8", "data:image/jpeg;base64,", 'aria-valuenow="38"', "15"))


def test_a_preview_is_enlarged_and_keeps_its_shape():
    uri = present.preview_uri(Preview(16, 8, bytes(16 * 8 * 3)))
    assert len(uri) < 20_000


def test_the_whole_seed_is_in_the_readable_recipe_and_in_its_json():
    html = present.recipe(stored(), Texts("en"))
    assert html.count(str(MAX_SEED)) == 2
