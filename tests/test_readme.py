"""What the README shows is run."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, TINY

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not TINY.is_dir(), reason="the embedded model is not in this checkout")
def test_the_python_example_makes_an_image(app_url):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    code = example.replace("http://127.0.0.1:7860", app_url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\.png 42 Tiny Z-Image", done.stdout)


def test_every_link_leads_somewhere():
    for text, base in ((README, ROOT), ((ROOT / "docs/README.zh.md").read_text(encoding="utf-8"), ROOT / "docs")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (base / target).exists(), target


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z]+)\b", README)) - {"images", "the"}:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
