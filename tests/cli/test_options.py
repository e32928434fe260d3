"""Shared options of a group stand before or after its sub-command, and the one after goes first."""

import itertools
import json

import pytest

from zimage_studio.cli import main


@pytest.mark.parametrize("group", ["models", "jobs"])
def test_they_stand_on_either_side(capsys, tmp_path, group):
    options = [("--data", str(tmp_path / "data")), ("--lang", "zh"), ("--json",)]
    answers = set()
    for before in itertools.product((True, False), repeat=len(options)):
        first = [word for option, here in zip(options, before, strict=True) if here for word in option]
        then = [word for option, here in zip(options, before, strict=True) if not here for word in option]
        assert main([group, *first, "list", *then]) == 0
        answers.add(capsys.readouterr().out)
    assert main([group, *itertools.chain(*options)]) == 0
    answers.add(capsys.readouterr().out)
    (answer,) = answers
    assert json.loads(answer).keys() == {group}


@pytest.mark.parametrize("group", ["models", "jobs"])
def test_the_one_after_goes_first(capsys, tmp_path, group):
    taken = tmp_path / "file"
    taken.write_text("no folder")
    assert main([group, "--data", str(taken), "--lang", "xx", "list", "--data", str(tmp_path), "--lang", "en"]) == 0
    assert main([group, "--lang", "en", "list", "--data", str(tmp_path), "--lang", "xx"]) == 2
    assert "xx" in capsys.readouterr().err


def test_folders_named_before_reach_the_sub_command(capsys, tmp_path):
    from tests import tiny_random

    tiny_random.pipeline().save_pretrained(tmp_path / "folder" / "mine")
    place = ["--models", str(tmp_path / "folder"), "--data", str(tmp_path / "data"), "--json"]
    assert main(["models", *place, "show", "mine"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["name"] == "mine"
    assert main(["models", "show", "tiny", "--models", str(tmp_path)]) == 2


def test_no_option_leaks_from_one_run_into_the_next(capsys, tmp_path):
    assert main(["models", "--lang", "zh", "--json", "list", "--data", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["models", "list", "--data", str(tmp_path)]) == 0
    assert not capsys.readouterr().out.startswith("{")
