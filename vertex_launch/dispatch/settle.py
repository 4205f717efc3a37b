"""How an ended job is told to W&B: what is done about its item, and the sentences for its author. Pure.

Called by ``reconciler``. An item is settled, never a job: the item's job is the one that the reconciler has chosen, and its
twins end without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from vertex_launch.job import outcome
from vertex_launch.job.outcome import End, Outcome
from vertex_launch.model import ItemView, ManagedJob, RunView
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import OpenJob, pause

CLOCKS = 5.0
"""Seconds by which the clocks of Vertex AI and W&B may differ."""
WAITING = ("PENDING", "LEASED")
"""States of an item that nobody has claimed; those of a claimed one may be others than CLAIMED once its run has ended."""
FRESH = 1800.0
"""Seconds since its end within which a job that a rebuilt ledger found ended may get another attempt."""
MOST_SAID = 1500
"""Characters of Vertex AI's own words in a message; a failed program's traceback can be long."""


class Unknown(Enum):
    """The answer that W&B could not give."""

    NOW = "cannot be told now"
    EVER = "cannot be seen with this key"


class Do(StrEnum):
    """What is done about an ended job's item."""

    WAIT = "waits"
    CLOSE = "done"
    FAIL = "failed"
    WARN = "warned"
    AGAIN = "again"


@dataclass(frozen=True)
class Decision:
    """What is done, and the sentence for the item's author or, with WAIT and CLOSE, for the log."""

    do: Do
    text: str = ""
    elsewhere: bool = False
    at: float = 0
    began: bool = False
    failed: bool = False
    """Whether the job ended badly for good, which nobody has acted on yet."""


def decide(
    entry: OpenJob,
    job: ManagedJob | None,
    run: RunView | Unknown | None,
    item: ItemView | None,
    settings: Settings,
    now: float,
) -> Decision:
    """Decide about the item of an ended ``job``, None for one that was deleted.

    ``run`` is None where it does not exist; ``item`` is None where W&B did not show it.
    """
    since = _end(entry, job)
    late = now - since > settings.give_up_after
    waits = item is None or item.state in WAITING
    if item and (item.state == "FAILED" or (not waits and item.run not in ("", entry.run))):
        return Decision(Do.CLOSE, f"the item is {item.state} for {item.run or 'nobody'} already")
    if (waits or run is Unknown.NOW) and not late:
        return Decision(Do.WAIT, "W&B does not show the item or its run as claimed now")
    young = now - since < settings.timeouts.settle_grace
    if job is None:
        return _deleted(entry, run, settings, young=young)
    end = outcome.of(job)
    if end is None:
        return Decision(Do.WAIT, f"its state {job.state} is not known to this version")
    if job.state == outcome.FAILED and not job.error and young:
        return Decision(Do.WAIT, "Vertex AI has not said yet why it failed")
    stopped = bool(entry.stop_seen) or (isinstance(run, RunView) and run.stopped and not entry.stopped_before)
    began = True if entry.began else _started(entry, run, job)
    if not stopped and _another(entry, job, end, settings, now - since):
        first = settings.resubmit_after
        at = since + pause(entry.attempt, first)
        return Decision(Do.AGAIN, _said(job.error), elsewhere=end.try_other_region, at=at, began=began is True)
    return _tell(entry, _End(job, end, began, stopped), settings, young=young)


@dataclass(frozen=True)
class _End:
    """How a job ended. ``began`` says whether its run did, None where W&B does not show such runs."""

    job: ManagedJob
    outcome: Outcome
    began: bool | None
    stopped: bool


def _tell(entry: OpenJob, end: _End, settings: Settings, *, young: bool) -> Decision:
    failed = end.outcome.end is End.BAD and not entry.quiet
    if end.began is not False:  # or nobody can know: a run of another entity
        if end.outcome.end is End.GOOD or entry.quiet:
            return Decision(Do.CLOSE, failed=failed)
        return Decision(Do.WARN, _sentence(entry, end, settings), failed=failed)
    if young:
        return Decision(Do.WAIT, "its run may still show up")
    return Decision(Do.FAIL, _sentence(entry, end, settings), failed=failed)


