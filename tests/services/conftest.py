"""A Studio over two random tiny models: fast, real, and equal in nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import assert_one_call_at_a_time
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the models `one` and `two`."""
    from tests import tiny_random

    folder = tmp_path_factory.mktemp("two-models")
    tiny_random.pipeline().save_pretrained(folder / "one")
    tiny_random.pipeline(n_layers=2).save_pretrained(folder / "two")
    return folder


@pytest.fixture
def random_studio(settings: Settings, two_models: Path) -> Iterator[Studio]:
    """Started, with the model `one` as its default. Never two pipeline calls at once: asserted when it ends."""
    studio = build_studio(replace(settings, models=(two_models,), model="one"))
    studio.start()
    yield studio
    studio.begin_stop()
    studio.finish(20)
    studio.close()
    assert_one_call_at_a_time(studio.manager)
