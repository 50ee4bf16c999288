import errno
import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from motionmae import locks
from motionmae.errors import UserError
from motionmae.runs import lease as lease_module
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason, LeaseLost
from motionmae.runs.events import append_row, read_rows
from motionmae.runs.lease import FILE, acquire_lease, current_holder, run_identity
from motionmae.training.setup import run_training
from tests.training.launch import Ranks, run_ranks, wait_until
from tests.training.run_workers import pretrain_to_exit
from tests.training.shards import make_shards, tiny_run


def test_only_the_newest_lease_passes_its_check(tmp_path: Path):
    first = acquire_lease(tmp_path)
    first.check()
    second = acquire_lease(tmp_path)
    second.check()
    assert (first.attempt.number, second.attempt.number) == (1, 2)
    with pytest.raises(LeaseLost, match=r"attempt 2 of this run.*attempt 1 on .* writes nothing more"):
        first.check()


def test_the_lease_knows_which_states_a_newer_attempt_has_passed(tmp_path: Path):
    first = acquire_lease(tmp_path)
    first.begin(0)
    second = acquire_lease(tmp_path)  # from a checkpoint at 90, while the first still computes on a lost node
    assert second.run == first.run == first.attempt.id
    assert not second.has_passed(1, 200)
    second.begin(90)
    with pytest.raises(LeaseLost):
        first.begin(0)
    third = acquire_lease(tmp_path)
    assert third.run == first.run
    assert [third.has_passed(1, position) for position in (89, 90, 91, 200)] == [False, False, True, True]
    assert not third.has_passed(2, 200)
    third.begin(50)  # from an older checkpoint
    fourth = acquire_lease(tmp_path)
    assert [fourth.has_passed(attempt, 60) for attempt in (1, 2, 3)] == [True, True, False]
    assert [tuple(each) for each in fourth.begun] == [(1, 0), (3, 50)]


def test_a_lease_of_an_older_version_has_no_run_and_gets_one(tmp_path: Path):
    (tmp_path / FILE).write_text(json.dumps(HOLDER))
    lease = acquire_lease(tmp_path)
    assert lease.run == lease.attempt.id == acquire_lease(tmp_path).run


@pytest.mark.parametrize(
    ("host", "process", "said"),
    [
        (socket.gethostname(), os.getpid(), f"attempt 1 of this run runs as process {os.getpid()} on "),
        (socket.gethostname(), 2**22 + 1, ""),  # above the kernel's largest number
        ("elsewhere", 2**22 + 1, f"attempt 1 of this run may run as process {2**22 + 1} on elsewhere"),
    ],
    ids=["running here", "gone here", "elsewhere"],
)
def test_only_a_process_of_this_machine_is_known_to_be_gone(host: str, process: int, said: str, tmp_path: Path):
    (tmp_path / FILE).write_text(json.dumps({**HOLDER, "number": 1, "host": host, "pid": process}))
    found = current_holder(tmp_path)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def acquire_often(folder: Path, times: int) -> list[int]:
    return [acquire_lease(folder).attempt.number for _ in range(times)]


