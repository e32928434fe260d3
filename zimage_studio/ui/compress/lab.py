"""Knock-outs as a page shows them: one request drawn with everything and without some parts, moment by moment."""

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gradio import processing_utils
from gradio.utils import get_upload_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zimage_studio.messages import say
from zimage_studio.records.sensitivity import Knock
from zimage_studio.services.knockouts import KnockOutJob, KnockOutView
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.compress.heat import in_order, mark
from zimage_studio.ui.doors import plain_toast, toast
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WATCH_S = 5.0
KEPT = 6
"""Pictures with everything that are remembered, so that the next click draws one picture and not two."""
MAX_PAGES = 200
MAX_NAME_CHARS = 80


@dataclass(frozen=True, slots=True)
class LabMoment:
    """One moment: the stage while it runs, or at the end both pictures and the words under them."""

    html: str
    running: bool = True
    pictures: tuple[str, str] | None = None


class Lab:
    """Starts knock-outs; each page has one at a time, and a newer wish stops the older one."""

    def __init__(self, studio: Studio, t: Texts) -> None:
        self._studio = studio
        self._t = t
        self._jobs: OrderedDict[str, KnockOutJob] = OrderedDict()
        self._newest: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()
        self._whole: OrderedDict[object, NDArray[np.uint8]] = OrderedDict()

    def stop(self, session: str) -> None:
        """Stop what this page draws."""
        if (job := self._jobs.pop(session, None)) is not None:
            job.stop()

    def clear(self, session: str, number: float) -> bool:
        """Stop what this page draws, unless a wish of a higher `number` came first: False then."""
        with self._lock:
            if not self._is_newest(session, number):
                return False
            self.stop(session)
            return True

    def draw(
        self, session: str, model: str, out: Sequence[Knock], values: Mapping[str, object], number: float = 0.0
    ) -> Iterator[LabMoment]:
        """Both pictures. Raises UserError, or a toast where the drawing fails; ends silently when it is overtaken,
        also by a wish of a higher `number` that came first."""
        remembered = self._key(model, values)
        with self._lock:
            if not self._is_newest(session, number):
                return
            self.stop(session)
            job = self._studio.compression.knock_out(
                values, [asdict(knock) for knock in in_order(out)], model=model, session=session,
                whole_HWC=None if remembered is None else self._whole.get(remembered),
            )  # fmt: skip
            self._jobs[session] = job
            while len(self._jobs) > MAX_PAGES:
                self._jobs.popitem(last=False)
        yield from self._follow(session, job, remembered)

    def _is_newest(self, session: str, number: float) -> bool:
        if number < self._newest.get(session, 0.0):
            return False
        self._newest[session] = number
        self._newest.move_to_end(session)
        while len(self._newest) > MAX_PAGES:
            self._newest.popitem(last=False)
        return True

    def _follow(self, session: str, job: KnockOutJob, remembered: object) -> Iterator[LabMoment]:
        t = self._t
        view = job.view
        while not view.finished:
            yield LabMoment(stage(view, job, t))
            view = job.wait_change(view.version, WATCH_S)
        if self._jobs.get(session) is not job and view.state == "stopped":
            return  # overtaken: the newer one shows itself
        self._jobs.pop(session, None)
        if view.state != "done" or view.whole_HWC is None or view.knocked_HWC is None:
            yield LabMoment(self._ended(view), running=False)
            if view.state == "failed":
                raise toast(view.error, t) if view.error is not None else plain_toast(t("stage_bug"), t)
            return
        if remembered is not None:
            self._remember(remembered, view.whole_HWC)
        whole = served_png(view.whole_HWC, "with_everything")
        knocked = served_png(view.knocked_HWC, file_stem(job.knocks), comment=self._comment(job))
        yield LabMoment(words(view, job, t), running=False, pictures=(whole, knocked))

    def _key(self, model: str, values: Mapping[str, object]) -> object | None:
        """What makes the picture with everything the same; None where a new seed is drawn each time."""
        if values.get("seed") in (None, "", "-1", -1):
            return None
        return model, tuple(sorted((name, str(value)) for name, value in values.items())), self._studio.memory.profile

    def _remember(self, key: object, pixels_HWC: "NDArray[np.uint8]") -> None:
        self._whole[key] = pixels_HWC
        self._whole.move_to_end(key)
        while len(self._whole) > KEPT:
            self._whole.popitem(last=False)

    def _ended(self, view: KnockOutView) -> str:
        t = self._t
        if view.state == "stopped":
            return present.note(say("note.stopped", t.lang))
        sentence = view.error.text(t.lang) if view.error is not None else t("stage_bug")
        return problem(t("lab_failed"), sentence)

    def _comment(self, job: KnockOutJob) -> str:
        """For whoever finds the file: it is no picture of the model."""
        parts = ", ".join(str(knock) for knock in in_order(job.knocks))
        made = f"{job.model} without {parts}; seed {job.request.seed}"
        return f"Z-Image Studio, knock-out: {made}. No recipe makes it again."


