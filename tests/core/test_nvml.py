"""NVML through its real ctypes path, against a stand-in library that the system's loader finds; the computer's memory.

Each case runs in a process of its own: a library is loaded once.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from zimage_studio.core.memory.host import children, exists, ram, resident
from zimage_studio.messages import CATALOGUES
from zimage_studio.records.telemetry import GpuReading, Reading, TorchUsage

GIB = 2**30
LOST, NO_PERMISSION, DRIVER_NOT_LOADED, UNKNOWN = 15, 4, 9, 999
NOBODY = 2**30  # no process has this number

CHILD = """
import json, os, subprocess, sys, time
from pathlib import Path
from zimage_studio.core.memory.telemetry import TelemetryReader

states, retry_s = json.loads(sys.stdin.read())
file = Path(os.environ["NVML_STAND_IN"])
sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
pids = {"OUR_CHILD": sleeper.pid, "OUR_PARENT": os.getppid()}

def write(state):
    file.write_text("".join(f"{key} {pids.get(value, value)}\\n" for key, value in state.items()))

write(states[0])
reader = TelemetryReader(retry_s=retry_s)
reader.open()
readings = []
for state in states:
    write(state)
    readings.append(reader.read().to_dict())
reader.close()
reader.close()
sleeper.communicate(b"\\n")
import pynvml
try:
    pynvml.nvmlDeviceGetCount()
    session = "open"
except pynvml.NVMLError as error:
    session = "closed"
print(json.dumps({"readings": readings, "session": session, "torch": "torch" in sys.modules}))
"""


def gpu(index: int, **changes: object) -> dict[str, object]:
    """The lines of one GPU; a value of None leaves the line out."""
    lines = {
        "uuid": f"GPU-{index}{index}", "name": f"NVIDIA Stand-in {index}", "total": 16 * GIB, "used": 5 * GIB,
        "reserved": GIB // 2, "utilisation": 97, "temperature": 61, "power": 215500, "processes": 0, **changes,
    }  # fmt: skip
    return {f"gpu{index}.{key.replace('__', '.')}": value for key, value in lines.items() if value is not None}


def machine(*gpus: dict[str, object], **changes: object) -> dict[str, object]:
    state: dict[str, object] = {"count": len(gpus)}
    for one in gpus:
        state |= one
    return {**state, **{key.replace("__", "."): value for key, value in changes.items()}}


def build(folder: Path, *flags: str) -> Path:
    """The stand-in as `folder`/libnvidia-ml.so.1."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the stand-in for NVML needs Linux and a C compiler")
    source = Path(__file__).parent / "stand_in_nvml.c"
    folder.mkdir()
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", library, source], check=True)
    return folder


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml") / "new")


@pytest.fixture(scope="session")
def old_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml") / "old", "-DOLD_DRIVER")