def test_concurrent_leases_get_different_numbers(tmp_path: Path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        numbers = pool.starmap(acquire_often, [(tmp_path, 10)] * 4)
    assert sorted(number for those in numbers for number in those) == list(range(1, 41))


def test_an_unreadable_lease_fails_its_check(tmp_path: Path):
    mine = acquire_lease(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(FileNotFoundError):
        mine.check()
    (tmp_path / FILE).write_text("{")
    for act in (mine.check, lambda: acquire_lease(tmp_path)):
        with pytest.raises(UserError, match="is damaged"):
            act()
    with pytest.raises(UserError, match="cannot be written"):
        acquire_lease(tmp_path / "absent")


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


HOLDER = {"number": 1, "id": "a", "host": "here", "pid": 1, "time": 1.0}
DAMAGED = {
    "deep": b"[" * 100_000,
    "no date": json.dumps({**HOLDER, "time": 1e300}).encode(),
    "infinite": json.dumps(HOLDER).replace("1.0", "1e400").encode(),
    "a text for a number": json.dumps({**HOLDER, "number": "1"}).encode(),
    "a huge number": json.dumps(HOLDER).replace('"pid": 1', '"pid": ' + "9" * 5000).encode(),
    "a host of two lines": json.dumps({**HOLDER, "host": "a\n\x1b[31m"}).encode(),
    "a list": b"[]",
    "empty": b"",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_lease_is_one_sentence(tmp_path: Path, content: bytes):
    (tmp_path / FILE).write_bytes(content)
    for read in (current_holder, acquire_lease):
        with pytest.raises(UserError, match=r"lease.json is damaged .*: make sure that no job trains") as refused:
            read(tmp_path)
        assert str(refused.value).isprintable()


def test_a_lease_that_is_a_device_is_not_read(tmp_path: Path):
    (tmp_path / FILE).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="it is not a regular file"):
        current_holder(tmp_path)


@pytest.mark.parametrize("world", [1, 2])
def test_a_replaced_attempt_writes_nothing(tmp_path: Path, world: int):
    """The ranks of the old attempt are suspended while a new attempt starts and finishes."""
    config = tiny_run(make_shards(tmp_path / "shards"), tmp_path / "runs")
    folder = RunFolder(config.run_folder)
    old = Ranks(world, pretrain_to_exit, config)
    wait_until(lambda: len(list(read_rows(folder.metrics))) >= 3, "step 3")
    for rank in range(world):
        old.send(rank, signal.SIGSTOP)
    assert run_ranks(1, run_training, config) == [EndReason.FINISHED]
    before = content_of(folder.path)
    for rank in range(world):
        old.send(rank, signal.SIGCONT)
    for status, sentence in old.results():
        assert status == "LEASE_LOST"
        assert f"has taken over {folder.path}" in sentence
    assert content_of(folder.path) == before
    assert [row["number"] for row in read_rows(folder.events) if row["kind"] == "start"] == [1, 2]


@pytest.mark.parametrize("every", [2, 1000])
def test_a_command_with_other_settings_does_not_take_the_lease(tmp_path: Path, every: int):
    """A running run is protected before and after its first checkpoint."""
    config = tiny_run(make_shards(tmp_path / "shards"), tmp_path / "runs", checkpoint={"every_steps": every})
    folder = RunFolder(config.run_folder)
    run = Ranks(1, pretrain_to_exit, config)
    wait_until(lambda: len(list(read_rows(folder.metrics))) > 2, "a step after the first checkpoint")
    run.send(0, signal.SIGSTOP)
    other = make_shards(tmp_path / "other", samples=10)
    mistyped = {
        "cannot be resumed with seed=1 (was 0)": config.updated({"seed": 1}),
        "shards was": config.updated({"data.shards": str(other)}),
    }
    answers = {message: Ranks(1, pretrain_to_exit, wrong).results() for message, wrong in mistyped.items()}
    run.send(0, signal.SIGCONT)
    for message, ((status, sentence),) in answers.items():
        assert status == "USER_ERROR"
        assert message in sentence
    assert run.results() == [("FINISHED", "")]
    assert [row["number"] for row in read_rows(folder.events) if row["kind"] == "start"] == [1]


def test_the_lease_names_its_process_and_time(tmp_path: Path):
    before = time.time()
    lease = acquire_lease(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    assert (content["pid"], content["host"], content["number"]) == (os.getpid(), socket.gethostname(), 1)
    assert before <= content["time"] <= time.time()
    assert (content["id"], content["run"], content["begun"]) == (lease.attempt.id, lease.attempt.id, [])
    lease.begin(7)
    assert json.loads((tmp_path / FILE).read_text())["begun"] == [[1, 7]]
    lease.begin(7)  # a second time, after a rollback to the same place
    assert json.loads((tmp_path / FILE).read_text())["begun"] == [[1, 7]]


def test_the_identity_of_a_run_is_that_of_its_first_attempt(tmp_path: Path):
    assert run_identity(tmp_path) == ""
    first = acquire_lease(tmp_path)
    acquire_lease(tmp_path)
    assert run_identity(tmp_path) == first.attempt.id
    (tmp_path / FILE).write_text("{")
    assert run_identity(tmp_path) == ""


@pytest.mark.parametrize("kind", ["stop", "finish"])
def test_an_attempt_that_has_said_its_end_holds_nothing(tmp_path: Path, kind: str):
    assert current_holder(tmp_path) == ""
    lease = acquire_lease(tmp_path)
    assert current_holder(tmp_path) != ""
    append_row(tmp_path / "events.jsonl", attempt="another", kind=kind, step=1)
    assert current_holder(tmp_path) != ""
    append_row(tmp_path / "events.jsonl", attempt=lease.attempt.id, kind=kind, step=1)
    assert current_holder(tmp_path) == ""


def hold_lock(folder: Path, number: int) -> None:
    with (folder / ".lease.lock").open("ab") as file:
        assert locks.acquire(file, posix=True)
        (folder / "held").touch()
        time.sleep(number)


def test_a_lease_waits_for_another_process_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    holder = multiprocessing.get_context("fork").Process(target=hold_lock, args=(tmp_path, 60))
    holder.start()
    wait_until((tmp_path / "held").exists, "the lock")
    monkeypatch.setattr(lease_module, "LOCK_TIMEOUT", 0.2)
    with pytest.raises(UserError, match=r"cannot be written \(another process holds \.lease\.lock\)"):
        acquire_lease(tmp_path)
    holder.kill()
    holder.join()
    acquire_lease(tmp_path)


@pytest.mark.parametrize(
    ("number", "works"), [("ENOLCK", True), ("ENOSYS", True), ("EOPNOTSUPP", True), ("EIO", False)]
)
def test_a_file_system_without_locks_has_leases_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, works: bool
):
    def acquire(*_: object, **__: object) -> bool:
        raise OSError(getattr(errno, number), number)

    monkeypatch.setattr(locks, "acquire", acquire)
    if works:
        assert acquire_lease(tmp_path).attempt.number == 1
    else:
        with pytest.raises(UserError, match="EIO"):
            acquire_lease(tmp_path)


def test_a_lease_leaves_no_open_file(tmp_path: Path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        acquire_lease(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
