"""A cut takes away what the plan says, and nothing else: in memory, from disk to disk, and after loading again."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file

from tests import tiny_random
from tests.conftest import TINY
from tests.pruning_plans import artifact, norm_scores, plan_of
from zimage_studio.core.fingerprint import HashCache, fingerprint, manifest_of
from zimage_studio.core.loading import load_pipeline
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.pruned_transformer import PrunedZImageTransformer2DModel
from zimage_studio.core.pruning import surgery
from zimage_studio.core.pruning.artifact import write_pruned
from zimage_studio.core.pruning.mapping import tensor_maps
from zimage_studio.core.pruning.planning import foretold
from zimage_studio.core.pruning.shape import transformer_shape
from zimage_studio.errors import Cancelled, InvalidInputError, ModelError, StorageError, UserError
from zimage_studio.records.plan import BlockCut, PrunePlan
from zimage_studio.records.progress import silent
from zimage_studio.records.ranges import units
from zimage_studio.services.models import ModelService

KINDS = ("ffn", "heads", "depth", "ffn,heads", "depth,ffn", "depth,ffn,heads", "dim")
SOME = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def forward(model, inputs):
    pictures, times, captions = inputs
    with torch.no_grad():
        out = model([p.clone() for p in pictures], times, [c.clone() for c in captions], return_dict=False)[0]
    return torch.stack(out)


def equal(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def nothing(folder) -> PrunePlan:
    """A plan that removes nothing."""
    plan = plan_of(folder, "ffn", ratio=0.5)
    return foretold(replace(plan, cuts=tuple(BlockCut(cut.stack, cut.index) for cut in plan.cuts)))


def masked(model: ZImageTransformer2DModel, plan: PrunePlan) -> ZImageTransformer2DModel:
    """The parent with everything zeroed that the plan removes."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block, cut in zip(plan.before.blocks, plan.cuts, strict=True):
            part = getattr(model, block.stack)[block.index]
            if not cut.kept:
                part.attention_norm2.weight.zero_()
                part.ffn_norm2.weight.zero_()
                continue
            gone = sorted(set(range(block.ffn)) - set(units(cut.ffn_kept, block.ffn)))
            part.feed_forward.w2.weight[:, gone] = 0
            heads = part.attention.to_out[0].weight.view(plan.before.dim, block.heads, plan.before.head_dim)
            heads[:, sorted(set(range(block.heads)) - set(units(cut.heads_kept, block.heads)))] = 0
    return model


def test_a_plan_that_removes_nothing_changes_nothing_bit_for_bit(parent, parent_pipeline, inputs, tmp_path):
    plan = nothing(parent)
    child = surgery.apply(parent_pipeline.transformer, plan)
    assert type(child) is ZImageTransformer2DModel and equal(child, parent_pipeline.transformer)
    assert torch.equal(forward(child, inputs), forward(parent_pipeline.transformer, inputs))
    assert plan.removes_nothing and plan.bytes_after == plan.bytes_before and plan.predicted_speedup == 1
    write_pruned(parent, tmp_path / "same", plan, progress=silent)
    again = load_pipeline(artifact(tmp_path / "same"), device="cpu", progress=silent)
    assert equal(again.transformer, parent_pipeline.transformer)


