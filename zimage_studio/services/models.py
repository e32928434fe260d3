"""The list of models: the embedded one, the two of the hub, what lies in the folders, and what a person added."""

import json
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from zimage_studio.core import hub
from zimage_studio.core.fingerprint import HashCache, fingerprint, known_fingerprint, manifest_of
from zimage_studio.core.model_files import (
    Facts,
    Family,
    check_parts,
    defaults_of,
    family_of_name,
    identify,
    inspect,
    parts_files,
)
from zimage_studio.errors import ModelError, UserError
from zimage_studio.records.artifact import Kind, ModelArtifact
from zimage_studio.records.progress import Progress
from zimage_studio.services.files import replace_durably

log = logging.getLogger(__name__)

SCHEMA = 1
EMBEDDED_KEY = "tiny"
EMBEDDED_NAME = "Tiny Z-Image"
EMBEDDED_MODEL = Path(__file__).parent.parent / "tiny" / "model"
HUB_MODELS = ("Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image")
NOT_FOR_US = frozenset({"model_no_index", "model_other_pipeline", "model_no_transformer", "model_path_missing"})
MAX_SOURCE_CHARS = 4096
MAX_KEY_CHARS = 48
MAX_KNOWN_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Compacted:
    """A bfloat16 copy: where it lies, of which components, bytes of their weights before and after.

    `path` is None when nothing was stored wider.
    """

    model: str
    path: Path | None
    components: tuple[str, ...]
    bytes_before: int
    bytes_after: int

    def public(self) -> dict[str, object]:
        """What the command line prints."""
        return {**asdict(self), "path": None if self.path is None else str(self.path)}


