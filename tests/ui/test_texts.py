"""Both languages say the same things, and nothing is said that nobody shows."""

import re
import string
from pathlib import Path

import pytest

from zimage_studio.messages import CATALOGUES as MESSAGES
from zimage_studio.ui.texts import CATALOGUES

UI = Path(__file__).parents[2] / "zimage_studio" / "ui"
MADE_OF_PARTS = re.compile(
    r"chip_|model_family_|axis_note_|grid_state_|hint_|truth_|group_|stack_|part_|compress_step_|job_kind_|job_state_|jobs_"
    r"|criterion_|plan_(choose|target|amount|allocation|part|block|column)_|runtime_|verdict_|recover_"
)


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_have_the_same_keys():
    assert CATALOGUES["en"].keys() == CATALOGUES["zh"].keys()


@pytest.mark.parametrize("key", sorted(MESSAGES["en"]))
def test_a_message_takes_the_same_values_in_both_languages(key: str):
    assert placeholders(MESSAGES["en"][key]) == placeholders(MESSAGES["zh"][key])


def test_the_texts_take_the_same_values_but_for_the_units_of_large_numbers():
    differing = {k for k, text in CATALOGUES["en"].items() if placeholders(text) != placeholders(CATALOGUES["zh"][k])}
    assert differing == {"model_parameters", "model_parameters_billions"}


def test_every_text_is_used():
    source = "".join(path.read_text(encoding="utf-8") for path in UI.rglob("*.py") if path.parent.name != "texts")
    unused = [key for key in CATALOGUES["en"] if f'"{key}"' not in source and not MADE_OF_PARTS.match(key)]
    assert unused == []


def test_chinese_texts_are_chinese():
    names = {
        "app_name", "other_language", "model_bytes", "model_bytes_gb", "stage_percent", "paste_placeholder",
        "compress_step", "plan_listed", "runtime_comfyui", "runtime_comfyui_gguf", "runtime_stable_diffusion_cpp",
    }  # fmt: skip
    latin = [key for key, text in CATALOGUES["zh"].items() if key not in names and not re.search(r"[一-鿿]", text)]
    assert latin == []
