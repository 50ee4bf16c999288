"""The files of a rank's share and the memory they need, in this process."""

import hashlib
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from motionmae.checkpointing import memory_copies, sharded
from motionmae.checkpointing.memory_copies import MemoryCopies, Ring, _describe, _pieces
from motionmae.checkpointing.sharded import PinnedStagingBuffer, _read_average, write_share, write_state, write_tensors
from motionmae.distributed.context import DistributedContext
from motionmae.errors import UserError
from motionmae.runs.checkpoint_manifest import Checkpoint, FileEntry
from motionmae.runs.memory_folder import MemoryFolder

RANK = DistributedContext(rank=1, world=3, local_rank=1, device=torch.device("cpu"))


def test_a_share_has_a_file_for_weights_moments_and_averages(tmp_path: Path):
    kinds = ("parameter", "exp_avg", "exp_avg_sq", "average")
    tensors = {name: {kind: torch.randn(2, 3) for kind in kinds} for name in ("a", "b")}
    del tensors["b"]["average"]
    entries = write_share(tensors, tmp_path, RANK)
    suffix = "00001-of-00003.safetensors"
    assert [entry.name for entry in entries] == [f"model-{suffix}", f"optimizer-{suffix}", f"average-{suffix}"]
    assert {entry.tensors for entry in entries} == {("a", "b")}
    files = [load_file(tmp_path / entry.name) for entry in entries]
    assert [sorted(file) for file in files] == [
        ["a", "b"], ["a.exp_avg", "a.exp_avg_sq", "b.exp_avg", "b.exp_avg_sq"], ["a"],
    ]  # fmt: skip
    assert torch.equal(files[0]["b"], tensors["b"]["parameter"])
    assert torch.equal(files[1]["a.exp_avg_sq"], tensors["a"]["exp_avg_sq"])
    assert torch.equal(files[2]["a"], tensors["a"]["average"])
    assert len(write_share({"a": dict.fromkeys(kinds[:3], torch.ones(1))}, tmp_path, RANK)) == 2


def test_a_file_longer_than_a_chunk_is_written_whole(tmp_path: Path):
    """The chunks have 8 MiB."""
    value = torch.arange(5 << 20, dtype=torch.float32)  # 20 MiB
    entry = write_tensors(tmp_path / "x.safetensors", {"x": value, "y": torch.ones(3)}, ())
    content = (tmp_path / "x.safetensors").read_bytes()
    assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], value)
    header = int.from_bytes(content[:8], "little")
    assert header % 8 == 0  # tensors begin at multiples of 8, as the library asks
    assert json.loads(content[8 : 8 + header])["y"] == {
        "dtype": "F32", "shape": [3], "data_offsets": [20 << 20, (20 << 20) + 12],
    }  # fmt: skip


def test_the_state_is_json_and_described(tmp_path: Path):
    entry = write_state(tmp_path / "state.json", {"trainer": {"step": 3}})
    content = (tmp_path / "state.json").read_bytes()
    assert json.loads(content) == {"trainer": {"step": 3}}
    assert entry == FileEntry("state.json", len(content), hashlib.sha256(content).hexdigest())


def test_without_an_average_the_weight_itself_is_read(tmp_path: Path):
    entries = [
        write_tensors(tmp_path / f"{kind}-0.safetensors", {"a": torch.full((2,), float(number))}, ("a",))
        for number, kind in enumerate(("model", "average"))
    ]
    whole, without = (Checkpoint(tmp_path, 1, tuple(entries[:count]), 1) for count in (2, 1))
    assert _read_average(whole, "model-0.safetensors", "a").tolist() == [1, 1]
    assert _read_average(without, "model-0.safetensors", "a").tolist() == [0, 0]


def test_a_checkpoint_of_another_model_is_refused_once(tmp_path: Path):
    entries = (FileEntry("model-0", 1, "0" * 64, ("a", "b", "c", "d", "e")), FileEntry("other-0", 1, "0" * 64, ("z",)))
    engine: Any = SimpleNamespace(parameters={"a": None, "x": None})
    for rank in (0, 1):
        with pytest.raises(UserError) as refused:
            sharded.restore(engine, DistributedContext(rank, 2, rank, torch.device("cpu")),
                            Checkpoint(tmp_path, 1, entries, 1))  # fmt: skip
        assert str(refused.value).startswith(
            f"{tmp_path} does not match the model, 5 parameters differ (for example b, c, d): resume with"
        )
        assert refused.value.already_reported is (rank == 1)


