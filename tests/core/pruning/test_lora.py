"""A LoRA carried over gives what slicing the merged parent gives, in every spelling, and is refused where it cannot."""

import json

import pytest
import torch
from diffusers import ZImagePipeline
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests import tiny_random
from tests.pruning_plans import plan_of
from zimage_studio.core.pruning import surgery
from zimage_studio.core.pruning.lora import carry_over
from zimage_studio.core.pruning.mapping import tensor_maps
from zimage_studio.errors import ModelError, StorageError

RANK, SCALE = 3, 0.5
MODULES = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0", "feed_forward.w1",
           "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")  # fmt: skip


@pytest.fixture(scope="module")
def plan(parent):
    return plan_of(parent, "depth,ffn,heads", ratio=0.5)


def adapters(model, seed=0):
    """Random A and B for every chosen module, by the module's name."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in model.named_modules():
        if name.endswith(MODULES) and hasattr(module, "weight"):
            rows, columns = module.weight.shape
            down, up = torch.randn(RANK, columns, generator=generator), torch.randn(rows, RANK, generator=generator)
            found[name] = (down * 0.1, up * 0.1)
    return found


def merged(model, deltas):
    """The model's tensors with the products added."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, (down, up) in deltas.items():
        tensors[f"{name}.weight"] += SCALE * (up @ down)
    return tensors


def spellings(model):
    """(name in diffusers, part of what is fused or None) by every name that a file may use."""
    spelled = {}
    for name in (name.removesuffix(".weight") for name in model.state_dict()):
        comfy = name.replace("to_out.0", "out")
        spelled |= {name: [(name, None)], comfy: [(name, None)], comfy.replace(".", "_"): [(name, None)]}
        if name.endswith("to_q"):
            parts = [(name.replace("to_q", part), number) for number, part in enumerate(("to_q", "to_k", "to_v"))]
            spelled[name.replace("to_q", "qkv")] = parts
    return spelled


def read_back(file, model):
    """(A, B) by diffusers' names, whatever the file calls them; one part of what is fused at a time."""
    tensors, spelled, found = load_file(file), spellings(model), {}
    for key, up in tensors.items():
        module, _, suffix = key.partition(".lora_")
        if suffix not in ("B.weight", "up.weight"):
            continue
        down = tensors[key.replace("lora_B", "lora_A").replace("lora_up", "lora_down")]
        for prefix in ("transformer.", "diffusion_model.", "lora_unet_"):
            module = module.removeprefix(prefix)
        for name, number in spelled[module]:
            found[name] = (down, up if number is None else up.chunk(3)[number])
    return found


def write(style, deltas, path):
    tensors = {}
    for name, (down, up) in deltas.items():
        if style == "peft":
            tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        elif style == "kohya":
            key = "lora_unet_" + name.replace("to_out.0", "out").replace(".", "_")
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.5)}
        elif ".to_q" in name:
            fused = torch.cat([deltas[name.replace("to_q", part)][1] for part in ("to_q", "to_k", "to_v")])
            key = "diffusion_model." + name.replace("to_q", "qkv")
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": fused}
        elif not name.endswith(("to_k", "to_v")):
            key = "diffusion_model." + name.replace("to_out.0", "out")
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"note": "kept"})


@pytest.mark.parametrize("style", ["peft", "comfy", "kohya"])
def test_carrying_over_equals_slicing_the_merged_weights(parent_pipeline, plan, tmp_path, style):
    parent = parent_pipeline.transformer
    deltas = adapters(parent)
    if style == "comfy":  # q, k and v are one module there, and share A
        deltas = {
            name: (deltas[name[:-1] + "q"][0] if name.endswith(("to_k", "to_v")) else down, up)
            for name, (down, up) in deltas.items()
        }
    write(style, deltas, tmp_path / "lora.safetensors")
    carried = carry_over(tmp_path / "lora.safetensors", plan, tmp_path / "child.safetensors")
    assert carried.dropped > 0 and carried.kept == len(load_file(carried.path))
    child = surgery.apply(parent, plan)
    found = read_back(carried.path, child)
    assert found.keys() == adapters(child).keys()
    here, whole = merged(child, found), merged(parent, deltas)
    for name, where in tensor_maps(plan).items():
        assert torch.allclose(here[where.name], surgery.sliced(whole[name], where), atol=1e-6), name
    with safe_open(carried.path, "pt") as opened:
        assert opened.metadata()["note"] == "kept"


def test_diffusers_own_lora_loads_into_the_child_with_its_settings(parent_pipeline, plan, tmp_path):
    trained = surgery.apply(parent_pipeline.transformer, plan_nothing(plan))
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["to_q", "w1", "w2", "to_out.0"], init_lora_weights=False,
        rank_pattern={"layers.4.attention.to_q": 5, "layers.2.feed_forward.w1": 3},
    )  # fmt: skip
    trained.add_adapter(config)
    pipe = ZImagePipeline(**{**parent_pipeline.components, "transformer": trained})
    from peft.utils import get_peft_model_state_dict

    pipe.save_lora_weights(
        tmp_path / "whole", transformer_lora_layers=get_peft_model_state_dict(trained),
        transformer_lora_adapter_metadata={**config.to_dict(), "target_modules": sorted(config.target_modules)},
    )  # fmt: skip
    source = tmp_path / "whole" / "pytorch_lora_weights.safetensors"
    carried = carry_over(source, plan, tmp_path / "child.safetensors")
    with safe_open(carried.path, "pt") as opened:
        notes = json.loads(opened.metadata()["lora_adapter_metadata"])
    last = sum(cut.kept for cut in plan.cuts if cut.stack == "layers") - 1
    assert notes["transformer.rank_pattern"][f"layers.{last}.attention.to_q"] == 5
    child = ZImagePipeline(
        **{**parent_pipeline.components, "transformer": surgery.apply(parent_pipeline.transformer, plan)}
    )
    before = tiny_random.draw(child)
    child.load_lora_weights(carried.path.parent, weight_name=carried.path.name)
    assert not torch.equal(tiny_random.draw(child), before)


def plan_nothing(plan):
    from dataclasses import replace

    from zimage_studio.core.pruning.planning import foretold
    from zimage_studio.records.plan import BlockCut

    return foretold(replace(plan, cuts=tuple(BlockCut(cut.stack, cut.index) for cut in plan.cuts), dim_kept=""))


def test_what_cannot_be_carried_is_refused_and_nothing_is_written(parent_pipeline, plan, tmp_path):
    gone = next(cut.index for cut in plan.cuts if not cut.kept)
    good = f"transformer.layers.{gone}.feed_forward.w1.lora_A.weight"
    cases = {
        "lora_nothing_left": {good: torch.ones(2, 64)},
        "lora_shape": {good: torch.ones(2, 63)},
        "lora_unreadable": {"transformer.layers.0.feed_forward.w1.lokr_w1": torch.ones(2, 2)},
    }
    cases_2 = {"lora_unreadable": {"transformer.blocks.0.mlp.lora_A.weight": torch.ones(2, 64)}}
    for number, (key, tensors) in enumerate([*cases.items(), *cases_2.items()]):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        with pytest.raises(ModelError) as refused:
            carry_over(path, plan, tmp_path / "out.safetensors")
        assert refused.value.key == key
    write("peft", adapters(parent_pipeline.transformer), tmp_path / "lora.safetensors")
    with pytest.raises(StorageError):
        carry_over(tmp_path / "lora.safetensors", plan, tmp_path / "0.safetensors")
    assert not (tmp_path / "out.safetensors").exists() and not list(tmp_path.glob(".*"))
