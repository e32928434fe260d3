"""Fixtures that every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_app import running_app
from zimage_studio.services.manager import PipelineManager
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings

ROOT = Path(__file__).parent.parent
TINY = ROOT / "zimage_studio" / "tiny" / "model"


def pytest_configure() -> None:
    """Before the first test module imports torch or transformers; processes that tests start inherit it.

    Threads that wait for each other by spinning cost five times the time on a busy machine.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from zimage_studio.core.torch_environment import prepare_torch

    prepare_torch()


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Two threads for torch: more only fight each other on a shared machine."""
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    import torch

    torch.set_num_threads(2)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a data folder of their own, offline."""
    return Settings(data=tmp_path / "data", offline=True)


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    """A whole Studio over the embedded model. Never two pipeline calls at once: asserted when it ends."""
    studio = build_studio(settings)
    studio.start()
    yield studio
    studio.begin_stop()
    studio.finish(20)
    studio.close()
    assert_one_call_at_a_time(studio.manager)


def assert_one_call_at_a_time(manager: PipelineManager) -> None:
    assert manager.meter.peak <= 1, f"{manager.meter.peak} pipeline calls ran at once"
    assert manager.meter.inside == 0, "a pipeline call never returned"


@pytest.fixture(scope="module")
def app_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One running application, as a real process, for the tests of a module."""
    with running_app(tmp_path_factory.mktemp("app") / "data") as url:
        yield url