def test_a_block_is_filled_before_the_next_is_taken(monkeypatch: pytest.MonkeyPatch):
    """Copies begin at multiples of 64 bytes in blocks of 256; one that fits in an earlier rest goes there."""
    taken: list[int] = []
    allocate = PinnedStagingBuffer._allocate

    def note(self: PinnedStagingBuffer, size: int) -> torch.Tensor:
        taken.append(size)
        return allocate(self, size)

    monkeypatch.setattr(PinnedStagingBuffer, "_allocate", note)
    buffer = PinnedStagingBuffer(block_bytes=256)
    sizes = (100, 140, 60, 256, 257, 1, 64)  # aligned 128, 192, 64, 256, alone, 64, 64
    copies = [buffer.copy((str(size), "x"), torch.full((size,), size % 128, dtype=torch.uint8)) for size in sizes]
    assert taken == [256, 256, 256, 257]
    assert all(bool((copy == size % 128).all()) for copy, size in zip(copies, sizes, strict=True))
    starts = [copy.data_ptr() for copy in copies]
    assert starts[2] == starts[0] + 128  # in the rest of the first block
    assert starts[5] == starts[0] + 192
    assert starts[6] == starts[1] + 192


def copies_of(ring: Ring, every: int = 5) -> MemoryCopies:
    copies: Any = MemoryCopies.__new__(MemoryCopies)
    copies._ring, copies._every, copies._rank = ring, every, RANK
    copies.folder = MemoryFolder(Path("/nowhere"))
    copies._thread = copies._error = copies._group = None
    copies._problem, copies._has_warned, copies.messages = "", False, []
    copies._log = copies.messages.append
    return copies


@pytest.mark.parametrize(
    ("free", "memory", "fits"),
    [(2200, 2200, True), (2199, 9999, False), (9999, 2199, False), (2199, 2199, False), (9999, 9999, True)],
)
def test_a_tenth_more_than_all_ranks_of_the_node_need_must_be_free(
    monkeypatch: pytest.MonkeyPatch, free: int, memory: int, fits: bool
):
    monkeypatch.setattr(memory_copies.memory_folder, "free_space", lambda path: free)
    monkeypatch.setattr(memory_copies, "free_bytes", lambda: memory)
    copies = copies_of(Ring((0, 1), None, ()))
    if fits:
        copies._check_free(1000)  # two ranks: 2,200 bytes
    else:
        with pytest.raises(OSError, match=r"^the node needs 2\.2e-06 GB for it and has 2\.2e-06 GB$"):
            copies._check_free(1000)


def test_copies_are_due_at_multiples_of_their_interval():
    assert [step for step in range(1, 13) if copies_of(Ring((1,), None, ())).is_due(step)] == [5, 10]
    assert not copies_of(Ring((1,), None, ()), every=0).is_due(0)


def test_only_the_first_rank_of_a_node_cleans_up():
    assert copies_of(Ring((1, 2), None, ()))._is_first_of_node
    assert not copies_of(Ring((0, 1), None, ()))._is_first_of_node


def test_a_failed_copy_is_told_once_and_a_bug_is_raised():
    copies: Any = copies_of(Ring((1,), None, ()))
    copies.poll()
    copies.wait()
    copies._problem = "no space"
    for _ in range(2):
        copies._thread = threading.Thread(target=int)
        copies._thread.start()
        copies._thread.join()
        copies.poll()
        assert copies._thread is None
    (message,) = copies.messages
    assert message.startswith("the state cannot be copied to memory (no space); training continues")
    copies._thread, copies._error = threading.Thread(target=int), ValueError("a bug")
    copies._thread.start()
    with pytest.raises(ValueError, match="a bug"):
        copies.wait()
    waits = threading.Event()
    copies._thread, copies._error = threading.Thread(target=waits.wait, daemon=True), None
    copies._thread.start()
    copies.poll()  # does not wait
    assert copies._thread is not None
    waits.set()


def test_pieces_of_a_message_have_at_most_64_mib_and_errors_are_described():
    files = [torch.empty(n, dtype=torch.uint8) for n in (3, (64 << 20) + 1)]
    assert [len(piece) for piece in _pieces(files)] == [3, 64 << 20, 1]
    assert _describe(OSError(28, "No space left on device", "/x")) == "No space left on device"
    assert _describe(OSError("it needs more")) == "it needs more"


def test_the_thread_of_a_copy_yields_to_training_alone():
    """Linux keeps a nice value for each thread."""
    found: list[int] = []

    def work() -> None:
        memory_copies._yield_to_training()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [10] or (found == [before] and before > 10)  # only root may lower a nice value
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
