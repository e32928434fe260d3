"""Prepares the process before Gradio is imported: private folders, no telemetry, nothing importable beside us."""

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from zimage_studio.errors import StorageError
from zimage_studio.settings import Settings


def prepare_environment(settings: Settings, environ: MutableMapping[str, str] = os.environ) -> Path:
    """Set what Gradio and the hub client read while they are imported. Returns Gradio's cache folder.

    Gradio copies any returned path below the working or the temporary folder into its public cache; so both become
    private folders of ours, the working one empty. Everything in `settings` is already absolute.
    """
    cache = settings.data / "tmp" / "gradio"
    empty = settings.data / "tmp" / "empty"
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (settings.data / "tmp", cache, empty):
            folder.mkdir(mode=0o700, exist_ok=True)
        (settings.data / "tmp").chmod(0o700)
    except OSError as error:
        raise StorageError("cannot_write", folder=settings.data, why=error.strerror) from error
    environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=str(cache),
        TMPDIR=str(settings.data / "tmp"),
        HF_HUB_DISABLE_TELEMETRY="1",
        DIFFUSERS_DISABLE_REMOTE_CODE="1",
    )
    environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if settings.offline:
        environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    tempfile.tempdir = None  # the standard library keeps the first answer; ask again
    os.chdir(empty)
    return cache


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """No garbage collection while the application is imported and built; afterwards what stands is left alone.

    The imports make some millions of objects that stay: looking through them again and again takes a sixth of the
    start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
