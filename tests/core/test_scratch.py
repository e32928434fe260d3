"""Weights on disk: of one engine, gone with it, swept after a crash, and never another's."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from zimage_studio.core.scratch import Scratch
from zimage_studio.records.memory import PRESETS
from zimage_studio.services.studio import build_studio

QUICK = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 1, "guidance": 0, "seed": 3}


def test_two_engines_of_one_process_do_not_touch_each_other(tmp_path):
    one = Scratch(tmp_path)
    one.path.mkdir(parents=True)
    two = Scratch(tmp_path)
    assert one.path != two.path and one.path.is_dir()
    two.clear()
    one.clear()
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_is_swept_and_what_is_not_ours_stays(tmp_path):
    imports = "import sys; from pathlib import Path; from zimage_studio.core.scratch import Scratch"
    code = f"{imports}; Scratch(Path(sys.argv[1])).path.mkdir()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    (tmp_path / "somebody-elses-folder").mkdir()
    assert len(list(tmp_path.iterdir())) == 2
    Scratch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["somebody-elses-folder"]


def test_another_model_and_the_end_leave_no_weights_behind(settings, tmp_path):
    from tests import tiny_random

    tiny_random.pipeline().save_pretrained(tmp_path / "models" / "one")
    tiny_random.pipeline(n_layers=2).save_pretrained(tmp_path / "models" / "two")
    studio = build_studio(replace(settings, models=(tmp_path / "models",), model="one"))
    studio.manager.start()

    def folders() -> list[Path]:
        return list((settings.data / "scratch").glob("*/weights-*"))

    try:
        for model, profile, count in (("one", "from_disk", 2), ("two", "exact", 0), ("two", "from_disk", 2)):
            studio.generation.submit(QUICK, model=model, profile=PRESETS[profile]).result(120)
            assert len(folders()) == count, (model, profile)
    finally:
        studio.begin_stop()
        studio.close()
    assert folders() == []
