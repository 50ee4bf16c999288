"""Held-out shards: their classes by the names of the training classes, and the check of all shards before a run."""

import numpy as np
from numpy.typing import NDArray

from motionmae.config import Config
from motionmae.config.schema import steps_per_epoch
from motionmae.data.clip_sampling import check_windows
from motionmae.data.mixture.sources import Sources
from motionmae.data.open_shards import check_stored, load_manifest, load_sources
from motionmae.data.remote.download import UnreachableError
from motionmae.data.shards.manifest import Manifest, check_one_sample_per_video, check_whole
from motionmae.errors import UserError


def match_classes(trained: tuple[str, ...], tested: tuple[str, ...], shards: str) -> NDArray[np.int64]:
    """Return the index of the logit for each label, by class name. Raise UserError if the model lacks a class."""
    unknown = [name for name in tested if name not in trained]
    if unknown:
        raise UserError(
            f"{len(unknown)} classes of {shards} are not among the {len(trained)} classes of the model, "
            f"such as {unknown[0]!r}: make the shards from the same list of classes"
        )
    return np.array([trained.index(name) for name in tested], np.int64)


def check_shards(config: Config, ranks: int) -> Sources:
    """Return the training shards of a run.

    Raises:
        UserError: they are missing or damaged, are fewer samples than a step takes, or have different classes in a
            fine-tuning; or the shards of ``config.validation`` cannot validate the run.
        UnreachableError: a URL could not be read, but a later try may succeed.
    """
    sources = load_sources(config.data)
    steps_per_epoch(config, sources.epoch_samples, ranks)
    if config.task == "finetune":
        sources.check_classes()
    _check_held_out(config, sources.manifest.class_names)
    return sources


def _check_held_out(config: Config, class_names: tuple[str, ...]) -> None:
    validation, data = config.validation, config.data
    if not validation.shards:
        return
    manifest = _load("validation.shards", validation.shards, config)
    if config.task == "finetune":
        check_windows(manifest, validation.shards, config.clip)
        check_whole(manifest, validation.shards, "validation")
        match_classes(class_names, manifest.class_names, validation.shards)
        return
    held_out = data.model_copy(update={"shards": validation.shards, "beton": ""})
    check_stored(Sources(held_out, (manifest,)), config.clip, config.target.needs_flow)
    if validation.knn_train:
        named = {"validation.knn_train": validation.knn_train}
        named |= {"validation.knn_test": validation.knn_test} if validation.knn_test else {}
        manifests = {key: _load(key, shards, config) for key, shards in named.items()}
        tested = manifests.get("validation.knn_test", manifest)
        for shards, each in ((validation.knn_train, manifests["validation.knn_train"]), (knn_test(config), tested)):
            check_windows(each, shards, config.clip)
            check_one_sample_per_video(each, shards, "k-NN")
        names = manifests["validation.knn_train"].class_names
        if len(names) < 2:
            classes = f"{validation.knn_train} has {len(names)} classes"
            raise UserError(f"{classes}, but the k-NN needs two: set validation.knn_train to labelled shards")
        match_classes(names, tested.class_names, knn_test(config))


def knn_test(config: Config) -> str:
    """Return the shards that the k-NN classifies."""
    return config.validation.knn_test or config.validation.shards


def _load(key: str, shards: str, config: Config) -> Manifest:
    """Load a manifest; the error names the config key."""
    try:
        manifest = load_manifest(shards, config.data)
    except UnreachableError:
        raise
    except UserError as error:
        raise UserError(f"{key}={shards} cannot be used: {error}") from error
    if not manifest.samples:
        raise UserError(f"{key}={shards} holds no samples: give held-out shards")
    return manifest
