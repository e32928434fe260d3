"""Plans kept in DATA/plans: one JSON file each, under a name that says what it cuts."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zimage_studio.errors import InvalidInputError, StorageError, UserError
from zimage_studio.records.compress import artifact_name
from zimage_studio.records.plan import MAX_PLAN_BYTES, PrunePlan
from zimage_studio.services.files import replace_durably, sweep_temporaries

log = logging.getLogger(__name__)

MAX_STEM_CHARS = 48
SCORES = ".scores.safetensors"


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan under its name; `path` is its file."""

    id: str
    path: Path
    plan: PrunePlan

    def public(self) -> dict[str, object]:
        """As the command line and the API print it: the keys of `plan --json`, then all the rest."""
        plan = self.plan
        first = {
            "plan": str(self.path),
            "parameters_before": plan.parameters_before,
            "parameters_after": plan.parameters_after,
            "bytes_after": plan.bytes_after,
            "predicted_speedup": plan.predicted_speedup,
            "loads_in": dict(plan.loads_in),
        }
        return {**first, "id": self.id, **{k: v for k, v in plan.public().items() if k not in first}}


class PlanStore:
    """Keeps plans whole or not at all. Safe to use from several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError("cannot_write", folder=folder, why=error) from error
        sweep_temporaries(folder)

    def list(self) -> tuple[StoredPlan, ...]:
        """All plans that can be read, newest first."""
        found = []
        for path in self._folder.glob("*.json"):
            try:
                found.append(read_plan(path))
            except UserError as error:
                log.warning("%s is not listed: %s", path.name, error)
        return tuple(sorted(found, key=lambda stored: (stored.plan.created, stored.id), reverse=True))

    def get(self, plan_id: object) -> StoredPlan:
        """The plan. Raises UserError (unknown_plan) in the same words for a name that cannot be one."""
        try:
            path = self._folder / f"{artifact_name(plan_id)}.json"
        except InvalidInputError:
            raise UserError("unknown_plan", value=str(plan_id)) from None
        if not path.is_file():
            raise UserError("unknown_plan", value=plan_id)
        return read_plan(path)

    def save(self, plan: PrunePlan, plan_id: str) -> StoredPlan:
        """Keep `plan` as `plan_id`, in place of what is called so."""
        name = artifact_name(plan_id)
        path = self._folder / f"{name}.json"
        try:
            replace_durably(path, plan.to_json().encode())
        except OSError as error:
            raise StorageError("cannot_write", folder=self._folder, why=error) from error
        return StoredPlan(name, path, plan)

    def has(self, plan_id: object) -> bool:
        """Whether the name is taken. Raises InvalidInputError (bad_name)."""
        return (self._folder / f"{artifact_name(plan_id)}.json").exists()

    def delete(self, plan_id: object) -> None:
        """Forget a plan. Models made by it keep their copy."""
        self.get(plan_id).path.unlink(missing_ok=True)
        self.scores_of(str(plan_id)).unlink(missing_ok=True)

    def free(self, wanted: str) -> str:
        """`wanted`, with a number where it is taken."""
        return free_name(wanted, self.has)

    def scores_of(self, plan_id: str) -> Path:
        """Where the scores lie that a plan was made from, for editing it by width."""
        return self._folder / f"{plan_id}{SCORES}"


def read_plan(path: Path) -> StoredPlan:
    """The plan in a file. Raises UserError (cannot be read), InvalidInputError (no plan)."""
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise InvalidInputError("bad_plan", field="plan", why=f"> {MAX_PLAN_BYTES // 10**6} MB")
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInputError("bad_plan", field="plan", why=error.strerror) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError("bad_plan", field="plan", why="UTF-8") from error
    return StoredPlan(path.stem, path, PrunePlan.from_json(source))


def default_name(plan: PrunePlan, key: str) -> str:
    """A name that says what is cut from the model `key`, how far, by which criterion, like `tiny-ffn50-taylor`."""
    (target, value), *_ = plan.target.items()
    amount = {"ratio": f"{value * 100:.3g}", "gigabytes": f"-{value:.3g}gb", "speedup": f"-x{value:.3g}"}[target]
    return readable(f"{key}-{'-'.join(plan.kinds)}{amount}-{plan.criterion}")


def readable(text: str) -> str:
    """`text` as the name of an artifact: other characters become hyphens, and it is cut at 48."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", text).replace("..", ".")
    return clean[:MAX_STEM_CHARS].strip("-._") or "model"


def free_name(wanted: str, taken: Callable[[str], bool]) -> str:
    """`wanted`, or the first of `wanted-2`, `wanted-3`… that is not taken."""
    name, number = wanted, 1
    while taken(name):
        number += 1
        name = f"{wanted}-{number}"
    return name
