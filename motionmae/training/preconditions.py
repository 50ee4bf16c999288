"""Checks made before the run folder is created or its lease is taken: a mistyped command changes nothing."""

from typing import Any

from motionmae.config import Config, load_config
from motionmae.config.resume import check_same_run
from motionmae.config.schema import steps_per_epoch
from motionmae.data.loader import check_same_stream, stream_identity
from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.manifest import Manifest
from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.lease import current_holder


def validate_before_start(folder: RunFolder, store: CheckpointStore, config: Config) -> None:
    """Raise a UserError if the shards have too few samples, or settings or shards differ from those of an existing run.

    Nothing is changed, and damaged checkpoints are ignored here. A run without a checkpoint may start again with other
    settings, unless an attempt of the run is in progress.
    """
    manifest = load_manifest(config.data.shards, config.data)
    steps_per_epoch(config, manifest.samples)
    saved = next(filter(None, map(_read_state, reversed(store.complete()))), None)
    if saved is None and folder.config.is_file() and current_holder(folder.path):
        running = load_config(str(folder.config))
        saved = {"config": running.model_dump(mode="json"), "loader": _identity(running)}
    if saved:
        check_same_run(saved["config"], config)
        check_same_stream(saved["loader"], _identity(config, manifest))


def _identity(config: Config, manifest: Manifest | None = None) -> dict[str, Any]:
    manifest = manifest or load_manifest(config.data.shards, config.data)
    return stream_identity(manifest, config.data, config.seed, config.optim.global_batch_size)


def _read_state(checkpoint: Checkpoint) -> dict[str, Any] | None:
    try:
        state = checkpoint.state()
        return state if {"config", "loader"} <= state.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
