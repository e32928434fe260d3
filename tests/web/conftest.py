"""Two servers with the real guards for the whole folder."""

from collections.abc import Iterator

import pytest

from tests.web.servers import Server, running


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without a login."""
    with running(tmp_path_factory.mktemp("plain") / "data") as server:
        yield server


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a login."""
    with running(
        tmp_path_factory.mktemp("locked") / "data", "--auth", "ana:correct horse", "--auth", "bo:staple"
    ) as server:
        yield server