def run(library: Path, tmp_path: Path, *states: dict[str, object], retry_s: float = 0.0) -> list[dict]:
    """What a reader in a new process says to one state of the machine after the other."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_STAND_IN": str(tmp_path / "state")},
        input=json.dumps([states, retry_s]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["session"] == "closed"
    assert not answer["torch"]
    for reading in answer["readings"]:
        assert reading["ram_total_bytes"] > reading["ram_available_bytes"] > 0
        assert reading["process_bytes"] > 0 < reading["children_bytes"]
        assert reading["note"] == "" or all(reading["note"] in catalogue for catalogue in CATALOGUES.values())
    return answer["readings"]


NUMBERS = (
    "total_bytes", "free_bytes", "used_bytes", "ours_bytes", "others_bytes", "utilisation_percent", "temperature_c",
    "power_w",
)  # fmt: skip


def is_blank(gpu: dict) -> bool:
    return gpu["lost"] and all(gpu[name] is None for name in NUMBERS)


def test_every_gpu_says_everything(nvml, tmp_path):
    (reading,) = run(nvml, tmp_path, machine(gpu(0), gpu(1, used=GIB, temperature=40)))
    first, second = reading["gpus"]
    assert first == {
        "index": 0, "id": "GPU-00", "name": "NVIDIA Stand-in 0", "total_bytes": 16 * GIB, "used_bytes": 5 * GIB,
        "free_bytes": 16 * GIB - 5 * GIB - GIB // 2, "ours_bytes": 0, "others_bytes": 5 * GIB,
        "utilisation_percent": 97, "temperature_c": 61, "power_w": 215.5, "lost": False,
    }  # fmt: skip
    assert (second["index"], second["used_bytes"], second["temperature_c"]) == (1, GIB, 40)
    assert reading["note"] == ""


def test_ours_is_this_process_and_its_children_and_the_rest_is_others(nvml, tmp_path):
    processes = {
        "processes": 3, "process__0__pid": 0, "process__0__used": 2 * GIB,
        "process__1__pid": "OUR_CHILD", "process__1__used": GIB, "process__2__pid": "OUR_PARENT",
        "process__2__used": GIB // 4,
    }  # fmt: skip
    (reading,) = run(nvml, tmp_path, machine(gpu(0, **processes), gpu(1)))
    first, second = reading["gpus"]
    assert (first["ours_bytes"], first["others_bytes"]) == (3 * GIB, 2 * GIB)
    assert (second["ours_bytes"], second["others_bytes"]) == (0, 5 * GIB)


def test_process_numbers_of_another_world_are_not_taken_for_none_of_ours(nvml, tmp_path):
    processes = {"processes": 1, "process__0__pid": NOBODY, "process__0__used": GIB}
    (reading,) = run(nvml, tmp_path, machine(gpu(0, **processes)))
    assert reading["gpus"][0]["ours_bytes"] is reading["gpus"][0]["others_bytes"] is None
    assert reading["gpus"][0]["used_bytes"] == 5 * GIB


def test_a_driver_that_hides_the_memory_of_processes_leaves_it_open(nvml, tmp_path):
    (reading,) = run(nvml, tmp_path, machine(gpu(0, processes=1, process__0__pid=0)))
    assert reading["gpus"][0]["ours_bytes"] is None


@pytest.mark.parametrize(
    ("field", "missing"),
    [
        ("temperature", {"temperature_c"}),
        ("power", {"power_w"}),
        ("utilisation", {"utilisation_percent"}),
        ("processes", {"ours_bytes", "others_bytes"}),
        ("total", {"total_bytes", "free_bytes", "used_bytes", "others_bytes"}),
    ],
)
@pytest.mark.parametrize("code", [None, UNKNOWN])
def test_a_field_that_is_not_supported_or_fails_costs_itself_only(nvml, tmp_path, field, missing, code):
    changes = {field: None} if code is None else {f"{field}__error": code}
    (reading,) = run(nvml, tmp_path, machine(gpu(0, **changes)))
    (found,) = reading["gpus"]
    assert {name for name in NUMBERS if found[name] is None} == missing
    assert not found["lost"]
    assert reading["note"] == ""


def test_a_gpu_without_name_or_uuid_is_still_read(nvml, tmp_path):
    (reading,) = run(nvml, tmp_path, machine(gpu(0, name=None, uuid=None)))
    assert (reading["gpus"][0]["name"], reading["gpus"][0]["temperature_c"]) == ("", 61)


def test_a_driver_of_before_510_is_read_too(old_nvml, tmp_path):
    processes = {"processes": 1, "process__0__pid": 0, "process__0__used": GIB}
    (reading,) = run(old_nvml, tmp_path, machine(gpu(0, **processes)))
    (found,) = reading["gpus"]
    assert (found["ours_bytes"], found["free_bytes"]) == (GIB, 16 * GIB - 5 * GIB - GIB // 2)


@pytest.mark.parametrize("where", ["gpu1.error", "gpu1.total.error", "gpu1.processes.error", "gpu1.uuid.error"])
def test_a_gpu_that_is_lost_in_the_middle_keeps_its_name_and_comes_back(nvml, tmp_path, where):
    fine = machine(gpu(0), gpu(1))
    before, during, after = run(nvml, tmp_path, fine, {where: LOST, **fine}, fine)
    assert before["note"] == ""
    assert during["note"] == "telemetry.gpu_lost"
    assert len(during["gpus"]) == 2
    assert during["gpus"][0] == before["gpus"][0]
    assert is_blank(during["gpus"][1])
    assert (during["gpus"][1]["id"], during["gpus"][1]["name"]) == ("GPU-11", "NVIDIA Stand-in 1")
    assert (after["gpus"], after["note"]) == (before["gpus"], "")


def test_a_gpu_that_vanishes_from_the_list_is_told_as_lost(nvml, tmp_path):
    both = machine(gpu(0), gpu(1))
    alone = machine(gpu(0, uuid="GPU-11", name="NVIDIA Stand-in 1"))  # the first is gone, the second takes its index
    before, during, after = run(nvml, tmp_path, both, alone, both)
    assert during["note"] == "telemetry.gpu_lost"
    assert {found["id"]: found["lost"] for found in during["gpus"]} == {"GPU-00": True, "GPU-11": False}
    assert after["gpus"] == before["gpus"]


def test_a_gpu_that_is_lost_from_the_start_has_no_name_and_then_gets_it(nvml, tmp_path):
    fine = machine(gpu(0), gpu(1))
    during, after = run(nvml, tmp_path, {"gpu1.error": LOST, **fine}, fine)
    assert is_blank(during["gpus"][1])
    assert (during["gpus"][1]["index"], during["gpus"][1]["name"]) == (1, "")
    assert [found["name"] for found in after["gpus"]] == ["NVIDIA Stand-in 0", "NVIDIA Stand-in 1"]


def test_a_gpu_that_is_not_ours_to_see_is_not_listed(nvml, tmp_path):
    (reading,) = run(nvml, tmp_path, machine(gpu(0), gpu(1, error=NO_PERMISSION)))
    assert [found["index"] for found in reading["gpus"]] == [0]
    assert reading["note"] == ""


def test_a_driver_that_fails_as_a_whole_leaves_the_memory_and_is_tried_again(nvml, tmp_path):
    fine = machine(gpu(0))
    before, during, still, after = run(
        nvml, tmp_path, fine, {**fine, "count.error": UNKNOWN}, {**fine, "init.error": DRIVER_NOT_LOADED}, fine
    )
    assert during["note"] == still["note"] == "telemetry.no_driver"
    assert is_blank(during["gpus"][0])
    assert is_blank(still["gpus"][0])
    assert after["gpus"] == before["gpus"]


def test_a_driver_that_appears_is_noticed(nvml, tmp_path):
    fine = machine(gpu(0))
    before, after = run(nvml, tmp_path, {**fine, "init.error": DRIVER_NOT_LOADED}, fine)
    assert (before["gpus"], before["note"]) == ([], "telemetry.no_driver")
    assert len(after["gpus"]) == 1


@pytest.mark.parametrize("broken", ["init.error", "count.error"])
def test_a_driver_that_does_not_answer_is_left_in_peace_for_a_while(nvml, tmp_path, broken):
    fine = machine(gpu(0))
    _, after = run(nvml, tmp_path, {**fine, broken: UNKNOWN}, fine, retry_s=1000)
    assert (after["gpus"], after["note"]) == ([], "telemetry.no_driver")


def test_a_machine_whose_driver_finds_no_gpu(nvml, tmp_path):
    (reading,) = run(nvml, tmp_path, machine())
    assert (reading["gpus"], reading["note"]) == ([], "telemetry.no_gpu")


def test_a_library_that_cannot_be_loaded_is_no_driver(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "libnvidia-ml.so.1").write_text("not a library")
    first, second = run(folder, tmp_path, {}, {})
    assert first["gpus"] == second["gpus"] == []
    assert first["note"] == second["note"] == "telemetry.no_library"


def test_a_library_of_something_else_is_no_driver_that_answers(nvml, tmp_path):
    folder, source = tmp_path / "other", tmp_path / "other.c"
    source.write_text("int something_else(void) { return 1; }\n")
    folder.mkdir()
    compiler = shutil.which("gcc") or "cc"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", source], check=True)
    (reading,) = run(folder, tmp_path, {})
    assert (reading["gpus"], reading["note"]) == ([], "telemetry.no_driver")


# torch beside it


def test_torch_is_taken_for_ours_where_the_driver_knows_of_less():
    reading = Reading(
        time_s=1,
        gpus=(
            GpuReading(index=0, id="GPU-0", used_bytes=9, ours_bytes=0),
            GpuReading(index=1, id="GPU-1", used_bytes=9, ours_bytes=8),
            GpuReading(index=2, id="GPU-2", used_bytes=9),
        ),
    )
    usage = [TorchUsage(id=f"GPU-{n}", allocated_bytes=2, reserved_bytes=5) for n in (0, 1)]
    both = reading.with_torch(usage)
    assert [found.ours_bytes for found in both.gpus] == [5, 8, None]
    assert [found.others_bytes for found in both.gpus] == [4, 1, None]
    assert both.torch == tuple(usage)
    assert json.loads(json.dumps(both.to_dict()))["torch"][0]["reserved_bytes"] == 5


def test_asking_torch_makes_no_cuda_context():
    import torch

    from zimage_studio.core.memory.torch_usage import torch_usage

    assert torch_usage() == () or torch.cuda.is_initialized()


# the computer's memory


def limits(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_without_a_limit_the_machine_counts(tmp_path):
    machine_total = psutil.virtual_memory().total
    for folder in (tmp_path / "none", limits(tmp_path, memory_max="max\n", memory_current="5\n")):
        total, available = ram(folder)
        assert total == machine_total
        assert 0 < available <= total


def test_the_limit_of_a_container_counts_and_files_in_its_cache_are_free(tmp_path):
    folder = limits(
        tmp_path, memory_max=f"{64 * 2**20}\n", memory_current=f"{40 * 2**20}\n",
        memory_stat=f"anon 1\ninactive_file {10 * 2**20}\nactive_file 7\n",
    )  # fmt: skip
    assert ram(folder) == (64 * 2**20, 34 * 2**20)


@pytest.mark.parametrize("stat", ["", "inactive_file", "inactive_file many\n", "anon 5\n"])
def test_a_limit_that_is_passed_leaves_nothing_and_odd_files_do_no_harm(tmp_path, stat):
    folder = limits(tmp_path, memory_max="100\n", memory_current="250\n", memory_stat=stat)
    assert ram(folder) == (100, 0)


def test_a_limit_above_the_machine_is_none(tmp_path):
    folder = limits(tmp_path, memory_max=f"{2**62}\n", memory_current="1\n")
    assert ram(folder)[0] == psutil.virtual_memory().total


def test_processes_that_are_gone_cost_nothing():
    assert resident([NOBODY]) is None
    assert resident([]) == 0
    assert resident([os.getpid(), NOBODY]) == pytest.approx(resident([os.getpid()]), rel=0.2)
    assert children(NOBODY) == []
    assert exists(os.getpid())
    assert not exists(NOBODY)
