"""Models that were really evaluated, once for all tests here. torch is imported when the first of them is asked for."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.core.evaluation.evaluated import Evaluated
    from zimage_studio.records.report import ReportCard


@pytest.fixture(scope="session")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> "Evaluated":
    """A damaged and smaller model against the embedded one; stopped once on the way."""
    from tests.core.evaluation.evaluated import stopped_and_finished

    return stopped_and_finished(tmp_path_factory.mktemp("damaged"))


@pytest.fixture(scope="session")
def itself(tmp_path_factory: pytest.TempPathFactory) -> "ReportCard":
    """The embedded model against itself."""
    from tests.core.evaluation.evaluated import TINY, run

    return run(TINY, tmp_path_factory.mktemp("itself") / "report", lambda *_: None, count=3)