def test_units_that_are_zero_go_first_and_are_not_missed(parent, parent_pipeline, inputs):
    shape = transformer_shape(parent)
    ghost = copy.deepcopy(parent_pipeline.transformer)
    generator = np.random.default_rng(5)
    dead = {}
    with torch.no_grad():
        for index in (1, 2, 3):
            dead[index] = sorted(generator.choice(shape.blocks[0].ffn, 90, replace=False).tolist())
            ghost.layers[index].feed_forward.w2.weight[:, dead[index]] = 0
    plan = plan_of(parent, "ffn", ratio=0.45, scores=norm_scores(ghost, shape))
    cuts = {cut.index: cut for cut in plan.cuts if cut.stack == "layers" and cut.ffn_kept}
    assert cuts.keys() == dead.keys()
    for index, cut in cuts.items():
        gone = set(range(170)) - set(units(cut.ffn_kept, 170))
        assert 70 <= len(gone) <= 90 and gone <= set(dead[index])
    torch.testing.assert_close(
        forward(surgery.apply(ghost, plan), inputs), forward(ghost, inputs), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kinds", [kinds for kinds in KINDS if kinds != "dim"])
@pytest.mark.parametrize("protect", [True, False])
def test_masked_equals_sliced(parent, parent_pipeline, inputs, kinds, protect):
    plan = plan_of(parent, kinds, ratio=0.4, protect_ends=protect, allocation="ranked")
    before = copy.deepcopy(parent_pipeline.transformer.state_dict())
    child = surgery.apply(parent_pipeline.transformer, plan)
    expected = forward(masked(parent_pipeline.transformer, plan), inputs)
    torch.testing.assert_close(forward(child, inputs), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, forward(parent_pipeline.transformer, inputs), atol=1e-2)
    after = parent_pipeline.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the parent was changed"
    shared = {t.data_ptr() for t in after.values()} & {t.data_ptr() for t in child.state_dict().values()}
    assert not shared


@SOME
@given(
    kinds=st.sampled_from(KINDS),
    target=st.sampled_from(["ratio", "gigabytes", "speedup"]),
    place=st.floats(0.02, 0.98),
    criterion=st.sampled_from(["l1", "taylor", "random"]),
    protect=st.booleans(),
    seed=st.integers(0, 9),
)
def test_what_is_foretold_is_what_is_to_the_parameter_and_the_byte(
    parent, parent_pipeline, tmp_path_factory, kinds, target, place, criterion, protect, seed
):
    whole = inspect_folder(parent).bytes / 1e9
    value = {"ratio": place, "gigabytes": whole * place, "speedup": 1 + 3 * place}[target]
    values = {target: value, "criterion": criterion, "protect_ends": protect}
    try:
        plan = plan_of(parent, kinds, seed=seed, **values)
    except InvalidInputError as error:
        unsuited = "dim" in kinds and criterion == "taylor"
        assert error.key == ("criterion_unsuited" if unsuited else "plan_unreachable")
        assume(False)
    if target == "gigabytes":
        assert plan.bytes_after <= value * 1e9
    if target == "speedup":
        assert plan.predicted_speedup >= value - 1e-4
    child = surgery.apply(parent_pipeline.transformer, plan)
    assert sum(p.numel() for p in child.parameters()) == plan.transformer_parameters_after
    folder = tmp_path_factory.mktemp("children") / "child"
    made = write_pruned(parent, folder, plan, progress=silent)
    facts = inspect_folder(folder)
    assert (facts.parameters, facts.bytes) == (plan.parameters_after, plan.bytes_after) == (made.parameters, made.bytes)
    assert transformer_shape(folder) == plan.after
    on_disk = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert sum(t.numel() * t.element_size() for t in on_disk.values()) == plan.transformer_bytes_after
    assert all(torch.equal(tensor, on_disk[name]) for name, tensor in child.state_dict().items())
    shutil.rmtree(folder)


@pytest.mark.parametrize("kinds", KINDS)
def test_every_kind_of_cut_loads_again_in_studio_and_in_plain_diffusers(parent, parent_pipeline, tmp_path, kinds):
    plan = plan_of(parent, kinds, ratio=0.4)
    folder = tmp_path / "child"
    write_pruned(parent, folder, plan, progress=silent, shard_bytes=300_000)
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    child = surgery.apply(parent_pipeline.transformer, plan)
    stock = plan.after.is_stock
    assert stock == (kinds in ("depth", "dim"))
    assert plan.loads_in["diffusers"] == ("unchanged" if stock else "does_not_load")
    assert type(child) is (ZImageTransformer2DModel if stock else PrunedZImageTransformer2DModel)
    ours = load_pipeline(artifact(folder), device="cpu", progress=silent)
    plain = ZImagePipeline.from_pretrained(folder)
    for loaded in (ours, plain):
        assert type(loaded.transformer) is type(child) and equal(loaded.transformer, child)
    drawn = tiny_random.draw(ours)
    assert torch.isfinite(drawn).all() and torch.equal(drawn, tiny_random.draw(plain))
    plain.save_pretrained(tmp_path / "saved")  # by diffusers itself, as after a recovery
    again = load_pipeline(artifact(tmp_path / "saved"), device="cpu", progress=silent)
    assert equal(again.transformer, child)


def test_a_sharded_parent_with_mixed_numbers_is_cut_alike(parent, parent_pipeline, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(parent, folder)
    shutil.rmtree(folder / "transformer")
    model = copy.deepcopy(parent_pipeline.transformer).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name or "w2" in name:
            parameter.data = parameter.data.float()
    model.save_pretrained(folder / "transformer", max_shard_size="100KB")
    plan = plan_of(folder, "depth,ffn,heads", ratio=0.5)
    assert plan.item_bytes == 2 and set(plan.item_bytes_of.values()) == {4}
    write_pruned(folder, tmp_path / "child", plan, progress=silent)
    on_disk = load_file(tmp_path / "child" / "transformer" / "diffusion_pytorch_model.safetensors")
    child = surgery.apply(model, plan).state_dict()
    assert on_disk.keys() == child.keys()
    assert all(on_disk[name].dtype == child[name].dtype and torch.equal(on_disk[name], child[name]) for name in child)
    assert inspect_folder(tmp_path / "child").bytes == plan.bytes_after


def test_a_saved_plan_makes_the_same_files_again_and_they_say_where_they_came_from(parent, tmp_path):
    plan = plan_of(parent, "depth,ffn,heads", ratio=0.5)
    replayed = PrunePlan.from_json(plan.to_json())
    assert replayed == plan
    cache = HashCache(tmp_path / "hashes.json")
    write_pruned(parent, tmp_path / "one", plan, progress=silent, cache=cache)
    write_pruned(parent, tmp_path / "two", replayed, progress=silent)
    one, two = (inspect_folder(tmp_path / name) for name in ("one", "two"))
    assert fingerprint(one.files) == fingerprint(two.files) == fingerprint(one.files, cache=cache)
    assert one.parent == plan.model_sha256
    manifest = manifest_of(tmp_path / "one")
    assert set(one.files) | {"plan.json"} == set(manifest)
    assert fingerprint(one.files, manifest=manifest)
    assert PrunePlan.from_json((tmp_path / "one" / "plan.json").read_text()) == plan
    encoder = "text_encoder/model.safetensors"
    assert (tmp_path / "one" / encoder).samefile(parent / encoder)
    assert not list(tmp_path.glob(".*"))


def test_the_list_of_models_shows_the_child_under_its_parent(parent, tmp_path):
    plan = plan_of(parent, "depth,ffn", ratio=0.5)
    write_pruned(parent, tmp_path / "models" / "child", plan, progress=silent)
    (tmp_path / "models" / ".half.1-ab.partial").mkdir()
    listed = ModelService(data=tmp_path, folders=[parent], embedded=TINY, offline=True).list()
    (child,) = [model for model in listed if model.name == "child"]
    assert child.parent == plan.model_sha256 == artifact(parent).sha256
    assert (child.parameters, child.bytes) == (plan.parameters_after, plan.bytes_after) and not child.missing
    assert not any("half" in model.name for model in listed)


def test_a_child_is_a_parent_too(parent, tmp_path):
    first = plan_of(parent, "ffn,heads", ratio=0.3)
    write_pruned(parent, tmp_path / "first", first, progress=silent)
    second = plan_of(tmp_path / "first", "depth,ffn", ratio=0.4)
    write_pruned(tmp_path / "first", tmp_path / "second", second, progress=silent)
    child = load_pipeline(artifact(tmp_path / "second"), device="cpu", progress=silent)
    assert sum(p.numel() for p in child.transformer.parameters()) == second.transformer_parameters_after
    assert inspect_folder(tmp_path / "second").parent == artifact(tmp_path / "first").sha256


@pytest.mark.parametrize("name", ["..", ".hidden", "a..b", "x" * 65, "ä", "a b"])
def test_a_name_that_cannot_be_one_is_refused(parent, tmp_path, name):
    with pytest.raises(InvalidInputError) as refused:
        write_pruned(parent, tmp_path / "models" / name, nothing(parent), progress=silent)
    assert refused.value.key == "bad_name" and not (tmp_path / "models").exists()


def test_nothing_is_cut_by_a_plan_for_another_model_and_nothing_is_left_behind(
    parent, parent_pipeline, tmp_path, monkeypatch
):
    plan = plan_of(parent, "ffn", ratio=0.5)
    refused: list[tuple[str, UserError]] = []

    def refuse(name: str, source=parent, plan=plan, progress=silent):
        with pytest.raises((UserError, Cancelled)) as error:
            write_pruned(source, tmp_path / "children" / name, plan, progress=progress)
        assert not list((tmp_path / "children").glob("*")) or name == "taken"
        refused.append((name, error.value))

    other = tmp_path / "other"
    tiny_random.pipeline(n_layers=4).save_pretrained(other)
    refuse("shape", source=other)
    refuse("hash", plan=replace(plan, model_sha256="0" * 64))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - 10**8, 10**8))
    refuse("full")
    monkeypatch.undo()

    def stop(done, total, note, /, preview=None):
        if note == "note.pruning" and done > total / 2:
            raise Cancelled

    refuse("stopped", progress=stop)
    write_pruned(parent, tmp_path / "children" / "taken", plan, progress=silent)
    refuse("taken")
    keys = {name: getattr(error, "key", "") for name, error in refused}
    expected = {
        "shape": "plan_other_shape",
        "hash": "plan_other_model",
        "full": "disk_full",
        "stopped": "",
        "taken": "name_taken",
    }
    assert keys == expected
    with pytest.raises(ModelError):
        surgery.apply(tiny_random.transformer(n_layers=4), plan)
    assert isinstance(dict(refused)["full"], StorageError)


def test_maps_name_every_tensor_once(parent):
    plan = plan_of(parent, "depth,ffn,heads", ratio=0.5)
    names = [where.name for where in tensor_maps(plan).values()]
    assert len(names) == len(set(names))


def test_a_child_trains_with_a_lora_under_checkpointing_and_draws_group_by_group(parent, parent_pipeline, inputs):
    plan = plan_of(parent, "depth,ffn,heads", ratio=0.5)
    child = surgery.apply(parent_pipeline.transformer, plan)
    pipe = ZImagePipeline(**{**parent_pipeline.components, "transformer": child})
    expected = tiny_random.draw(pipe)
    child.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    assert torch.equal(tiny_random.draw(pipe), expected)

    trained = surgery.apply(parent_pipeline.transformer, plan)
    trained.requires_grad_(False)
    trained.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0", "w1", "w2"]))
    trained.enable_gradient_checkpointing()
    trained.train()
    pictures, times, captions = inputs
    optimiser = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(6):
        out = trained(list(pictures), times, list(captions), return_dict=False)[0]
        loss = sum((o - p).square().mean() for o, p in zip(out, pictures, strict=True))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
