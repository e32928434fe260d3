"""Memory: the profile in use and the saved ones, what the pipeline makes of it, the planner, measuring, readouts."""

import json
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillBusy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zimage_studio.core.hub import cached
from zimage_studio.core.memory.telemetry import TelemetryReader
from zimage_studio.errors import BusyError, InvalidInputError, OutOfMemoryError, UserError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.checks import real, whole
from zimage_studio.records.measured import MeasuredRow
from zimage_studio.records.memory import (
    EXACT,
    GIB,
    PRESETS,
    Estimate,
    MemoryProfile,
    Plan,
    SwitchState,
    parse_profile,
)
from zimage_studio.records.progress import silent
from zimage_studio.records.recovery import rungs_below
from zimage_studio.records.request import parse_batch
from zimage_studio.records.telemetry import Reading, TorchUsage
from zimage_studio.services.files import replace_durably
from zimage_studio.services.manager import PipelineManager, Snapshot
from zimage_studio.services.measuring import MeasureJob, Measurements, start_measuring
from zimage_studio.services.models import ModelService
from zimage_studio.services.telemetry import TelemetryService

if TYPE_CHECKING:
    from zimage_studio.core.memory.advice import Advisor

log = logging.getLogger(__name__)

SCHEMA = 1
MAX_SAVED = 100
MAX_MEASURED_PROFILES = 12
LOOK_S = 2.0
MAX_FREE_GIB = 4096.0
DEFAULT_PROMPT = "a red circle on a white ground"
DEFAULT_SEED = 7
AUTO = "auto"
"""The name that leaves the choice to Studio, model by model."""
MAX_FILE_CHARS = 2**18


@dataclass(frozen=True, slots=True)
class States:
    """What the live pipeline answers to its profile, switch by switch.

    `profile` is what the pipeline is under; `chosen` is the profile that the next image will be under. `note` is a
    message key that says when this is not of this very moment, or empty. Without a model `states` is empty.
    """

    profile: MemoryProfile
    chosen: MemoryProfile
    states: tuple[SwitchState, ...] = ()
    model: str = ""
    device: str = ""
    note: str = ""

    @property
    def pending(self) -> bool:
        """Whether another profile was chosen since; it is put on with the next image, or by `apply`."""
        return not self.profile.same_switches(self.chosen)


