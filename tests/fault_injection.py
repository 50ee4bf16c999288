"""Kill a piece of code before each of its file system operations, or record these operations in order.

An action is a module-level function ``action(folder)``. It runs in a child process on a copy of a seed folder::

    for kill in kill_points(save_twice, seed, tmp_path / "killed"):
        assert reader_finds_old_or_new(kill.folder)

Operations are fsync and Python's audit events below the folder: open for writing, rename, remove, mkdir, rmdir, link,
symlink, truncate. One process imports the action's module once and forks for each kill point.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILLED = 9
_DESCRIPTORS = Path("/proc/self/fd")
_LIMIT = 500  # operations of one action
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_ONE_PATH = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.truncate": None}  # name -> position of dir_fd
_TWO_PATHS = {"os.rename": (2, 3), "os.link": (2, 3), "os.symlink": (2, 2)}

Action = Callable[[Path], object]


@dataclass(frozen=True)
class Operation:
    """One file system operation; paths are relative to the action's folder."""

    name: str  # "open", "fsync", or the last part of the audit event: "rename", "remove", ...
    path: str
    target: str = ""  # of a rename or link


@dataclass(frozen=True)
class Kill:
    """State of the folder after the action was killed before its ``number``-th operation."""

    folder: Path
    number: int
    done: list[Operation]  # operations before the kill
    next: Operation | None  # the operation that did not happen; None if the action ran to its end

    def __str__(self) -> str:
        return f"killed before operation {self.number}: {self.next}"


def kill_points(action: Action, seed: Path, work: Path) -> Iterator[Kill]:
    """Yield the folder after a kill before operation 0, 1, 2, ... of ``action``, and after the whole action.

    Args:
        seed: folder that each run of the action gets a copy of; may be absent.
        work: folder for the copies; created.
    """
    yield from _run(action, seed, work, "kill")


def operations(action: Action, seed: Path, work: Path) -> list[Operation]:
    """Run ``action`` once to its end and return its operations in order."""
    (whole,) = _run(action, seed, work, "record")
    return whole.done


def _run(action: Action, seed: Path, work: Path, mode: str) -> list[Kill]:
    work.mkdir(parents=True)
    source = sys.modules[action.__module__].__file__
    command = [sys.executable, __file__, str(source), action.__qualname__, str(seed), str(work), mode]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(str, sys.path)))}
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert child.returncode == 0, child.stderr
    return [_kill(work / str(number), number) for number in range(len(list(work.glob("*.log"))))]


def _kill(folder: Path, number: int) -> Kill:
    rows = [Operation(**json.loads(line)) for line in folder.with_suffix(".log").read_text().splitlines()]
    finished = folder.with_suffix(".done").exists()
    return Kill(folder, number, rows if finished else rows[:-1], None if finished else rows[-1])


def _main(source: str, name: str, seed: str, work: str, mode: str) -> None:
    """Run in the child process: fork once for each kill point until the action ends by itself."""
    spec = importlib.util.spec_from_file_location("action_module", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["action_module"] = module
    spec.loader.exec_module(module)
    action = getattr(module, name)
    for number in range(_LIMIT):
        folder = Path(work, str(number))
        if Path(seed).is_dir():
            shutil.copytree(seed, folder, symlinks=True)
        else:
            folder.mkdir()
        child = os.fork()
        if child == 0:
            _act(action, folder, number if mode == "kill" else _LIMIT)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            folder.with_suffix(".done").touch()
            return
        if status != KILLED:
            raise SystemExit(f"the action failed, killed before operation {number}")
    raise SystemExit(f"the action needs more than {_LIMIT} operations")


def _act(action: Action, folder: Path, last: int) -> None:
    """Run the action in this process and end the process before operation ``last``."""
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    seen = 0
    fsync = os.fsync

    def note(operation: Operation | None) -> None:
        nonlocal seen
        if operation is None:
            return
        os.write(log, (json.dumps(vars(operation)) + "\n").encode())
        if seen == last:
            os._exit(KILLED)
        seen += 1

    def recorded_fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        path = _inside(folder, _DESCRIPTORS / str(number))
        note(None if path is None else Operation("fsync", path))
        fsync(file)

    os.fsync = recorded_fsync
    sys.addaudithook(lambda event, arguments: note(_operation(folder, event, arguments)))
    try:
        action(folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _operation(folder: Path, event: str, arguments: tuple[Any, ...]) -> Operation | None:
    """Return the operation of an audit event; None if it changes nothing in the folder."""
    if event == "open":
        path, _, flags = arguments
        found = None if isinstance(path, int) or not flags & _WRITES else _inside(folder, path)
        return None if found is None else Operation("open", found)
    if event in _ONE_PATH:
        place = _ONE_PATH[event]
        found = _inside(folder, arguments[0], -1 if place is None else arguments[place])
        return None if found is None else Operation(event.partition(".")[2], found)
    if event in _TWO_PATHS:
        before, after = _TWO_PATHS[event]
        one = _inside(folder, arguments[0], arguments[before]) if event != "os.symlink" else str(arguments[0])
        two = _inside(folder, arguments[1], arguments[after])
        return None if two is None and one is None else Operation(event.partition(".")[2], one or "", two or "")
    return None


def _inside(folder: Path, path: Any, dir_fd: int = -1) -> str | None:
    """Return ``path`` relative to the folder; None if it lies outside."""
    found = Path(os.fsdecode(path))
    if found.parent == _DESCRIPTORS:
        found = found.readlink()
    base = (_DESCRIPTORS / str(dir_fd)).readlink() if dir_fd >= 0 else Path.cwd()
    found = base / found
    return str(found.relative_to(folder)) if found.is_relative_to(folder) else None


if __name__ == "__main__":
    _main(*sys.argv[1:])
