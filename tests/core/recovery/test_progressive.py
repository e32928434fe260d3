"""Cutting in stages: plan, make sparse, cut, recover, cut more; and again from wherever it was stopped."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny_random
from tests.core.recovery.conftest import SIDE
from zimage_studio.core.fingerprint import fingerprint
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.pruning.artifact import write_pruned
from zimage_studio.core.pruning.planning import make_plan
from zimage_studio.core.pruning.scores import Scores
from zimage_studio.core.pruning.shape import transformer_shape
from zimage_studio.core.recovery.log import read_log
from zimage_studio.core.recovery.recover import recover
from zimage_studio.core.recovery.sparsity import penalty
from zimage_studio.errors import Cancelled
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.compress import PruneRequest
from zimage_studio.records.plan import BlockCut, PrunePlan
from zimage_studio.records.progress import silent
from zimage_studio.records.recover import RecoveryConfig

CONFIG = RecoveryConfig(
    steps=8, batch=2, size=SIDE, gradient_checkpointing=False, samples=0, cuts=(0.25, 0.25), sparsity_share=0.25
)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers: the first and the last are protected."""
    folder = tmp_path_factory.mktemp("models") / "deep"
    tiny_random.pipeline(n_layers=4).save_pretrained(folder)
    return folder


class Cutter:
    """By a ranking in which later units are missed more."""

    def plan(self, folder: Path, cut: float | str) -> PrunePlan:
        assert isinstance(cut, float)
        facts = inspect_folder(folder)
        artifact = ModelArtifact(
            key="deep", kind="folder", path=str(folder), name="deep", sha256=fingerprint(facts.files),
            parameters=facts.parameters, bytes=facts.bytes, defaults=facts.defaults,
        )  # fmt: skip
        widths = {(b.stack, b.index): np.arange(b.ffn, dtype=np.float64) for b in transformer_shape(folder).blocks}
        request = PruneRequest(model="deep", kinds=("ffn",), ratio=cut)
        return make_plan(request, artifact, folder, Scores(criterion="l1", ffn=widths), silent)

    def prune(self, folder: Path, plan: PrunePlan, out: Path) -> None:
        here = fingerprint(inspect_folder(folder).files)
        write_pruned(folder, out, replace(plan, model_sha256=here), progress=silent)


def stop_in(step: float) -> Callable[..., None]:
    def progress(done: float, total: float, note: str, /, preview: object = None) -> None:
        if note == "note.recover_train" and done == step:
            raise Cancelled

    return progress


def test_cut_recover_cut_more(deep: Path, pictures: Path, tmp_path: Path) -> None:
    cutter = Cutter()
    whole, out = tmp_path / "whole", tmp_path / "out"
    config = replace(CONFIG, data_set=str(pictures))
    recover(deep, whole, config, checkpoint_dir=tmp_path / "whole-job", device="cpu", cutter=cutter)
    for step in (0.0, 1.0, 3.0, 7.0):
        with pytest.raises(Cancelled):
            recover(
                deep, out, config, checkpoint_dir=tmp_path / "job", device="cpu", cutter=cutter,
                progress=stop_in(step),
            )  # fmt: skip
    done = recover(deep, out, config, checkpoint_dir=tmp_path / "job", device="cpu", cutter=cutter)
    assert done.path == out
    for file in (whole / "transformer").iterdir():
        assert (out / "transformer" / file.name).read_bytes() == file.read_bytes()
    before, after = transformer_shape(deep), transformer_shape(out)
    assert after.stack("layers")[1].ffn < 0.8 * before.stack("layers")[1].ffn
    assert inspect_folder(out).parent == inspect_folder(whole).parent
    phases = [line.phase for line in read_log(tmp_path / "job" / "log.jsonl")]
    assert list(dict.fromkeys(phases)) == ["1-sparsity", "1-recover", "2-sparsity", "2-recover"]
    assert {path.name for path in (tmp_path / "job").iterdir()} == {"log.jsonl"}
    plan = PrunePlan.from_json((out / "plan.json").read_text())
    assert plan.after == after


def test_sparsity_pulls_on_what_goes_and_on_nothing_else(deep: Path) -> None:
    plan = Cutter().plan(deep, 0.5)
    cuts = list(plan.cuts)
    places = [(cut.stack, cut.index) for cut in cuts]
    cuts[places.index(("layers", 1))] = BlockCut("layers", 1, kept=False)
    cuts[places.index(("layers", 2))] = BlockCut("layers", 2, ffn_kept="10-169", heads_kept="0,2-3")
    model = tiny_random.transformer(n_layers=4)
    pull = penalty(model, replace(plan, cuts=tuple(cuts)))
    pull().backward()
    gone, thin = model.layers[1], model.layers[2]
    assert gone.ffn_norm2.weight.grad is not None
    assert gone.feed_forward.w1.weight.grad is None
    rows = thin.feed_forward.w1.weight.grad.abs().sum(1)
    assert torch.equal(rows > 0, torch.arange(len(rows)) < 10)
    columns = thin.attention.to_out[0].weight.grad.abs().sum(0).unflatten(0, (4, -1)).sum(1)
    assert torch.equal(columns > 0, torch.tensor([False, True, False, False]))
    with torch.no_grad():
        before = float(pull())
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= weight.grad
        assert float(pull()) < before
