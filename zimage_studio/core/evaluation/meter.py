"""One progress for work of many kinds."""

from zimage_studio.records.progress import Preview, Progress


class Meter:
    """Counts units of work towards `total` on one Progress, which never goes back."""

    def __init__(self, progress: Progress, total: float) -> None:
        self._progress, self._total, self._done, self._shown = progress, total, 0.0, 0.0

    def tick(self, note: str, units: float = 1) -> None:
        """`units` are done."""
        self._done += units
        self._report(self._done, note)

    def within(self, note: str, units: float = 1) -> Progress:
        """A progress for work that is `units` of this one; what it reports is not added up: call `tick` afterwards."""

        def inner(done: float, total: float, _note: str, /, preview: Preview | None = None) -> None:
            share = min(1.0, done / total) if total > 0 else 0.0
            self._report(self._done + share * units, note, preview)

        return inner

    def _report(self, done: float, note: str, preview: Preview | None = None) -> None:
        self._shown = max(self._shown, min(done, self._total))
        self._progress(self._shown, self._total, note, preview)
