"""k-NN accuracy during pre-training, where the test shards number their classes in another order."""

from dataclasses import replace
from pathlib import Path

import pytest

from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.manifest import write_manifest
from tests.training.launch import run_ranks
from tests.training.shards import make_shards, tiny_run
from tests.training.validation.workers import measure_all


@pytest.mark.slow
def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """The nearest training video of each video is itself: all are right, whatever the numbers of their classes."""
    train = make_shards(tmp_path / "train", classes=3)
    (tmp_path / "test").mkdir()
    for path in train.iterdir():
        (tmp_path / "test" / path.name).hardlink_to(path)
    manifest = load_manifest(train)
    assert len(set(manifest.class_names)) == 3
    turned = (*manifest.class_names[1:], manifest.class_names[0])
    (tmp_path / "test/manifest.json").unlink()
    write_manifest(tmp_path / "test", replace(manifest, class_names=turned))
    found = []
    for test in (train, tmp_path / "test"):
        validation = {"shards": str(test), "heldout_clips": 1, "knn_train": str(train), "knn_k": 1}
        [[[figures, *_]]] = run_ranks(1, measure_all, [tiny_run(train, tmp_path, validation=validation)])
        found.append(figures["knn"])
    assert found == [100.0, 0.0]
