import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from submitit.core.utils import UncompletedJobError

from motionmae.config import load_config
from motionmae.distributed.stop_requests import Stopped
from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason, StorageError
from slurm import job, preflight, scontrol
from slurm.attempt_log import AttemptLog
from slurm.batch.chain import Chain
from slurm.job import TrainJob, rendezvous
from slurm.preflight import BadNode, Unreachable
from tests.slurm.fakes.controller import Controller

_SLURM = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[03-05,11]",
}


def _rendezvous(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, str]:
    for key in ("SLURM_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    return rendezvous(submitit.JobEnvironment())


def test_slurm_ranks_meet_on_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _rendezvous(monkeypatch, **_SLURM)
    assert 20_000 <= int(found.pop("MASTER_PORT")) < 26_000
    assert found == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "2",
        "MASTER_ADDR": "gpu03",
    }


def test_a_given_address_and_port_win(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _rendezvous(monkeypatch, **_SLURM, MASTER_ADDR="10.1.0.7", MASTER_PORT="29500")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.1.0.7", "29500")


def test_uneven_nodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = {"SLURM_STEP_TASKS_PER_NODE": "3,2(x2),1", "SLURM_NODEID": "3", "SLURM_PROCID": "7", "SLURM_LOCALID": "0"}
    found = _rendezvous(monkeypatch, **_SLURM | uneven)
    assert (found["LOCAL_WORLD_SIZE"], found["GROUP_RANK"]) == ("1", "3")


def test_the_port_changes_with_job_and_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = {
        _rendezvous(monkeypatch, **_SLURM | {"SLURM_JOB_ID": str(job), "SLURM_RESTART_COUNT": str(restart)})[
            "MASTER_PORT"
        ]
        for job in range(4711, 4715)
        for restart in range(3)
    }
    assert len(ports) == 12


def test_local_ranks_meet_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _rendezvous(
        monkeypatch,
        SUBMITIT_EXECUTOR="local",
        SUBMITIT_LOCAL_JOB_ID="99",
        SUBMITIT_LOCAL_NTASKS="2",
        SUBMITIT_LOCAL_JOB_NUM_NODES="1",
        SUBMITIT_LOCAL_GLOBALID="1",
        SUBMITIT_LOCAL_LOCALID="1",
        MOTIONMAE_LOCAL_RESTARTS="3",
    )
    assert (found["MASTER_ADDR"], found["RANK"], found["LOCAL_RANK"]) == ("127.0.0.1", "1", "1")
    monkeypatch.setenv("MOTIONMAE_LOCAL_RESTARTS", "4")
    assert rendezvous(submitit.JobEnvironment())["MASTER_PORT"] != found["MASTER_PORT"]


def test_a_job_with_gpus_never_trains_on_the_cpu_instead() -> None:
    devices = [
        TrainJob(load_config("demo", [f"launch.gpus_per_node={gpus}", f"engine.device={device}"])).config.engine.device
        for gpus in (0, 8)
        for device in ("auto", "cpu", "cuda")
    ]
    assert devices == ["auto", "cpu", "cuda", "cuda", "cpu", "cuda"]


def test_a_requeued_job_is_the_very_job_that_was_submitted() -> None:
    job = TrainJob(load_config("demo"))
    before = pickle.dumps(job)
    again = job.checkpoint()
    assert pickle.dumps(again.function) == before
    assert vars(again.function) == {"config": job.config}
    assert (again.args, again.kwargs) == ((), {})


def test_submitting_needs_no_torch() -> None:
    """It takes seconds to import, and a login node may lack it."""
    modules = "slurm.submission, slurm.batch.supervisor"
    text = f"import sys; sys.path.insert(0, '.'); import {modules}; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", text], cwd=root).returncode == 0


