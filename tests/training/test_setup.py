"""Set-up of an attempt: what it prints and records at its start, and the parts that it builds."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from motionmae.config import config_yaml, load_config, save_config
from motionmae.distributed.context import DistributedContext
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.models.motionmae import build_motionmae
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import LeaseLost
from motionmae.runs.events import EventLog, Kind
from motionmae.runs.history import Attempt
from motionmae.training import setup
from motionmae.training.callbacks.base import ProgressLine
from motionmae.training.resume import SavedTask
from motionmae.training.setup import (
    build_engine,
    build_loader,
    log_settings,
    log_start,
    record_events,
    start_watchdog,
)
from motionmae.training.step_timer import StartupTimer
from tests.training.launch import run_ranks
from tests.training.replacements import Told
from tests.training.run_workers import run_all
from tests.training.shards import make_shards, tiny_run


def test_a_new_run_prints_the_settings_that_are_not_the_defaults(tmp_path: Path):
    config = tiny_run(
        make_shards(tmp_path / "shards", samples=3), tmp_path / "runs", optim={"epochs": 1, "warmup_epochs": 0}
    )
    (tmp_path / "mine.yaml").write_text(config_yaml(config))
    command = [sys.executable, "-m", "motionmae", "pretrain", "--config", str(tmp_path / "mine.yaml")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    settings = {key: values for key, *values in (re.split("  +", line.strip()) for line in printed if line[:2] == "  ")}
    assert settings["clip.size"] == ["32", "(default 224)"]
    assert settings["optim.epochs"] == ["1", "(default 1600)"]
    assert printed[0] == f"{len(settings)} settings differ from the defaults:"
    assert printed[len(settings) + 1] == f"all settings: {config.run_folder}/config.yaml"
    assert load_config(f"{config.run_folder}/config.yaml") == config
    assert " starts: " in printed[len(settings) + 2]


def test_a_resumed_run_prints_only_the_settings_that_it_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tiny_run(tmp_path / "shards", tmp_path)
    folder, progress = RunFolder(config.run_folder), ProgressLine(total_steps=9, enabled=True)
    folder.create()
    save_config(config, folder.config)
    log_settings(config, folder, progress)
    assert capsys.readouterr().out == ""
    log_settings(config.updated({"log.every_steps": 7}), folder, progress)
    assert capsys.readouterr().out.splitlines() == [
        "1 setting differs from the last attempt of this run:",
        "  log.every_steps  7  (was 1)",
        f"all settings: {folder.config}",
    ]


NOTHING: Any = None
CPU = torch.device("cpu")


def a_rank(rank: int = 0, world: int = 2) -> DistributedContext:
    return DistributedContext(rank=rank, world=world, local_rank=rank, device=CPU)


class Sink(Told):
    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def two_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "gather_objects", lambda mine: ["n1", "n1", "n2"])
    monkeypatch.setattr(setup.socket, "gethostname", lambda: "n1")
    monkeypatch.setattr(setup, "git_revision", lambda: "abc")
    monkeypatch.setattr(setup, "process_age", lambda: 2.5)


def a_lease(tmp_path: Path, **replaced: Any) -> Any:
    attempt = Attempt(number=3, id="third", job="4711", restart=1, start=2)
    return SimpleNamespace(attempt=attempt, check=Mock(), **replaced)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_start_of_an_attempt_has_all_its_facts(rank: int, two_hosts: None, tmp_path: Path):
    folder, sink, lease = RunFolder(tmp_path / "run"), Sink(), a_lease(tmp_path)
    folder.create()
    with record_events(folder, a_rank(rank), lease, [sink]) as events:  # type: ignore[list-item]
        assert (events.attempt, sink.closed) == ("third", 0)
    assert sink.events == [
        {"kind": "start", "step": 0, "number": 3, "world": 2, "device": "cpu", "host": "n1", "hosts": ["n1", "n2"],
         "age": 2.5, "pid": os.getpid(), "torch": torch.__version__, "code": "" if rank else "abc", "job": "4711",
         "restart": 1, "start": 2},
    ]  # fmt: skip
    assert sink.closed == 1
    assert folder.events.is_file() == (rank == 0)  # rank 0 alone writes rows, and only under its lease
    assert lease.check.called == (rank == 0)


@pytest.mark.parametrize(
    ("error", "lost", "reason", "text"),
    [
        (ValueError("a bug"), None, "crashed", "ValueError: a bug"),
        (UserError("no room"), None, "user_error", "UserError: no room"),
        (ValueError("a bug"), OSError("no disk"), "crashed", "ValueError: a bug"),
    ],
)
def test_the_error_that_ends_an_attempt_is_its_last_row(
    error: Exception, lost: Exception | None, reason: str, text: str, two_hosts: None, tmp_path: Path
):
    sink, lease = Sink(), a_lease(tmp_path)
    sinks: Any = [sink]

    def fail() -> None:
        with record_events(RunFolder(tmp_path), a_rank(1), lease, sinks) as events:
            events.event(Kind.FIRST_STEP, 5)
            lease.check.side_effect = lost
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert raised.value is error
    assert sink.events[-1] == {"kind": "stop", "step": 5, "reason": reason, "error": text}
    assert sink.closed == 1


def test_a_lost_lease_is_the_error_of_an_attempt(two_hosts: None, tmp_path: Path):
    """What came before it, such as the loss of other ranks, is a consequence."""
    sink, lease = Sink(), a_lease(tmp_path)
    lease.check.side_effect = LeaseLost("attempt 4 has taken it")
    with pytest.raises(LeaseLost), record_events(RunFolder(tmp_path), a_rank(1), lease, [sink]):  # type: ignore[list-item]
        raise RuntimeError("connection closed by peer")
    assert len(sink.events) == 1  # the newer attempt writes the rows now
    assert sink.closed == 1


def test_a_hang_is_a_row_with_the_stacks_and_ends_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told, made = Told(), list[Any]()
    monkeypatch.setattr(setup, "Watchdog", lambda *words, **named: made.append((words, named)) or Mock())
    config = tiny_run(tmp_path, tmp_path).updated({"engine.compile": True, "watchdog.startup_seconds": 77})
    folder, events = RunFolder(tmp_path / "run"), EventLog("third", [told])  # type: ignore[list-item]
    events.last_step = 6
    watchdog: Any = start_watchdog(config, folder, a_rank(1), events)
    watchdog.expect.assert_called_once_with("starting up", 77)
    (((limits, stacks, report), named),) = made
    assert (limits, stacks, named) == (config.watchdog, folder.logs / "stacks_third_rank1.txt", {"compiles": True})
    report("step 7 takes longer")
    assert told.events == [
        {"kind": "hang", "step": 6, "error": "step 7 takes longer", "stacks": str(stacks)},
        {"kind": "stop", "step": 6, "reason": "hung", "error": "step 7 takes longer"},
    ]


def test_the_loader_of_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(setup, "ClipLoader", lambda *words, **named: asked.extend((*words, named)))
    config = tiny_run(tmp_path, tmp_path).updated({"seed": 4})
    task: Any = SimpleNamespace(needs_flow=True, needs_labels=False)
    build_loader(config, task, a_rank(1))
    build_loader(config, task, DistributedContext(0, 1, 0, torch.device("cuda", 0)))
    expected = {"seed": 4, "batch": 6, "micro_batch_size": 3, "flow": True, "labelled": False}
    assert asked == [
        config.data, config.clip, {**expected, "rank": 1, "world": 2, "pinned": False},
        config.data, config.clip, {**expected, "rank": 0, "world": 1, "pinned": True},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "init", "resumes", "in_turn"),
    [
        ("pretrain", "scratch", False, False),
        ("pretrain", "scratch", True, False),
        ("pretrain", "somewhere", False, True),  # rank 0 reads first, and refuses for all
        ("pretrain", "somewhere", True, False),
        ("finetune", "scratch", False, True),
        ("finetune", "scratch", True, True),  # a probe reads its encoder
    ],
)
def test_the_model_is_built_at_once_on_all_ranks_if_no_file_is_read(
    task: str, init: str, resumes: bool, in_turn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order: list[Any] = []
    for name in ("import_deepspeed", "Engine"):
        monkeypatch.setattr(setup, name, lambda *words, name=name: order.append((name, *words)) or name)
    monkeypatch.setattr(setup, "rank_zero_first", lambda rank, action: order.append("in turn") or action())
    monkeypatch.setattr(setup.sharded, "restore", lambda *words: order.append(("restore", *words)))
    work = Mock(build_model=lambda *words: order.append(("build", *words)) or "model", parameter_groups=lambda m: [m])
    work.choose_weights = lambda *words: order.append(("choose", *words))
    changes = {"pretrain.init": init} if task == "pretrain" else {
        "task": task, "finetune.init": init, "finetune.mixup": 0.0, "finetune.cutmix": 0.0,
    }  # fmt: skip
    config = tiny_run(tmp_path, tmp_path).updated(changes)
    checkpoint = SimpleNamespace(state=lambda schema: SavedTask(task={"a": 1})) if resumes else None
    saved = {"a": 1} if resumes else None
    startup, rank = StartupTimer(), a_rank()
    loader: Any = SimpleNamespace(manifest="manifest")
    assert build_engine(config, work, rank, loader, checkpoint, startup) == "Engine"  # type: ignore[arg-type]
    assert order == [
        ("import_deepspeed", CPU), ("choose", rank, saved), *(["in turn"] if in_turn else []),
        ("build", "manifest", saved), ("Engine", "model", ["model"], config, rank),
        *([("restore", "Engine", rank, checkpoint)] if resumes else []),
    ]  # fmt: skip
    assert list(startup.seconds) == ["imports", "import_deepspeed", "engine", *(["restore"] if resumes else [])]


@pytest.mark.parametrize("resumes", [True, False])
def test_the_first_line_of_an_attempt(resumes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "process_age", lambda: 9.0)
    told = Told()
    sources = SimpleNamespace(is_mixture=not resumes, describe=lambda batch: f"a mixture of {batch}")
    trainer: Any = SimpleNamespace(
        events=EventLog("a", [told]), total_steps=9, config=tiny_run(tmp_path, tmp_path), rank=a_rank(),  # type: ignore[list-item]
        engine=SimpleNamespace(parameters={n: torch.nn.Parameter(torch.zeros(1000, 80)) for n in "abc"}, accumulation=2,
                               stage=1, precision="bf16"),
        state=SimpleNamespace(step=4), folder=RunFolder(Path("runs/tiny")), log=told.lines.append,
        loader=SimpleNamespace(sources=sources),
    )  # fmt: skip
    startup = StartupTimer()
    startup.seconds = {"imports": 5.0, "find_checkpoint": 0.5, "restore": 0.25}
    checkpoint: Any = SimpleNamespace(step=4, folder=Path("x/step-4"), source="memory") if resumes else None
    log_start(trainer, checkpoint, startup)
    begins = "resumes at step 4 from memory" if resumes else "starts"
    assert told.lines == [
        f"runs/tiny {begins}: 9 steps of 6 videos, 0.2 M parameters, 2 x cpu, 2 x 3 videos a rank, ZeRO 1, bf16",
        *([] if resumes else ["samples of an epoch: a mixture of 6"]),
    ]
    resume = {"kind": "resume", "step": 4, "path": "step-4", "source": "memory", "seconds": 0.75}
    ready = {"kind": "ready", "step": 4, "total_steps": 9, "seconds": 9.0, "startup": startup.seconds}
    assert told.events == [*([resume] if resumes else []), ready]


def test_a_probe_keeps_its_encoder_over_attempts_and_no_other_attempt_s(tmp_path: Path):
    """The encoder that an attempt without a checkpoint left is replaced; that of a resumed probe stays."""
    shards = make_shards(tmp_path / "shards", samples=3, classes=2)
    init = tmp_path / "encoder.pth"
    torch.save({"model": build_motionmae(tiny_run(shards, tmp_path)).state_dict()}, init)
    probe = {"mode": "linear", "mixup": 0.0, "cutmix": 0.0, "layer_decay": 1.0, "init": str(init)}
    config = tiny_run(shards, tmp_path / "runs", finetune=probe, optim={"epochs": 2}).updated({"task": "finetune"})
    folder = RunFolder(config.run_folder)
    folder.create()
    (folder.path / "stop").touch()
    write_json(folder.lease, {"number": 0, "id": "earlier", "host": "elsewhere", "pid": 1, "time": 0.0})
    save_file(build_motionmae(config.updated({"seed": 7})).state_dict(), folder.encoder)
    left_over = folder.encoder.read_bytes()
    assert run_ranks(1, run_all, [config]) == [["STOPPED"]]
    first = folder.encoder.stat()
    assert folder.encoder.read_bytes() != left_over
    init.unlink()  # deleted by its pre-training
    assert run_ranks(1, run_all, [config]) == [["FINISHED"]]
    assert (folder.encoder.stat().st_ino, folder.encoder.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
