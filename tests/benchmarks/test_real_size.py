"""The benchmark at real size: true numbers from shapes, and the way a GPU goes, gone on a CPU by a small model."""

import pytest
import torch

from benchmarks import real_size
from benchmarks.geometry import GEOMETRIES, build
from benchmarks.real_size_meta import all_in, decode_flops, forward_flops, text_flops
from benchmarks.real_size_run import PLAIN, Task, measured
from zimage_studio.core.memory.site import COMPONENTS
from zimage_studio.records.memory import PHASES

SMALL = ["--geometry", "tiny", "--sides", "64", "--side", "64", "--steps", "2", "--repeats", "1"]
CPU = torch.device("cpu")


def task(**changes: object) -> Task:
    return Task(**{"geometry": GEOMETRIES["tiny"], "device": CPU, "side": 64, "steps": 2, "repeats": 1, **changes})


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return measured(task(scratch=tmp_path_factory.mktemp("scratch")), ("exact", "text_out", "from_disk", "int4"))


# --- shapes


def test_the_true_geometry_has_the_published_number_of_parameters():
    shapes = GEOMETRIES["z-image"].shapes(all_in(torch.bfloat16))
    counts = {name: sum(p.numel() for p in getattr(shapes, name).parameters()) for name in COMPONENTS}
    assert counts == {"text_encoder": 4_022_468_096, "transformer": 6_154_908_736, "vae": 83_819_683}
    assert all(p.device.type == "meta" for p in shapes.transformer.parameters())


def linear_flops(module: torch.nn.Module, length: int) -> int:
    return sum(2 * length * part.weight.numel() for part in module.modules() if isinstance(part, torch.nn.Linear))


def test_the_counted_arithmetic_is_that_of_the_formula():
    """Linear layers 2·tokens·weights, attention 4·tokens²·width; adaLN and the time embedding see one vector."""
    shapes = GEOMETRIES["tiny"].shapes(all_in(torch.float32))
    model, picture, text = shapes.transformer, (64 // 16) ** 2, 32
    picture += -picture % 32  # padded as the text is
    width = model.config.dim
    expected = linear_flops(model.t_embedder, 1) + linear_flops(model.cap_embedder, text)
    expected += linear_flops(model.all_x_embedder, picture)
    stacks = ((model.noise_refiner, picture), (model.context_refiner, text), (model.layers, picture + text))
    for stack, length in stacks:
        for block in stack:
            expected += linear_flops(block.attention, length) + linear_flops(block.feed_forward, length)
            expected += 4 * length**2 * width
            expected += linear_flops(block.adaLN_modulation, 1) if getattr(block, "modulation", False) else 0
    final = model.all_final_layer["2-1"]
    expected += linear_flops(final.linear, picture + text) + linear_flops(final.adaLN_modulation, 1)
    assert forward_flops(shapes, 64, 64, 32) == expected


def test_a_larger_picture_and_a_longer_text_are_more_work():
    shapes = GEOMETRIES["tiny"].shapes(all_in(torch.float32))
    sizes = ((64, 64), (128, 128), (128, 256))
    counts = [forward_flops(shapes, width, height, 32) for width, height in sizes]
    assert counts[0] < counts[1] < counts[2]
    assert forward_flops(shapes, 64, 64, 64) > forward_flops(shapes, 64, 64, 32)
    assert decode_flops(shapes, 128, 64) > decode_flops(shapes, 64, 64) > 0
    assert text_flops(shapes, 64) > text_flops(shapes, 32) > 0


# --- random weights


def test_a_pipeline_is_built_where_and_in_what_it_is_asked_and_twice_the_same():
    homes, dtypes = dict.fromkeys(COMPONENTS, CPU), all_in(torch.float32) | {"transformer": torch.bfloat16}
    one, two = (build(GEOMETRIES["tiny"], homes, dtypes) for _ in range(2))
    for name in COMPONENTS:
        module, other = getattr(one, name), getattr(two, name)
        assert module.dtype == dtypes[name] and not module.training
        tensors, others = module.state_dict(), other.state_dict()
        assert all(torch.equal(tensors[key], others[key]) and tensors[key].isfinite().all() for key in tensors)


# --- the way a GPU goes


def test_every_way_is_timed_and_has_its_peaks(rows):
    assert list(rows) == [PLAIN, "exact", "text_out", "from_disk", "int4"]
    for row in rows.values():
        assert not row.failed and not row.refused
        assert row.forwards == 2
        assert row.seconds > 0 and row.teraflops > 0
        assert tuple(row.peaks) == PHASES


def test_less_memory_is_less_memory(rows):
    assert rows["from_disk"].peaks["denoise"] < rows["exact"].peaks["denoise"]


def test_what_cannot_be_had_is_a_note_and_the_others_go_on(tmp_path):
    rows = measured(task(scratch=None), ("from_disk", "exact"))
    assert rows["exact"].seconds is not None
    assert any(said.startswith("group_offload_disk:") for said in rows["from_disk"].refused)
    rows = measured(task(side=72), ("tiled",))  # not a multiple of 16: every call refuses it
    assert {row.failed.split(":")[0] for row in rows.values()} == {"InvalidInputError"}
    assert "failed" in real_size.measured_table(rows, list(rows))
    assert "InvalidInputError" in real_size.notes(rows)


# --- the page


def test_without_a_device_the_measured_columns_are_empty(capsys, tmp_path):
    real_size.main([*SMALL, "--device", "meta", "--write", str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text("utf-8")
    assert capsys.readouterr().out.strip() == text.strip()
    assert f"| {PLAIN} |" + "  |" * 8 in text
    assert "| exact |  |  |  |  |  |  |  | ≤ 0.80 s" in text
    assert "not estimated" in text


def test_with_a_device_they_are_filled(capsys):
    real_size.main([*SMALL, "--device", "cpu", "--presets", "exact"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {PLAIN} |"))
    cells = [cell.strip() for cell in line.split("|")[2:9]]
    assert all(cells) and cells[1] == "1.00" and cells[2] == "2"


def test_the_true_geometry_is_refused_where_ram_does_not_hold_it(capsys, monkeypatch):
    monkeypatch.setattr("zimage_studio.core.memory.host.ram", lambda: (16 * 10**9, 8 * 10**9))
    with pytest.raises(SystemExit):
        real_size.main(["--device", "cpu"])
    assert "needs 41" in capsys.readouterr().err