def _deleted(entry: OpenJob, run: RunView | Unknown | None, settings: Settings, *, young: bool) -> Decision:
    """Decide about an item whose job is gone: a run that has begun is never failed."""
    if young:
        return Decision(Do.WAIT, "Vertex AI does not show its job")
    reason = f"Vertex AI said of it: {entry.reason}" if entry.reason else ""
    text = " ".join(filter(None, [f"{_head(entry, settings)} was deleted in Vertex AI.", reason, _said(entry.final)]))
    if run is None or (isinstance(run, RunView) and run.state == "pending"):
        return Decision(Do.FAIL, f"{text} Its run had not begun; launch it again if it is still wanted.", failed=True)
    if entry.quiet or (isinstance(run, RunView) and run.state == "finished"):
        return Decision(Do.CLOSE)
    return Decision(Do.WARN, text, failed=True)


def _end(entry: OpenJob, job: ManagedJob | None) -> float:
    """Give when the job ended: as Vertex AI says, but never later than a pass saw it."""
    known = [moment for moment in (job.finished if job else 0, entry.ended_at) if moment]
    return min(known, default=entry.since)


def _another(entry: OpenJob, job: ManagedJob, end: Outcome, settings: Settings, age: float) -> bool:
    """Tell whether the item gets another attempt."""
    if (entry.quiet and age > FRESH) or entry.cancelled or entry.final:
        return False
    return end.again and job.repeatable and entry.attempt < settings.max_attempts


def _started(entry: OpenJob, run: RunView | Unknown | None, job: ManagedJob) -> bool | None:
    """Tell whether the run was alive after the job began; None where W&B does not show such runs."""
    if isinstance(run, Unknown):
        return None
    if run is None or run.state == "pending":
        return False
    if entry.attempt > 1 and entry.quiet:
        return True  # perhaps in an earlier attempt, of which a lost ledger knows nothing
    return run.heartbeat is None or run.heartbeat >= (job.started or job.created) - CLOCKS


# Sentences


def another_attempt(entry: OpenJob, attempt: int, region: str, settings: Settings) -> str:
    """Say that there is another attempt, and why."""
    return f"attempt {attempt} of {settings.max_attempts} in {region}: {entry.reason}"


def _sentence(entry: OpenJob, end: _End, settings: Settings) -> str:
    parts = [_what(entry, end, settings)]
    job, stopped = end.job, "Somebody had stopped its run in W&B." if end.stopped else ""
    if end.outcome.end is End.CANCELLED:
        parts.append(
            _why_cancelled(entry)
            or stopped
            or "It was cancelled outside of W&B, in the Google Cloud console for example."
        )
    elif end.outcome.end is End.BAD:
        if job.error:
            parts.append(f"Vertex AI says: {_said(job.error)}")
        elif job.state == outcome.FAILED:
            parts.append("Vertex AI gave no reason.")
        parts += [end.outcome.meaning, _why_cancelled(entry) or stopped]
        if end.outcome.again and not job.repeatable:
            parts.append("It is not tried again, for its spec says disable_retries.")
    if entry.final:
        parts.append(_said(entry.final))
    parts.append(f"Details: {link(job.name, settings.project)}")
    return " ".join(filter(None, parts))


def _what(entry: OpenJob, end: _End, settings: Settings) -> str:
    head, verb = _head(entry, settings), end.outcome.verb
    if end.began is not False:
        return f"{head} {verb}."
    if end.outcome.end is End.GOOD:
        return (
            f"{head} ended well, but its run never began: the program did not call wandb.init, or not with the identity that "
            "its environment gives it (WANDB_RUN_ID, WANDB_PROJECT and WANDB_ENTITY)."
        )
    if not end.job.started:
        return f"{head} {verb} before its run began: it never started."
    return f"{head} {verb} before its run began: wandb.init was not called."


def _head(entry: OpenJob, settings: Settings) -> str:
    number = (entry.job or entry.last or "without a name").rsplit("/", 1)[-1]
    return f"Vertex AI job {number} (attempt {entry.attempt} of {settings.max_attempts}, {entry.region})"


def _why_cancelled(entry: OpenJob) -> str:
    return f"It was cancelled: {entry.cancelled}." if entry.cancelled else ""


def _said(error: str) -> str:
    """Give words as one line that ends like a sentence; empty text stays empty."""
    words = " ".join(error.split())
    if not words:
        return ""
    if len(words) > MOST_SAID:
        words = f"{words[:MOST_SAID]} […]"
    return words if words.endswith((".", "!", "?", "]")) else f"{words}."


def link(job: str, project: str) -> str:
    """Give the address of a job's page in the console, as the SDK does (``aiplatform.jobs``, ``_dashboard_uri``)."""
    parts = job.split("/")
    return f"https://console.cloud.google.com/agent-platform/locations/{parts[3]}/training/{parts[5]}?project={project}"
