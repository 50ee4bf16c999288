"""Device prefetch with fake streams that record their calls, because there is no GPU."""

import itertools
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from motionmae.data.loader import Batch, DevicePrefetcher
from motionmae.distributed.context import DistributedContext
from motionmae.training.pretrain import Pretraining
from motionmae.training.setup import build_loader
from tests.training.shards import make_shards, tiny_run


class Event:
    def __init__(self, streams: "Streams") -> None:
        self.streams, self.number = streams, streams.count("done")

    def record(self) -> None:
        self.streams.log.append(("done", self.number, self.streams.current_stream().name))

    def synchronize(self) -> None:
        self.streams.log.append(("host waits", self.number))


class Stream:
    def __init__(self, name: str, streams: "Streams") -> None:
        self.name, self.streams = name, streams

    def wait_event(self, event: Event) -> None:
        self.streams.log.append((f"{self.name} waits", event.number))

    def synchronize(self) -> None:
        self.streams.log.append(("host waits", self.name))


class Streams:
    """Replaces ``torch.cuda``."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self._current = Stream("computing", self)

    def count(self, kind: str) -> int:
        return sum(entry[0] == kind for entry in self.log)

    def Event(self) -> Event:  # noqa: N802
        return Event(self)

    def Stream(self) -> Stream:  # noqa: N802
        return Stream("side", self)

    def current_stream(self) -> Stream:
        return self._current

    @contextmanager
    def stream(self, stream: Stream):
        before, self._current = self._current, stream
        yield
        self._current = before


class Values:
    """A tensor that records the stream of its copy."""

    def __init__(self, name: str, streams: Streams) -> None:
        self.name, self.streams = name, streams

    def to(self, device: torch.device, non_blocking: bool) -> "Values":
        assert non_blocking
        self.streams.log.append(("copy", self.name, self.streams.current_stream().name))
        return Values(f"{self.name} there", self.streams)

    def record_stream(self, stream: Stream) -> None:
        self.streams.log.append(("in use", self.name, stream.name))


def batches_of(streams: Streams, alive: weakref.WeakSet, flow: bool = False) -> Iterator[Batch]:
    for number in itertools.count():
        names = [f"{kind} {number}" for kind in ("clips", "labels", "seeds", "samples", *(["flow"] if flow else []))]
        values = [Values(name, streams) for name in names]
        alive.add(values[0])
        batch = Batch(*values, *([] if flow else [None]))  # type: ignore[arg-type]
        del values
        yield batch
        del batch


@pytest.mark.parametrize("flow", [False, True])
def test_a_batch_is_copied_on_the_side_while_the_one_before_is_computed_on(flow: bool):
    streams = Streams()
    uploaded = DevicePrefetcher(torch.device("cuda"), streams)(batches_of(streams, weakref.WeakSet(), flow))
    kinds = {"clips", "labels", "seeds"} | ({"flow"} if flow else set())
    first = next(uploaded)
    copies = [entry for entry in streams.log if entry[0] == "copy"]
    assert {entry[2] for entry in copies} == {"side"}
    assert {entry[1] for entry in copies} == {f"{kind} {number}" for kind in kinds for number in (0, 1)}
    # the second's copy has begun, and computing waits for the first's alone
    assert [entry for entry in streams.log if entry[0] == "computing waits"] == [("computing waits", 0)]
    assert {entry[1:] for entry in streams.log if entry[0] == "in use"} == {
        (f"{kind} 0 there", "computing") for kind in kinds
    }
    assert streams.count("host waits") == 0
    assert first.samples.name == "samples 0"
    assert streams.current_stream().name == "computing"


def test_memory_of_a_batch_is_kept_until_its_copy_is_done():
    streams, alive = Streams(), weakref.WeakSet()
    uploaded = DevicePrefetcher(torch.device("cuda"), streams)(batches_of(streams, alive))
    next(uploaded)
    assert {values.name for values in alive} == {"clips 0", "clips 1"}
    before = len(streams.log)
    next(uploaded)
    assert streams.log[before] == ("host waits", 0)
    assert {values.name for values in alive} == {"clips 1", "clips 2"}
    uploaded.close()
    assert streams.log[-1] == ("host waits", "side")
    assert not alive


@pytest.mark.parametrize("pinned", [False, True])
def test_memory_is_pinned_for_a_rank_on_a_gpu_alone(pinned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """To pin makes a CUDA context, which a rank on the CPU of a machine with GPUs must not do."""

    class Cudart:
        registered = 0

        def cudaHostRegister(self, *_: int) -> int:  # noqa: N802
            self.registered += 1
            return 0

        def cudaHostUnregister(self, _: int) -> int:  # noqa: N802
            return 0

    cudart = Cudart()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "check_error", lambda status: None)
    config = tiny_run(make_shards(tmp_path / "shards"), tmp_path / "runs")
    device = torch.device("cuda", 0) if pinned else torch.device("cpu")
    with closing(build_loader(config, Pretraining(config), DistributedContext(0, 1, 0, device))) as loader:
        next(loader.batches(0))
    assert (cudart.registered > 0) == pinned


def test_on_the_cpu_nothing_is_copied():
    batches = iter([])
    assert DevicePrefetcher(torch.device("cpu"))(batches) is batches
