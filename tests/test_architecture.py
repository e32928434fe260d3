"""The rules of the house, as tests."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from zimage_studio import errors
from zimage_studio.messages import CATALOGUES

PACKAGE = ROOT / "zimage_studio"
FILES = sorted(PACKAGE.rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def imported_by(module: str) -> set[str]:
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    )


@pytest.mark.parametrize("module", ["zimage_studio.ui.app", "zimage_studio.web.serve", "zimage_studio.services.studio"])
def test_the_page_is_up_without_a_model_library(module):
    assert not imported_by(module) & {"torch", "diffusers", "transformers", "open_clip"}


def test_the_layers_are_kept():
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_stay_short_and_nothing_is_global(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Global), f"{path}:{node.lineno}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 75, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_both_languages_say_the_same_things_with_the_same_values():
    from string import Formatter

    english, chinese = CATALOGUES["en"], CATALOGUES["zh"]
    assert english.keys() == chinese.keys()
    for key, sentence in english.items():
        names = [{name for _, name, _, _ in Formatter().parse(text) if name} for text in (sentence, chinese[key])]
        assert names[0] == names[1], key


def test_every_message_key_that_the_code_names_exists():
    calls = {"say", *(name for name in vars(errors) if name.endswith("Error"))}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls and node.args:
                key = node.args[0]
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    assert key.value in CATALOGUES["en"], f"{path}:{node.lineno} {key.value}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("folder", sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"))
def test_the_readme_names_every_part(folder):
    assert f"{folder}/" in README
