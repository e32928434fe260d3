"""`models compact`: one JSON object, a sentence in both languages, refusals with status 2."""

import json
from pathlib import Path

import pytest

from zimage_studio.cli import main


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    from tests import tiny_random

    folder = tmp_path_factory.mktemp("wide") / "mine"
    tiny_random.pipeline().save_pretrained(folder)
    return folder


def test_a_copy_is_written_once_and_told_in_json(capsys, tmp_path, wide):
    arguments = ["models", "compact", str(wide), "--data", str(tmp_path / "data"), "--json"]
    answers = []
    for _ in range(2):
        assert main(arguments) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert answers[0].keys() == {"model", "path", "components", "bytes_before", "bytes_after"}
    assert Path(answers[0]["path"], "manifest.json").is_file()
    assert answers[0]["bytes_after"] * 2 == answers[0]["bytes_before"]


@pytest.mark.parametrize(("lang", "words"), [("en", "Loading in bfloat16 reads it"), ("zh", "以 bfloat16 加载时读取")])
def test_it_is_told_in_a_sentence(capsys, tmp_path, wide, lang, words):
    assert main(["models", "compact", str(wide), "--data", str(tmp_path / "data"), "--lang", lang]) == 0
    assert words in capsys.readouterr().out


def test_what_is_narrow_already_is_no_error(capsys, tmp_path):
    from tests import tiny_random

    tiny_random.pipeline().to(tiny_random.torch.bfloat16).save_pretrained(tmp_path / "narrow")
    assert main(["models", "compact", str(tmp_path / "narrow"), "--data", str(tmp_path / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] is None
    assert not (tmp_path / "data" / "compact").exists()


@pytest.mark.parametrize("key", ["../nowhere", "no/such/place.gguf"])
def test_what_is_no_model_is_refused(capsys, tmp_path, key):
    assert main(["models", "compact", key, "--data", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
