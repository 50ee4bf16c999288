"""Progress of a run, as the requeue policy counts it."""

from pathlib import Path

from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, append_row
from motionmae.runs.history import Attempt
from slurm.batch.requeue_policy import RequeuePolicy


def test_a_resume_from_memory_is_progress(tmp_path: Path) -> None:
    """A run that fails often between two checkpoints on disk moves on from its memory copies."""
    run = RunFolder(tmp_path)
    policy = RequeuePolicy(run, Attempt(job="1"), max_retries=5)
    assert policy.newest_step() == 0
    store = CheckpointStore(run.checkpoints)
    store.commit(store.begin(500), 500, {}, [])
    assert policy.newest_step() == 500
    for step, source in ((500, "disk"), (540, "memory"), (560, "memory")):
        append_row(run.events, attempt="a", kind=Kind.RESUME, step=step, seconds=1.0, source=source)
    assert policy.newest_step() == 560
    store.commit(store.begin(1000), 1000, {}, [])
    assert policy.newest_step() == 1000