@pytest.mark.parametrize(
    ("error", "end", "reason", "excluded"),
    [
        (Unreachable("no answer", ["gpu03", "gpu11"]), EndReason.LOST_PEERS, "no answer", ["gpu03", "gpu11"]),
        (Unreachable("an all-reduce fails"), EndReason.LOST_PEERS, "an all-reduce fails", []),
        (BadNode("no GPU"), EndReason.BAD_NODE, "node gpu05 failed: no GPU", []),  # the supervisor logs it
    ],
)
def test_a_failed_preflight_check_names_its_node_and_excludes_silent_ones_at_once(
    error: Exception,
    end: EndReason,
    reason: str,
    excluded: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load_config("demo", [f"output_dir={tmp_path}"])
    config.run_folder.mkdir()
    _rendezvous(monkeypatch, **_SLURM)

    def fail(*arguments: object) -> None:
        raise error

    def end_process(*arguments: object) -> None:
        raise SystemExit(arguments)

    monkeypatch.setattr(preflight, "preflight", fail)
    monkeypatch.setattr(preflight, "abort", end_process)  # it would end this process
    with pytest.raises(SystemExit) as ended:
        TrainJob(config).preflight(submitit.JobEnvironment())
    assert ended.value.code == (end, reason)
    assert list(AttemptLog(config.run_folder).excluded_nodes()) == excluded


class Place:
    """What submitit says about this rank."""

    def __init__(self, cluster: str = "slurm", job_id: str = "7", log: Path | None = None) -> None:
        self.cluster, self.job_id, self.paths = cluster, job_id, SimpleNamespace(stdout=log)


@pytest.mark.parametrize(
    ("cluster", "line", "preempted"),
    [
        ("slurm", "JobState=RUNNING PreemptTime=2026-11-30T12:00:00", True),
        ("slurm", "JobState=RUNNING PreemptTime=None", False),
        ("slurm", "JobState=COMPLETING PreemptTime=2026-11-30T12:00:00", False),
        ("slurm", "", False),
        ("local", "JobState=RUNNING PreemptTime=2026-11-30T12:00:00", False),
    ],
)
def test_slurm_says_whether_it_preempts_a_job(
    cluster: str, line: str, preempted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = Controller()
    controller.answers["scontrol show job -o 7"] = line
    monkeypatch.setattr(scontrol, "_run", controller.run)
    assert job.is_preempted(Place(cluster)) is preempted  # type: ignore[arg-type]
    assert len(controller.calls) == (cluster == "slurm")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UncompletedJobError("timed-out too many times."), 2, "error: timed-out too many times. (launch.max_timeouts)"),
        (FileNotFoundError(2, "No such file", "scontrol"), 75, "this node cannot requeue the job"),
        (subprocess.CalledProcessError(1, ["scontrol"]), 75, "this node cannot requeue the job"),
    ],
)
def test_a_requeue_that_fails_has_a_status_of_its_own(
    error: Exception, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def handler(number: int, frame: object) -> None:
        assert (number, frame) == (signal.SIGUSR2, None)
        raise error

    with pytest.raises(SystemExit) as found:
        job.requeue(handler)
    assert found.value.code == status
    shown = capsys.readouterr()
    assert said in (shown.err if status == 2 else shown.out)


class Member:
    standby = False

    def __init__(self) -> None:
        self.left: list[int] = []

    def leave(self, status: int) -> None:
        self.left.append(status)


@pytest.mark.parametrize(("end", "status"), [("finished", 0), (SystemExit(77), 77), (SystemExit(None), 0)])
def test_a_rank_announces_its_status(end: str | SystemExit, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    member = Member()

    def run(self: TrainJob, membership: object) -> str:
        assert membership is found
        if isinstance(end, SystemExit):
            raise end
        return end

    monkeypatch.setattr(TrainJob, "run", run)
    for found in (member, None):
        monkeypatch.setattr(job, "join", lambda given=found: given)
        if isinstance(end, SystemExit):
            with pytest.raises(SystemExit):
                TrainJob(load_config("demo"))()
        else:
            assert TrainJob(load_config("demo"))() == end
    assert member.left == [status]


PREEMPTS, REQUEUED = "JobState=RUNNING PreemptTime=2026-11-30T12:00:00", 255


@pytest.mark.parametrize(
    ("rank", "end", "line", "links", "status"),
    [
        (0, EndReason.FINISHED, "", False, None),
        (5, EndReason.FINISHED, "", False, None),
        (0, EndReason.PREEMPTED, "", False, REQUEUED),
        (0, EndReason.PREEMPTED, "", True, 75),  # the next job of the chain goes on
        (0, EndReason.STOPPED, PREEMPTS, False, 81),
        (0, EndReason.TERMINATED, "JobState=RUNNING PreemptTime=None", False, 143),
        (0, EndReason.TERMINATED, PREEMPTS, False, REQUEUED),
        (0, EndReason.TERMINATED, PREEMPTS, True, 75),
        (0, Stopped(EndReason.PREEMPTED), "", False, REQUEUED),  # before training began
        (5, EndReason.PREEMPTED, "", False, 0),  # rank 0 decides for the job
        (5, EndReason.STOPPED, "", False, 0),
        (5, EndReason.TERMINATED, PREEMPTS, False, 0),
        (5, Stopped(EndReason.TERMINATED), "", False, 0),
        (5, UserError("no shards"), "", False, 2),  # an error is of the rank that has it
        (0, StorageError("no answer"), "", False, 74),
        (0, ValueError("a bug"), "", False, 1),
    ],
    ids=str,
)
def test_rank_0_decides_for_the_job_at_a_stop_and_every_rank_reports_its_error(
    rank: int, end: EndReason | Exception, line: str, links: bool, status: int | None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def train(*arguments: object, **values: object) -> EndReason:
        if isinstance(end, Exception):
            raise end
        return end

    def requeue(number: int, frame: object) -> None:
        sys.exit(REQUEUED)

    for key, value in _rendezvous(monkeypatch, **_SLURM | {"SLURM_PROCID": str(rank)}).items():
        monkeypatch.setenv(key, value)  # the job sets them, too; they are taken back after the test
    controller = Controller()
    controller.answers["scontrol show job -o 4711"] = line
    monkeypatch.setattr(scontrol, "_run", controller.run)
    setup = SimpleNamespace(run_training=train)  # the real module imports DeepSpeed, which takes seconds
    monkeypatch.setitem(sys.modules, "motionmae.training.setup", setup)
    monkeypatch.setattr(TrainJob, "preflight", lambda *_: None)
    monkeypatch.setattr(Chain, "goes_on_without", lambda _: links)
    run = TrainJob(load_config("demo", ["monitoring.enabled=false"])).run
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        if status is None:
            assert run(None) == "finished"
        else:
            with pytest.raises(SystemExit) as ended:
                run(None)
            assert ended.value.code == status
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    said = {2: "error: no shards\n", 74: "StorageError: no answer\n", 1: "ValueError: a bug\n"}.get(status or 0, "")
    shown = capsys.readouterr().err
    assert shown.endswith(said)
    assert ("Traceback" in shown) is (status in (1, 74))
    assert ("stopped by a signal before training began" in shown) is isinstance(end, Stopped)


BECOME = """
import sys
from pathlib import Path
from types import SimpleNamespace
from motionmae.runs.events import process_age
from slurm.job import become_rank
print("of the standby process")
before = process_age()
become_rank(SimpleNamespace(paths=SimpleNamespace(stdout=Path(sys.argv[1]))))
print("of the rank")
print("an error", file=sys.stderr)
sys.stdout.flush()
assert process_age() < before, (process_age(), before)
"""


def test_a_standby_process_writes_to_the_log_of_its_rank(tmp_path: Path) -> None:
    log = tmp_path / "7_0_log.out"
    log.write_text("before\n")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", BECOME, str(log)], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "of the standby process\n", "")
    assert sorted(log.read_text().splitlines()) == ["an error", "before", "of the rank"]
    assert log.read_text().startswith("before\n")
