"""A whole Studio with its page, served, over a small random model: what a client of the API meets."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import assert_one_call_at_a_time
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings

START_LIMIT_S = 60


@dataclass(frozen=True)
class Served:
    """A running server; `url` ends with a slash."""

    url: str
    studio: Studio
    model: str


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The English page with the API on a free port, under the real guards."""
    root = tmp_path_factory.mktemp("served")
    os.environ["GRADIO_TEMP_DIR"] = str(root / "cache")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import socket

    import uvicorn

    from tests import tiny_random
    from zimage_studio.ui.app import build_page, css, head, theme
    from zimage_studio.web.guard import Hosts
    from zimage_studio.web.serve import Door, Look, create_app

    tiny_random.pipeline().save_pretrained(root / "models" / "random-z-image")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(data=root / "data", models=(root / "models",), offline=True, port=port)
    studio = build_studio(settings)
    model = next(item.key for item in studio.models.list() if Path(item.path).name == "random-z-image")
    pages = {"en": build_page(studio, "en", with_api=True), "zh": build_page(studio, "zh", with_api=False)}
    look = Look(theme=theme(), css=css(), head=head())
    app = create_app(
        settings, studio, pages, cache=root / "cache", door=Door(Hosts.from_settings(settings)), looks={"en": look}
    )
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}/"
    _wait_for(url)
    studio.manager.start()
    yield Served(url, studio, model)
    server.should_exit = server.force_exit = True  # open event streams would hold it up
    studio.begin_stop()
    studio.finish(20)
    studio.close()
    thread.join(10)
    assert_one_call_at_a_time(studio.manager)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(url + "gradio_api/info").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError(f"nothing answers at {url}")
