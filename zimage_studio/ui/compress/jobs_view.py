"""Jobs as HTML: the one that runs with its bar, the list with what can be done, the log."""

from collections.abc import Sequence

from zimage_studio.messages import say
from zimage_studio.records.job import JobRecord
from zimage_studio.ui import present
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

_MARKS = {
    "done": "✓",
    "failed": "✕",
    "stopped": "■",
    "interrupted": "!",
    "queued": "…",
    "running": "▶",
    "stopping": "■",
}


def now(job: JobRecord, waiting: int, slowed: str, t: Texts) -> str:
    """The job that runs, how far it is and how long it takes."""
    share = 100 * max(0.0, min(1.0, job.progress))
    words = [say(job.note, t.lang)]
    if job.state == "running" and job.total > 1:
        words.append(t("jobs_of", done=f"{job.done:g}", total=f"{job.total:g}"))
    if job.state != "queued":
        words.append(t("stage_percent", percent=int(share)))
    if job.eta_s is not None and job.state == "running":
        words.append(t("stage_left", time=present.duration(job.eta_s, t)))
    quiet = [slowed] if slowed else []
    if waiting:
        quiet.append(t("jobs_waiting_one") if waiting == 1 else t("jobs_waiting", count=waiting))
    quiet.append(t("jobs_close_page"))
    return (
        f'<div class="zs-now" data-state="{job.state}"><p class="zs-now-head"><b>{_name(job, t)}</b>'
        f"<span>{escape(' · '.join(words))}</span></p>"
        f'<div class="zs-bar" role="progressbar" aria-label="{escape(kind_name(job, t))}" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{int(share)}"><i style="width:{share:.1f}%"></i></div>'
        f'<p class="zs-quiet">{escape(" ".join(quiet))}</p></div>'
    )


def listed(jobs: Sequence[JobRecord], t: Texts) -> str:
    """All jobs, newest first."""
    if not jobs:
        return present.note(t("jobs_none"))
    return f'<ul class="zs-jobs">{"".join(_entry(job, t) for job in jobs)}</ul>'


def log(job: JobRecord, text: str, t: Texts) -> str:
    """The end of a log, whose newest line is the last."""
    head = t("jobs_log_of", name=kind_name(job, t), model=job.model, id=job.id)
    body = escape(text.rstrip()) if text.strip() else escape(t("jobs_log_empty"))
    return f'<p class="zs-quiet">{escape(head)}</p><pre class="zs-log" tabindex="0">{body}</pre>'


def kind_name(job: JobRecord, t: Texts) -> str:
    """What a job does."""
    return t(f"job_kind_{job.kind}")


def outcome(job: JobRecord, t: Texts) -> str:
    """What came out, or why nothing did, in one sentence; empty while that is open."""
    if job.state in ("failed", "interrupted") and job.problem is not None:
        return job.problem.text(t.lang)
    if job.state != "done":
        return ""
    made = job.result.get("model") if job.kind in ("prune", "recover") else job.result.get("id")
    return t("jobs_made", name=made) if isinstance(made, str) else ""


def _name(job: JobRecord, t: Texts) -> str:
    return f"{escape(kind_name(job, t))} <small>{escape(job.model)}</small>"


def _entry(job: JobRecord, t: Texts) -> str:
    state = f'<i aria-hidden="true">{_MARKS[job.state]}</i>{escape(t(f"job_state_{job.state}"))}'
    when = present.local_minute(job.ended or job.started or job.created)
    words = outcome(job, t)
    told = f'<p class="zs-job-words">{escape(words)}</p>' if words else ""
    buttons = "".join(
        f'<button type="button" data-pick="{verb}:{job.id}">{escape(t(f"jobs_{verb}"))}</button>'
        for verb in _verbs(job)
    )
    return (
        f'<li data-state="{job.state}" data-kind="{job.kind}"><p class="zs-job-head"><b>{_name(job, t)}</b>'
        f'<span class="zs-job-state">{state}</span></p>{told}'
        f'<p class="zs-job-foot"><time>{escape(when)}</time><span>{buttons}</span></p></li>'
    )


def _button(verb: str, job: JobRecord, t: Texts) -> str:
    return f'<button type="button" data-pick="{verb}:{job.id}">{escape(t(f"jobs_{verb}"))}</button>'


def _verbs(job: JobRecord) -> list[str]:
    """What can be done with a job, as its buttons say."""
    verbs = []
    if job.state == "done":
        verbs.append("show")
    if job.state in ("queued", "running"):
        verbs.append("stop")
    if job.resumable:
        verbs.append("resume")
    verbs.append("log")
    if job.finished:
        verbs.append("delete")
    return verbs
