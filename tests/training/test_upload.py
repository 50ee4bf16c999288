"""Uploads, on streams that write down what is asked of them: no GPU is here."""

from contextlib import contextmanager
from typing import Any

import torch

from motionmae.data.loader import Batch
from motionmae.training.upload import Upload


class Stream:
    def __init__(self, name: str, log: list[tuple[Any, ...]]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(("wait", self.name, other.name))


class Streams:
    """In place of ``torch.cuda``."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self._current = Stream("computing", self.log)

    def Stream(self) -> Stream:  # noqa: N802
        return Stream("side", self.log)

    def current_stream(self) -> Stream:
        return self._current

    @contextmanager
    def stream(self, stream: Stream):
        before, self._current = self._current, stream
        yield
        self._current = before


class Values:
    """A tensor that notes on which stream it is copied."""

    def __init__(self, name: str, streams: Streams) -> None:
        self.name, self.streams = name, streams

    def to(self, device: torch.device, non_blocking: bool) -> "Values":
        assert non_blocking
        self.streams.log.append(("copy", self.name, self.streams.current_stream().name))
        return Values(f"{self.name} there", self.streams)

    def record_stream(self, stream: Stream) -> None:
        self.streams.log.append(("in use", self.name, stream.name))


def batch_of(streams: Streams, flow: bool) -> Batch:
    clips, labels, seeds, samples = (Values(name, streams) for name in ("clips", "labels", "seeds", "samples"))
    return Batch(clips, labels, seeds, samples, Values("flow", streams) if flow else None)  # type: ignore[arg-type]


def test_copies_run_on_the_side_and_the_computing_stream_waits_for_them():
    for flow in (False, True):
        streams = Streams()
        batch = batch_of(streams, flow)
        there = Upload(torch.device("cuda"), streams)(batch)
        names = {"clips", "labels", "seeds"} | ({"flow"} if flow else set())
        waits = streams.log.index(("wait", "computing", "side"))
        assert set(streams.log[:waits]) == {("copy", name, "side") for name in names}
        assert set(streams.log[waits + 1 :]) == {("in use", f"{name} there", "computing") for name in names}
        assert there.samples is batch.samples
        assert streams.current_stream().name == "computing"


def test_on_the_cpu_nothing_is_copied():
    values = torch.arange(6)
    batch = Batch(values.view(1, 6), values, values, values, None)
    there = Upload(torch.device("cpu"))(batch)
    assert there.clips.data_ptr() == batch.clips.data_ptr()
