"""Results of a model over many items: kept, and computed anew for what has changed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from motionmae.config import EngineConfig
from motionmae.distributed.process_group import distributed
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.inference import infer

KEY = CacheKey("weights", "/videos", {})


@pytest.mark.slow
def test_only_items_with_a_new_stamp_are_computed_again(tmp_path: Path) -> None:
    """The stamp of a video is its size and time: a file that was replaced must not keep its old result."""
    computed: list[int] = []

    def compute(inputs: np.ndarray) -> np.ndarray:
        computed.append(int(inputs[0]))
        return inputs * 10

    def results(items: Mapping[str, str]) -> dict[str, list[float]]:
        with distributed(EngineConfig(device="cpu")) as rank:
            found = infer(items, lambda name: np.array([len(items[name])]), compute, tmp_path, KEY, rank, "test")
        assert found.unreadable == {}
        return {name: values.tolist() for name, values in found.values.items()}

    assert results({"a": "1", "b": "22"}) == {"a": [10.0], "b": [20.0]}
    assert results({"b": "22", "a": "1"}) == {"b": [20.0], "a": [10.0]}
    assert computed == [1, 2]
    assert results({"a": "333", "b": "22"}) == {"a": [30.0], "b": [20.0]}
    assert computed == [1, 2, 3]