def idle(t: Texts) -> str:
    """Before anything is switched off."""
    head, hint = escape(t("lab_idle")), escape(t("lab_idle_hint"))
    return f'<div class="zs-stage zs-stage-idle zs-lab-idle"><p class="zs-big">{head}</p><p>{hint}</p></div>'


def problem(head: str, sentence: str) -> str:
    """What does not work, and what to do."""
    words = f'<p class="zs-big">{escape(head)}</p><p>{escape(sentence)}</p>'
    return f'<div class="zs-card zs-refused" role="alert">{words}</div>'


def stage(view: KnockOutView, job: KnockOutJob, t: Texts) -> str:
    """What is drawn now, how far it is, the picture forming."""
    steps = job.request.steps
    if view.note == "note.denoising":
        second = view.done > steps or view.whole_HWC is not None
        done = view.done - steps if second else view.done
        line = t("lab_without_step" if second else "lab_whole_step", done=f"{max(0.0, done):g}", total=steps)
    else:
        line = say(view.note, t.lang, ahead=0)
    share = 100 * view.done / view.total if view.total else 0.0
    picture = '<span class="zs-wait" aria-hidden="true"></span>'
    if view.preview is not None:
        picture = f'<img alt="{escape(t("stage_preview_alt"))}" src="{present.preview_uri(view.preview)}">'
    aspect = f"{job.request.width / job.request.height:.4f}"
    return (
        f'<div class="zs-stage zs-stage-working zs-lab-working"><div class="zs-canvas"'
        f' style="aspect-ratio:{aspect};--zs-aspect:{aspect}">{picture}</div>'
        f'<div class="zs-bar" role="progressbar" aria-label="{escape(t("stage_progress_label"))}" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{round(share)}"><i style="width:{share:.1f}%"></i></div>'
        f'<p class="zs-count">{escape(line)}</p></div>'
    )


def words(view: KnockOutView, job: KnockOutJob, t: Texts) -> str:
    """Under the slider: what is missing in the right picture, and how far the two are apart."""
    found = view.distance
    apart = t("lab_same")
    if found is not None and found.psnr_db is not None:
        apart = t("lab_distance", psnr=f"{found.psnr_db:.1f}", ssim=f"{found.ssim:.3f}")
    missing = escape(mark(job.knocks, t))
    seed = escape(t("lab_seed_line", seed=job.request.seed))
    return (
        f'<div class="zs-lab-words"><p class="zs-lab-mark"><i aria-hidden="true">⊘</i>{missing}</p>'
        f'<p class="zs-caption">{escape(apart)}</p><p class="zs-caption">{seed}</p></div>'
    )


def file_stem(knocks: Sequence[Knock]) -> str:
    """`without_layers.3.attention`: a file that is saved from the page says what it is."""
    refs = "_".join(str(knock) for knock in in_order(knocks))
    return f"without_{refs}"[:MAX_NAME_CHARS]


def served_png(pixels_HWC: "NDArray[np.uint8]", stem: str, comment: str = "") -> str:
    """A PNG in the folder that Gradio serves from. A `comment` stands in its metadata."""
    info = PngInfo()
    if comment:
        info.add_text("Comment", comment)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG", pnginfo=info)
    return str(processing_utils.save_bytes_to_cache(buffer.getvalue(), f"{stem}.png", cache_dir=get_upload_folder()))