class ModelService:
    """Knows which models there are and gives each a short key; reads headers, never weights.

    Doors that strangers reach hand over keys only; a path is accepted where `allow_paths` is said, that is from
    the command line and from whoever started Studio. All methods may be called from any thread.
    """

    def __init__(self, *, data: Path, folders: Sequence[Path], embedded: Path, offline: bool) -> None:
        self._data = data
        self._folders = (*folders, data / "models")
        self._embedded = embedded
        self._offline = offline
        self._hub_cache = data / "hub"
        self._hashes = HashCache(data / "hashes.json")
        self._lock = threading.RLock()
        self._visiting: list[str] = []
        self._seen: dict[str, tuple[object, Facts | ModelError]] = {}

    # --- the list

    def list(self) -> tuple[ModelArtifact, ...]:
        """All models, in a fixed order. One that cannot be loaded now says why in `missing`."""
        with self._lock:
            artifacts = [self._local(str(self._embedded), name=EMBEDDED_NAME, key=EMBEDDED_KEY)]
            keys = {EMBEDDED_KEY}
            paths = {str(self._embedded)}
            for repo_id in HUB_MODELS:
                artifacts.append(self._hub(repo_id, keys))
            for source in (*self._scan(), *self._added(), *self._visiting):
                if source not in paths:
                    paths.add(source)
                    artifacts += self._entry(source, keys)
            return tuple(self._with_lent_defaults(artifact, artifacts) for artifact in artifacts)

    def get(self, key: str, *, allow_paths: bool = False) -> ModelArtifact:
        """The model with this key or name; with `allow_paths` also one at a path or with a hub id.

        Raises UserError (unknown_model) naming the known keys, or ModelError for a path that is no model.
        """
        models = self.list()
        for artifact in models:
            if artifact.key == key:
                return artifact
        for artifact in models:
            if isinstance(key, str) and artifact.name.casefold() == key.casefold():
                return artifact
        if not allow_paths:
            raise _unknown(key, models)
        source = self._validated(key)
        with self._lock:
            if source not in self._visiting:
                self._visiting.append(source)
        return self._by_source(source)

    def add(self, path: str) -> ModelArtifact:
        """Check the model at `path` (or a hub id) and remember it. Raises ModelError with what is wrong."""
        source = self._validated(path)
        with self._lock:
            added = self._added()
            if source not in added and source not in HUB_MODELS:
                record = {"schema": SCHEMA, "models": [*added, source]}
                self._data.mkdir(parents=True, exist_ok=True)
                replace_durably(self._remembered, json.dumps(record, ensure_ascii=False, indent=1).encode())
        return self._by_source(source)

    # --- for the manager

    def identity(self, artifact: ModelArtifact, progress: Progress) -> ModelArtifact:
        """`artifact` with its hash, on this machine: a hub model is downloaded first, and its path becomes local.

        The hash of a single file covers the parts that are lent to it too: they decide the pixels as well. Raises
        ModelError (not here, damaged, or the file that differs from its manifest), Cancelled from `progress`.
        """
        if artifact.kind == "hub":
            return self._hub_identity(artifact, progress)
        facts = self._facts(artifact.path)
        return self._with_hash(artifact, facts, progress)

    def folder_of(self, artifact: ModelArtifact) -> Path:
        """Where a folder, or a hub model that is here, lies. Raises ModelError for one that is not here."""
        folder = hub.cached(artifact.path, self._hub_cache) if artifact.kind == "hub" else Path(artifact.path)
        if folder is None:
            raise ModelError("plan_needs_folder", value=artifact.name)
        return folder

    def with_known_hash(self, artifact: ModelArtifact) -> ModelArtifact:
        """`artifact` with its hash where every file has been hashed before, as it is otherwise. Reads no weight."""
        if artifact.kind != "folder" or artifact.missing:
            return artifact
        return replace(artifact, sha256=known_fingerprint(self._facts(artifact.path).files, self._hashes))

    def parts_for(self, artifact: ModelArtifact) -> Path | None:
        """The folder of the list that lends text encoder, VAE, tokenizer and scheduler to a single file.

        The same family goes first, then the order of the list; None for a folder, or when none fits.
        """
        if artifact.kind not in ("single_file", "gguf"):
            return None
        lender = self._lender(artifact, self.list())
        return None if lender is None else lender.root

    def compact(self, artifact: ModelArtifact, progress: Progress) -> Compacted:
        """Write a bfloat16 copy of what `artifact` stores wider; loading in bfloat16 then reads the copy.

        The model itself is not touched; a hub model is downloaded first. A copy that is there and whole is kept.
        Raises ModelError (not a complete folder, damaged), StorageError naming what is needed and what is free,
        Cancelled from `progress`.
        """
        local = self.identity(artifact, progress)
        facts = self._facts(local.path)
        if facts.kind != "folder" or local.sha256 is None:
            raise ModelError("compact_needs_folder", value=artifact.name)
        from zimage_studio.core import compact  # needs torch, which this module's importers do without

        names = compact.wide_components(facts.root)
        before = sum(facts.components[name].bytes for name in names)
        if not names:
            return Compacted(local.key, None, (), 0, 0)
        made = compact.write(facts.root, self._data / "compact", local.sha256, progress=progress)
        return Compacted(local.key, made.folder, made.components, before, made.bytes)

    # --- how it is done

    @property
    def _remembered(self) -> Path:
        return self._data / "models.json"

    def _added(self) -> tuple[str, ...]:
        """What was added, as remembered. A file that is not ours is set aside, or nothing could be listed any more."""
        if not self._remembered.is_file():
            return ()
        try:
            data = json.loads(self._remembered.read_bytes())
            if data["schema"] != SCHEMA or not all(isinstance(source, str) for source in data["models"]):
                raise ValueError(f"schema {data['schema']!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            aside = self._remembered.with_suffix(".json.damaged")
            log.warning("%s cannot be read (%s); it is kept as %s", self._remembered.name, error, aside.name)
            self._remembered.replace(aside)
            return ()
        return tuple(data["models"])

    def _scan(self) -> Iterator[str]:
        """Diffusers folders and single files one level below the folders, and the folders themselves."""
        for folder in self._folders:
            if (folder / "model_index.json").is_file():
                yield str(folder)
            elif folder.is_dir():
                for path in _children(folder):
                    known = path.suffix in (".safetensors", ".gguf") or (path / "model_index.json").is_file()
                    if known and not path.name.startswith("."):
                        yield str(path)

    def _entry(self, source: str, keys: set[str]) -> Iterator[ModelArtifact]:
        """The line of a source in the list; none for a file that is no Z-Image model."""
        path = Path(source)
        if not path.exists() and identify_quietly(source) == "hub":
            yield self._hub(source, keys)
            return
        name = path.stem if path.is_file() else path.name
        artifact = self._local(source, name=name, key="")
        if artifact.missing != "skip":
            yield replace(artifact, key=_free_key(name, keys))

    def _local(self, source: str, *, name: str, key: str) -> ModelArtifact:
        try:
            facts = self._facts(source)
        except ModelError as error:
            listed = key == EMBEDDED_KEY or source in self._visiting or source in self._added()
            if error.key in NOT_FOR_US and not listed:
                return ModelArtifact(key=key, kind="folder", path=source, name=name, missing="skip")
            missing = "missing.damaged" if Path(source).exists() else "missing.gone"
            return ModelArtifact(key=key, kind=_kind_by_name(source), path=source, name=name, missing=missing)
        return ModelArtifact(
            key=key,
            kind=facts.kind,
            path=source,
            name=name,
            family=facts.family,
            parent=facts.parent,
            parameters=facts.parameters,
            bytes=facts.bytes,
            defaults=facts.defaults,
        )

    def _hub(self, repo_id: str, keys: set[str]) -> ModelArtifact:
        name = repo_id.split("/")[1]
        family: Family = family_of_name(name)
        artifact = ModelArtifact(
            key=_free_key(name, keys),
            kind="hub",
            path=repo_id,
            name=name,
            family=family,
            defaults=defaults_of(None, family),
            missing="missing.not_downloaded",
        )
        folder = hub.cached(repo_id, self._hub_cache)
        if folder is None:
            return artifact
        try:
            facts = self._facts(str(folder))
        except ModelError:
            return replace(artifact, missing="missing.damaged")
        return replace(artifact, missing="", parameters=facts.parameters, bytes=facts.bytes)

    def _hub_identity(self, artifact: ModelArtifact, progress: Progress) -> ModelArtifact:
        folder = hub.find_or_download(artifact.path, cache=self._hub_cache, progress=progress, offline=self._offline)
        facts = self._facts(str(folder))
        local = replace(artifact, path=str(folder), missing="", parameters=facts.parameters, bytes=facts.bytes)
        return self._with_hash(local, facts, progress)

    def _with_hash(self, artifact: ModelArtifact, facts: Facts, progress: Progress) -> ModelArtifact:
        files = dict(facts.files)
        manifest = manifest_of(facts.root) if facts.kind == "folder" else None
        if artifact.kind == "hub":
            manifest = hub.published_hashes(files)
        lender = self._lender(artifact, self.list()) if facts.kind in ("single_file", "gguf") else None
        if lender is not None:
            files |= parts_files(lender)
        sha256 = fingerprint(files, cache=self._hashes, manifest=manifest, progress=progress)
        return replace(artifact, sha256=sha256)

    def _with_lent_defaults(self, artifact: ModelArtifact, models: Sequence[ModelArtifact]) -> ModelArtifact:
        """A single file whose name tells no family is drawn like the folder whose parts it uses."""
        if artifact.kind not in ("single_file", "gguf") or artifact.family != "other" or artifact.missing:
            return artifact
        lender = self._lender(artifact, models)
        return artifact if lender is None else replace(artifact, family=lender.family, defaults=lender.defaults)

    def _lender(self, artifact: ModelArtifact, models: Sequence[ModelArtifact]) -> Facts | None:
        file = self._facts(artifact.path)
        candidates = [a for a in models if a.kind in ("folder", "hub") and not a.missing]
        candidates.sort(key=lambda a: a.family != artifact.family)
        for candidate in candidates:
            folder = hub.cached(candidate.path, self._hub_cache) if candidate.kind == "hub" else Path(candidate.path)
            try:
                lender = self._facts(str(folder))
                check_parts(file, lender)
            except ModelError:
                continue
            return lender
        return None

    def _facts(self, source: str) -> Facts:
        """What the headers say, read again only when the files changed."""
        stamp = _stamp(Path(source))
        with self._lock:
            seen = self._seen.get(source)
            if seen is None or seen[0] != stamp:
                try:
                    seen = (stamp, inspect(source))
                except ModelError as error:
                    seen = (stamp, error)
                    log.info("%s is not listed: %s", source, error)
                self._seen[source] = seen
        if isinstance(seen[1], ModelError):
            raise ModelError(seen[1].key, **seen[1].values)
        return seen[1]

    def _validated(self, source: object) -> str:
        """A path made absolute, or a hub id as it is, after its content was checked."""
        if not isinstance(source, str) or not 0 < len(source) <= MAX_SOURCE_CHARS:
            raise ModelError("model_path_missing", value=source)
        if identify(source) == "hub":
            return source
        path = str(Path(source).expanduser().resolve())
        self._facts(path)
        return path

    def _by_source(self, source: str) -> ModelArtifact:
        return next(a for a in self.list() if a.path == source or _same_place(a, source))


def _children(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        log.warning("%s cannot be listed: %s", folder, error)
        return ()


def identify_quietly(source: str) -> Kind | None:
    """The kind, or None for what is nothing."""
    try:
        return identify(source)
    except ModelError:
        return None


def _same_place(artifact: ModelArtifact, source: str) -> bool:
    return artifact.kind != "hub" and str(Path(artifact.path).resolve()) == source


def _unknown(key: object, models: Sequence[ModelArtifact]) -> UserError:
    names = [artifact.key for artifact in models]
    known = ", ".join(names[:MAX_KNOWN_SHOWN]) + (", …" if len(names) > MAX_KNOWN_SHOWN else "")
    return UserError("unknown_model", value=key, known=known)


def _kind_by_name(source: str) -> Kind:
    return {".gguf": "gguf", ".safetensors": "single_file"}.get(Path(source).suffix.lower(), "folder")  # type: ignore[return-value]


def _free_key(name: str, taken: set[str]) -> str:
    """A short readable key from a name, with a number when it is taken; it is taken afterwards."""
    stem = re.sub(r"[^\w.]+", "-", name.lower()).strip("-.")[:MAX_KEY_CHARS] or "model"
    key, number = stem, 1
    while key in taken:
        number += 1
        key = f"{stem}-{number}"
    taken.add(key)
    return key


def _stamp(path: Path) -> object:
    """Changes when a file of the model is replaced: sizes and times of everything up to one folder down."""
    try:
        if not path.is_dir():
            stat = path.stat()
            return (stat.st_size, stat.st_mtime_ns)
        files = sorted(p for p in (*path.glob("*.json"), *path.glob("*/*")) if p.is_file())
        return tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    except OSError:
        return None
