"""The benchmark of cutting from disk to disk, on a small model: it runs, and its page holds what it measured."""

import json

import pytest

from benchmarks import streaming_prune


@pytest.mark.parametrize("name", ["feed-forward 25 %, L1", "depth 25 %, L1"])
def test_a_small_checkpoint_is_cut_and_told_about(tmp_path, capsys, name):
    streaming_prune.make_folder(tmp_path / "parent", streaming_prune.SMALL, streaming_prune.SMALL_POOL)
    (tmp_path / "wish.json").write_text(json.dumps({"model": "parent", **streaming_prune.CUTS[name]}))
    copy_s = streaming_prune.copying(tmp_path / "parent" / "transformer", tmp_path / "copy")
    streaming_prune.cut_once(tmp_path)
    row = streaming_prune.Row(name=name, copy_s=copy_s, **json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert row.child_bytes < row.parent_bytes and row.peak_bytes > 0
    assert not (tmp_path / "copy").exists()
    assert f"| {name} |" in streaming_prune.page([row])


def test_the_real_shape_is_z_image():
    from zimage_studio.core.pruning.mapping import parameters
    from zimage_studio.core.pruning.shape import tensor_shapes

    assert parameters(tensor_shapes(streaming_prune.shape_of(streaming_prune.REAL))) == 6_154_908_736