class MemoryService:
    """Everything about memory that a door may ask for. Its methods may be called from any thread.

    The profile in use is a setting of the whole machine, kept in DATA/memory.json together with the saved profiles.
    It decides for every image that names none of its own, from its next job on; a running job keeps what it has.
    """

    def __init__(self, *, data: Path, default: str, model: str, manager: PipelineManager, models: ModelService) -> None:
        """`default` is the profile while no person has chosen one: `auto`, a preset, a saved one, or a file.

        `model` is the key of the model meant where none is named. Raises InvalidInputError or UserError when
        `default` cannot be had.
        """
        self._file = data / "memory.json"
        self._hub_cache = data / "hub"
        self._model = model
        self._manager = manager
        self._models = models
        self._lock = threading.RLock()
        self._advice_lock = threading.Lock()
        self._advisors: dict[tuple[str, str], Advisor] = {}
        self._job: MeasureJob | None = None
        self._closed = False
        self._rows = Measurements(data / "measurements.sqlite")
        self.telemetry = TelemetryService(torch_usage=self._torch_usage)
        self._default = None if default == AUTO else self.find(default, allow_paths=True)
        self._fitted: dict[str, MemoryProfile] = {}

    # --- the profile in use

    @property
    def profile(self) -> MemoryProfile:
        """What the next image of the model in memory will be under, unless it says otherwise."""
        fitted = self._fitted.get(self._manager.state.model or self._model, EXACT)
        return self.settled or fitted

    @property
    def settled(self) -> MemoryProfile | None:
        """The profile that a person or the setting chose; None where Studio chooses for each model."""
        return self._read()[0] or self._default

    def fit_to(self, model: str) -> MemoryProfile:
        """Studio's own choice for `model`: `exact` where it fits into what is free, else what the planner finds.

        Owner thread only; found when the model is first asked for, then kept until Studio ends.
        """
        if model not in self._fitted:
            self._fitted[model] = self._fitting(model)
        return self._fitted[model]

    def _fitting(self, model: str) -> MemoryProfile:
        accelerated = self._manager.accelerated  # brings the engine here, which plan() may only wait for elsewhere
        artifact = self._models.get(model)
        from zimage_studio.core.memory.advice import plainly_fits

        try:
            if plainly_fits(artifact.bytes, accelerated=accelerated):
                return EXACT
            found = self.plan(model=model)
        except UserError as error:  # not downloaded, or damaged: loading says so, and the ladder is still there
            log.info("no profile was chosen for %s: %s", model, error)
            return EXACT
        log.info("%s goes under %s: %s", model, found.profile.name, found.reason)
        return found.profile

    def choose(self, profile: MemoryProfile) -> MemoryProfile:
        """Take `profile` from the next job on, also after a restart. Raises UserError when it cannot be kept."""
        with self._lock:
            self._write(profile, self._read()[1])
        return profile

    def choose_none(self) -> None:
        """Forget what was chosen: the setting counts again. Raises UserError when that cannot be kept."""
        with self._lock:
            self._write(None, self._read()[1])

    def apply(self, model: str | None = None, profile: MemoryProfile | None = None) -> "Future[None]":
        """Bring `model` (a key; None: the one in memory, else the default one) under `profile` (None: the one in use).

        That happens after the jobs that wait, without an image. The future raises what `manager.borrow` raises.
        """
        key = model or self._manager.state.model or self._model
        wanted = profile or self.settled

        def work() -> None:
            with self._manager.borrow(key, silent, wanted or self.fit_to(key)):
                pass

        return self._manager.submit(work)

    # --- profiles by name

    def profiles(self) -> dict[str, MemoryProfile]:
        """Presets (`exact` first), then the saved ones, by name."""
        return {**PRESETS, **self.saved()}

    def saved(self) -> dict[str, MemoryProfile]:
        """The profiles that a person saved, by name, oldest first."""
        return self._read()[1]

    def find(self, name: object, *, allow_paths: bool = False) -> MemoryProfile:
        """The preset or saved profile `name`; with `allow_paths` also the one in a file.

        Raises InvalidInputError, and UserError for a file that cannot be read.
        """
        known = self.profiles()
        if isinstance(name, str) and name in known:
            return known[name]
        path = Path(name) if isinstance(name, str) and allow_paths else None
        if path is None or not path.is_file():
            raise InvalidInputError("bad_choice", field="profile", value=name, known=", ".join(known))
        try:
            return self.read(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("file_damaged", value=name, why=error) from error

    def parse(self, value: object, base: MemoryProfile | None = None) -> MemoryProfile:
        """A profile as a client names it: a name, or an object of switches (left out: as in `base`, None: `exact`).

        Raises InvalidInputError.
        """
        if isinstance(value, Mapping):
            return parse_profile(value, None if base is None else replace(base, name=""))
        return self.find(value)

    def save(self, profile: MemoryProfile, name: object = None) -> MemoryProfile:
        """Keep `profile` under `name` (None: its own), in place of a saved one of that name.

        Raises InvalidInputError for no name, one of a preset's, or too many; UserError when it cannot be written.
        """
        named = replace(profile, name=profile.name if name is None else name)  # type: ignore[arg-type]
        named = replace(named, name=named.name.strip())
        if not named.name:
            raise InvalidInputError("profile_nameless", field="profile")
        if named.name in PRESETS:
            raise InvalidInputError("profile_is_preset", field="profile", value=named.name)
        with self._lock:
            chosen, saved = self._read()
            if named.name not in saved and len(saved) >= MAX_SAVED:
                raise InvalidInputError("profile_too_many", field="profile", count=len(saved), high=MAX_SAVED)
            self._write(chosen, {**saved, named.name: named})
        return named

    def delete(self, name: str) -> None:
        """Forget a saved profile. Raises InvalidInputError when there is none of that name."""
        with self._lock:
            chosen, saved = self._read()
            if name not in saved:
                known = ", ".join(saved) or "-"
                raise InvalidInputError("bad_choice", field="profile", value=name, known=known)
            del saved[name]
            self._write(chosen, saved)

    def export(self, name: str) -> str:
        """The text of a file with the profile `name`. Raises InvalidInputError."""
        return self.find(name).to_json()

    def read(self, text: str) -> MemoryProfile:
        """The profile in the text of such a file; `save` keeps it. Raises InvalidInputError."""
        if len(text) > MAX_FILE_CHARS:
            raise InvalidInputError("too_long", field="profile", count=len(text), high=MAX_FILE_CHARS)
        return MemoryProfile.from_json(text)

    # --- what the pipeline makes of it

    def states(self, size: tuple[int, int] | None = None) -> States:
        """Every switch, read from the live pipeline, for a picture of `size` (width, height) in px.

        While a job runs or loads, what was read when it began; `note` then says so.
        """
        chosen = self.profile
        phase = self._manager.state.phase
        found, note = self._manager.snapshot, "memory.states.busy"
        if phase == "ready":
            future = self._manager.submit(lambda: self._manager.look(size))
            try:
                found, note = future.result(LOOK_S), ""
            except StillBusy:
                future.cancel()
        if found is None:
            return States(chosen, chosen, note="memory.states.none")
        if phase in ("empty", "failed"):
            note = "memory.states.last"
        return _states(found, chosen, note)

    # --- the planner

    def plan(
        self,
        size: tuple[int, int] | None = None,
        *,
        model: str | None = None,
        guidance: object = None,
        free_gib: object = None,
        device: str = "auto",
    ) -> Plan:
        """The least lossy profile for a picture of `size` px (None: the model's usual one) with `free_gib` GiB free.

        With None, what is free on the device now counts, and what the model in memory would give back. Nothing is
        loaded, and no job is disturbed; the first call takes seconds. Raises InvalidInputError and ModelError.
        """
        artifact = self._models.get(model or self._model)
        scene = self._scene(artifact, size, guidance)
        free = None if free_gib is None else round(real("free_gib", free_gib, 0.0, MAX_FREE_GIB) * GIB)
        self._manager.import_engine()
        with self._advice_lock:
            from zimage_studio.core.memory.planner import Scene

            snapshot = self._manager.snapshot
            held = snapshot.weights_bytes if snapshot is not None and snapshot.device == "cpu" else 0
            return self._advisor(artifact, device).plan(Scene(*scene), free_bytes=free, held_bytes=held)

    def estimate(
        self,
        profile: MemoryProfile,
        size: tuple[int, int] | None = None,
        *,
        model: str | None = None,
        guidance: object = None,
    ) -> Estimate:
        """What one picture would need under `profile`, phase by phase."""
        artifact = self._models.get(model or self._model)
        scene = self._scene(artifact, size, guidance)
        self._manager.import_engine()
        with self._advice_lock:
            from zimage_studio.core.memory.planner import Scene

            return self._advisor(artifact, "auto").estimate(profile, Scene(*scene))

    def _scene(self, artifact: ModelArtifact, size: tuple[int, int] | None, guidance: object) -> tuple[int, int, bool]:
        """Width, height, whether under guidance; validated as a request is."""
        asked: dict[str, object] = {"prompt": DEFAULT_PROMPT, "seed": DEFAULT_SEED, "guidance": guidance}
        if size is not None:
            asked |= {"width": size[0], "height": size[1]}
        request = parse_batch(asked, artifact.defaults).first
        return request.width, request.height, request.guidance > 0

    def _advisor(self, artifact: ModelArtifact, device: str) -> "Advisor":
        """The advisor for a model, made when it is first asked."""
        from zimage_studio.core.memory.advice import Advisor

        if device not in ("auto", "cpu", "cuda"):
            raise InvalidInputError("bad_choice", field="device", value=device, known="auto, cpu, cuda")
        if artifact.kind == "hub" and cached(artifact.path, self._hub_cache) is None:
            raise UserError("memory_not_downloaded", value=artifact.name)
        key = (artifact.path, device)
        if key not in self._advisors:
            self._advisors.clear()  # the traces of one model at a time
            self._advisors[key] = Advisor(
                artifact, parts=self._models.parts_for(artifact), hub_cache=self._hub_cache, device=device
            )
        return self._advisors[key]

    # --- measuring

    def measure(
        self,
        profiles: Sequence[MemoryProfile],
        values: Mapping[str, object] | None = None,
        *,
        model: str | None = None,
        session: str = "local",
    ) -> MeasureJob:
        """Run the same request under each of `profiles` and compare it with the exact image, on the owner thread.

        Jobs of others get their turn between two profiles.

        `values` as for an image (see records.request.parse_batch); prompt and seed may be left out. The rows come
        one after the other (`job.view.rows`) and are kept. Raises InvalidInputError, and BusyError while another
        measuring runs.
        """
        whole("profiles", len(profiles), 1, MAX_MEASURED_PROFILES)
        artifact = self._models.get(model or self._model)
        given = {name: value for name, value in (values or {}).items() if value is not None}
        batch = parse_batch({"prompt": DEFAULT_PROMPT, "seed": DEFAULT_SEED, **given, "count": 1}, artifact.defaults)
        if batch.first.source is not None:
            raise InvalidInputError("measure_source", field="source")
        job = MeasureJob(tuple(profiles), batch.first, artifact.key, session)
        with self._lock:
            if self._closed:
                raise BusyError("stopping")
            if self._job is not None and not self._job.view.finished:
                raise BusyError("measure_running")
            self._job = job
        start_measuring(job, self._manager, self._rows)
        return job

    def stop(self, session: str) -> int:
        """Stop the measuring of `session`, if it runs; returns how many were asked to."""
        job = self._job
        if job is None or job.view.finished or job.session != session:
            return 0
        job.stop()
        return 1

    @property
    def measuring(self) -> MeasureJob | None:
        """The measuring that runs, or the last one since the start."""
        return self._job

    def rows(self, newest: int = 200) -> tuple[MeasuredRow, ...]:
        """What was measured, newest first."""
        return self._rows.newest(newest)

    def export_rows(self, form: str = "csv") -> str:
        """Everything that was measured, oldest first, as the text of a `csv` or a `json` file."""
        return self._rows.export(form)

    def clear_rows(self) -> int:
        """Forget what was measured; returns how many rows went."""
        return self._rows.clear()

    # --- start and end

    def start(self) -> None:
        """Begin the live readouts."""
        self.telemetry.start()

    def begin_stop(self) -> None:
        """Take no new work; a measuring ends at its next step."""
        with self._lock:
            self._closed = True
            job = self._job
        if job is not None:
            job.stop()

    def close(self) -> None:
        """End the readouts."""
        self.telemetry.close()

    def warm_up(self, model: str) -> None:
        """On the owner thread: load `model` under the profile in use, or under one that needs less if it must."""
        profile = self.settled or self.fit_to(model)
        tried = [profile, *(lower for _, lower in rungs_below(profile, accelerated=True))]
        for number, candidate in enumerate(tried):
            try:
                with self._manager.borrow(model, silent, candidate):
                    return
            except OutOfMemoryError:
                if number + 1 == len(tried):
                    raise

    # --- the file

    def _read(self) -> tuple[MemoryProfile | None, dict[str, MemoryProfile]]:
        """The chosen profile and the saved ones. What cannot be read is logged and left out."""
        try:
            data = json.loads(self._file.read_text("utf-8"))
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r}")
            chosen = None if data["chosen"] is None else parse_profile(data["chosen"])
            saved = [parse_profile(values) for values in data["saved"]]
        except FileNotFoundError:
            return None, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            log.warning("%s cannot be read and is left out: %s", self._file, error)
            return None, {}
        return chosen, {profile.name: profile for profile in saved}

    def _write(self, chosen: MemoryProfile | None, saved: Mapping[str, MemoryProfile]) -> None:
        data = {
            "schema": SCHEMA,
            "chosen": None if chosen is None else asdict(chosen),
            "saved": [asdict(profile) for profile in saved.values()],
        }
        try:
            replace_durably(self._file, (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode())
        except OSError as error:
            raise UserError("cannot_write", folder=self._file.parent, why=error.strerror) from error

    def reading(self) -> Reading:
        """The devices now; the newest of the live readouts where they run."""
        if (latest := self.telemetry.latest) is not None:
            return latest
        reader = TelemetryReader()
        reader.open()
        try:
            return reader.read().with_torch(self._torch_usage())
        finally:
            reader.close()

    def _torch_usage(self) -> Iterable[TorchUsage]:
        """What torch holds, once the engine is there: nothing is imported for a readout."""
        if not self._manager.has_engine:
            return ()
        from zimage_studio.core.memory.torch_usage import torch_usage

        return torch_usage()


def _states(found: Snapshot, chosen: MemoryProfile, note: str) -> States:
    return States(found.profile, chosen, found.states, found.model, found.device, note)
