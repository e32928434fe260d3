"""Models of the Hugging Face hub: what is cached is used; the rest is downloaded with progress and a stop. No torch."""

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zimage_studio.core.weight_headers import read_json
from zimage_studio.errors import Cancelled, ModelError
from zimage_studio.records.progress import Progress

log = logging.getLogger(__name__)

PATTERNS = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja"]
LOOKUP_TIMEOUT_S = 3.0
SHA256 = re.compile(r"[0-9a-f]{64}")
POLL_S = 0.1
STOP_WAIT_S = 1.0


def cached(repo_id: str, cache: Path | None) -> Path | None:
    """The folder of a complete local copy, in `cache` or in the user's own hub cache; never asks the network."""
    from huggingface_hub import constants

    folder = f"models--{repo_id.replace('/', '--')}"
    for place in dict.fromkeys((cache, Path(constants.HF_HUB_CACHE))):
        if place is None or not (place / folder).is_dir():
            continue
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        with contextlib.suppress(LocalEntryNotFoundError):
            found = huggingface_hub.snapshot_download(
                repo_id, cache_dir=place, allow_patterns=PATTERNS, local_files_only=True
            )
            if (Path(found) / "model_index.json").is_file():
                return Path(found)
    return None


def published_hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """The sha256 that the hub published for those of `files` that it stores as large files (all weights).

    The cache keeps each such file under its hash and links to it, so the name of the link's target tells.
    """
    targets = {name: path.resolve().name for name, path in files.items()}
    return {name: target for name, target in targets.items() if SHA256.fullmatch(target)}


def find_or_download(repo_id: str, *, cache: Path, progress: Progress, offline: bool = False) -> Path:
    """The local folder of `repo_id`, downloaded into `cache` when there is no complete copy yet.

    Raises ModelError (model_not_here within a few seconds when the hub does not answer; model_not_on_hub when it
    says no; model_other_pipeline before any weight is fetched), Cancelled from `progress`. What was downloaded
    before a stop is kept and used by the next try.
    """
    if (found := cached(repo_id, cache)) is not None:
        return found
    if offline:
        raise ModelError("model_not_here", value=repo_id, folder=cache.parent / "models")
    return _Download(repo_id, cache).run(progress)


class _Stopped(BaseException):
    """Ends the library's worker threads; no handler for ordinary errors may swallow it."""


class _Download:
    """One download: it runs on a thread of its own, so that a stalled network can still be stopped."""

    def __init__(self, repo_id: str, cache: Path) -> None:
        self._repo_id = repo_id
        self._cache = cache
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._done_bytes = 0.0
        self._total_bytes = 0.0
        self._result: Path | None = None
        self._error: BaseException | None = None

    def run(self, progress: Progress) -> Path:
        """Download and report in bytes until it is there."""
        worker = threading.Thread(target=self._work, name=f"download {self._repo_id}", daemon=True)
        worker.start()
        try:
            while worker.is_alive():
                worker.join(POLL_S)
                progress(min(self._done_bytes, self._total_bytes), max(self._total_bytes, 1.0), "note.downloading")
        except Cancelled:
            self._stop.set()
            worker.join(STOP_WAIT_S)
            raise
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RuntimeError(f"the download of {self._repo_id} ended without a result")
        return self._result

    def _work(self) -> None:
        try:
            self._result = self._fetch()
        except BaseException as error:  # noqa: BLE001 - handed on to the thread that waits in run()
            self._error = error

    def _fetch(self) -> Path:
        import httpx2
        import huggingface_hub
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )

        try:
            self._plan()
            folder = huggingface_hub.snapshot_download(
                self._repo_id,
                cache_dir=self._cache,
                allow_patterns=PATTERNS,
                etag_timeout=LOOKUP_TIMEOUT_S,
                max_workers=4,
                tqdm_class=_counting_bar(self._count),
            )
        except (RepositoryNotFoundError, GatedRepoError) as error:
            raise ModelError("model_not_on_hub", value=self._repo_id) from error
        except (httpx2.HTTPError, HfHubHTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, OSError) as error:
            log.warning("download of %s failed: %s: %s", self._repo_id, type(error).__name__, error)
            raise ModelError("model_not_here", value=self._repo_id, folder=self._cache.parent / "models") from error
        return Path(folder)

    def _plan(self) -> None:
        """Ask the hub what there is: the bytes to come, and whether it is a model for us at all."""
        import huggingface_hub
        from huggingface_hub.utils import filter_repo_objects

        info = huggingface_hub.HfApi().model_info(self._repo_id, files_metadata=True, timeout=LOOKUP_TIMEOUT_S)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        if "model_index.json" not in sizes:
            raise ModelError("model_no_index", value=self._repo_id)
        self._total_bytes = float(sum(sizes[name] for name in filter_repo_objects(sizes, allow_patterns=PATTERNS)))
        index = huggingface_hub.hf_hub_download(
            self._repo_id, "model_index.json", cache_dir=self._cache, etag_timeout=LOOKUP_TIMEOUT_S
        )
        if (found := read_json(Path(index)).get("_class_name")) != "ZImagePipeline":
            raise ModelError("model_other_pipeline", value=self._repo_id, found=found)

    def _count(self, n: float) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._done_bytes += n


def _counting_bar(count: Callable[[float], None]) -> type[Any]:
    """A silent progress bar class, as huggingface_hub wants one, that hands every byte to `count`.

    The library makes one bar for bytes received, one for bytes written and one for files; the bytes written are
    the only ones that also count what was there already.
    """
    from tqdm.auto import tqdm

    class CountingBar(tqdm):  # type: ignore[misc,type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts = kwargs.get("unit") == "B" and "Reconstructing" in str(kwargs.get("desc"))
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            count(float(n or 0) if self._counts else 0.0)
            return None

    return CountingBar
