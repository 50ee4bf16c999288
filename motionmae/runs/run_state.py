"""How an attempt ended and what the time after it goes to: one word for the metrics, the books and the report."""

from dataclasses import dataclass

from motionmae.runs.events import Kind, Row


@dataclass(frozen=True)
class Ending:
    """An end in order, after a save."""

    state: str
    """What it is called, one of :data:`monitoring.metric_definitions.STATES`."""
    queued: bool
    """Whether a scheduler is thought to have the run next."""


ENDINGS = {
    "REQUEUE": Ending("preempted", queued=True),
    "TERMINATED": Ending("stopped", queued=True),  # by scancel, or by Slurm, which queues it again
    "STOPPED": Ending("stopped", queued=False),  # by a person, who has to submit it again
}
"""By the outcome in the event ``stop``; every other end is a failure."""


def silence_after(row: Row) -> str:
    """The cause of lost time, ``queue_wait`` or ``downtime``, that silence has after an event.

    Args:
        row: with which an attempt ends, or what others say of it afterwards: ``stop``, ``finish``, ``submitted``,
            ``failure``.
    """
    ending = ENDINGS.get(row.get("outcome", ""))
    queued = row["kind"] == Kind.SUBMITTED.value or row.get("again") or (ending and ending.queued)
    return "queue_wait" if queued else "downtime"
