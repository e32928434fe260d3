"""What the deployment files name exists, and the docs say what the code says."""

import json
import re
from pathlib import Path

import pytest

from zimage_studio.settings import describe

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def test_the_settings_table_in_the_docs_is_the_one_the_code_prints() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert describe() in text


@pytest.mark.parametrize("line", re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE))
def test_what_the_dockerfile_copies_exists_and_is_not_ignored(line: str) -> None:
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    for source in line.split()[:-1]:
        assert (ROOT / source).exists()
        assert source in allowed


def test_the_dockerfile_starts_the_app_and_asks_the_right_address() -> None:
    entry = json.loads(re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)[0])
    assert entry == ["python", "app.py"]
    check = json.loads(re.findall(r"^HEALTHCHECK .* CMD (.+)$", DOCKERFILE, re.MULTILINE)[0])
    assert check[:2] == ["python", "-c"]
    compile(check[2], "healthcheck", "exec")
    assert "/readyz" in check[2]
    assert "USER 10001" in DOCKERFILE


def test_the_grace_of_supervisor_and_compose_is_longer_than_studio_needs() -> None:
    from zimage_studio.web.stop import GIVE_UP_S

    conf = (ROOT / "supervisord.conf").read_text(encoding="utf-8")
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert int(re.findall(r"^stopwaitsecs=(\d+)", conf, re.MULTILINE)[0]) > GIVE_UP_S
    assert int(re.findall(r"stop_grace_period: (\d+)s", compose)[0]) > GIVE_UP_S
    assert "inet_http_server" not in conf
