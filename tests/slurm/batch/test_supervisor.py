"""The supervisor with real processes and a real roll call, on a pretended Slurm."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from motionmae.runs.end_reason import EndReason
from slurm.batch.member import start_ticks

ROOT = Path(__file__).resolve().parents[3]
FAKES = Path(__file__).resolve().parents[1] / "fakes"
FINISH = {"0": "finish", "1": "finish"}


class Job:
    """A job on ``nodes`` whose ranks do ``acts``, one map of rank to act for each start."""

    def __init__(self, folder: Path, acts: list[dict[str, str]], *options: str, nodes: int = 2, ranks: int = 1) -> None:
        self.folder, self.run = folder, folder / "run"
        self.run.mkdir()
        programs = folder / "bin"
        programs.mkdir()
        for name in ("srun", "scancel", "scontrol", "sbatch", "squeue", "sinfo"):
            (programs / name).write_text(f"#!{sys.executable}\n" + (FAKES / "fake_slurm.py").read_text())
            (programs / name).chmod(0o755)
        names = ",".join(f"node{number + 1}" for number in range(nodes))
        job = {"JobState": "RUNNING", "Restarts": 0, "NodeList": names, "NumNodes": nodes, "BatchHost": "node1"}
        (folder / "job.json").write_text(json.dumps(job))
        (folder / "acts.json").write_text(json.dumps(acts))
        variables = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FAKE_SLURM": str(folder),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": names,
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_PARTITION": "low",
        }
        main = "import sys; from slurm.batch import supervisor as s; s.EXIT_SECONDS = 1; sys.exit(s.main(sys.argv[1:]))"
        command = [sys.executable, "-c", main, str(self.run), f"--ntasks-per-node={ranks}"]
        step = ["--", "srun", "--output", "%j_%t.out", "--", sys.executable, str(FAKES / "rank.py"), str(folder)]
        self.process = subprocess.Popen(
            [*command, *options, *step],
            env={key: value for key, value in os.environ.items() if not key.startswith("SLURM")} | variables,
            cwd=ROOT,
            stdout=(folder / "log").open("w"),
            stderr=subprocess.STDOUT,
        )

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and the log."""
        self.wait_for(lambda: self.process.poll() is not None)
        return self.process.returncode, (self.folder / "log").read_text()

    def rows(self, name: str) -> list[dict[str, object]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ranks(self) -> list[tuple[object, ...]]:
        """Start, rank, nodes, and whether it was a standby process, of every rank that ever trained."""
        keys = ("start", "SLURM_PROCID", "SLURM_JOB_NODELIST", "standby")
        return sorted(tuple(row[key] for key in keys) for row in self.rows("ranks.jsonl"))

    def failures(self) -> list[tuple[object, object]]:
        rows = [row for row in self.rows("run/attempts.jsonl") if row["what"] == "failure"]
        return [(row["reason"], row["node"]) for row in rows]

    def wait_for(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 120  # the machine may be busy with other tests
        while not holds():
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.02)

    def standbys(self) -> int:
        path = self.folder / "joined.txt"
        return path.read_text().count("standby") if path.exists() else 0


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    return lambda acts, *options, **values: Job(tmp_path, acts, *options, **values)


def test_a_run_that_finishes_is_one_attempt(job: Callable[..., Job]) -> None:
    done = job([{**FINISH, "2": "finish", "3": "finish"}], nodes=2, ranks=2)
    assert done.end()[0] == 0
    assert done.ranks() == [(0, str(rank), "node1,node2", False) for rank in range(4)]
    assert [row["SLURM_NODEID"] for row in sorted(done.rows("ranks.jsonl"), key=lambda row: row["SLURM_PROCID"])] == [
        *("0", "0"),
        *("1", "1"),
    ]


def test_a_run_is_over_when_all_ranks_say_so_whatever_srun_reports(job: Callable[..., Job]) -> None:
    """A real srun reports a task on a node that was lost as killed, also if only its spare trained."""
    done = job([{"0": "finish", "1": "finish 137"}])
    assert done.end()[0] == 0
    assert done.failures() == []


def test_a_finished_run_does_not_wait_for_an_srun_that_stays(job: Callable[..., Job], tmp_path: Path) -> None:
    """A real srun waits without end for the process of a standby step whose node was lost."""
    (tmp_path / "stays_0").touch()
    done = job([FINISH])
    assert done.end()[0] == 0
    assert done.failures() == []


def test_a_killed_rank_is_replaced_inside_the_allocation(job: Callable[..., Job]) -> None:
    killed = job([{"1": "kill"}, FINISH])
    status, log = killed.end()
    assert status == 0, log
    assert killed.ranks() == [(start, rank, "node1,node2", False) for start in (0, 1) for rank in ("0", "1")]
    assert killed.failures() == [(EndReason.KILLED, "node2")]
    assert json.loads((killed.folder / "job.json").read_text())["Restarts"] == 0
    assert "a rank was killed (node node2): the run starts again on node1, node2, inside this allocation" in log
    assert all(row["predecessors_gone"] for row in killed.rows("ranks.jsonl"))  # before the new ranks take the GPUs


def test_standby_processes_take_over(job: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    killed = job([{"0": "kill"}, FINISH], "--standby")
    killed.wait_for(lambda: killed.standbys() == 2)
    (tmp_path / "go_0").touch()
    killed.wait_for(lambda: killed.standbys() == 4)  # the next attempt has its own
    (tmp_path / "go_1").touch()
    status, log = killed.end()
    assert status == 0, log
    assert "Traceback" not in log
    assert killed.ranks()[2:] == [(1, rank, "node1,node2", True) for rank in ("0", "1")]
    assert all(row["predecessors_gone"] for row in killed.rows("ranks.jsonl"))


def test_a_spare_takes_the_place_of_a_bad_node(job: Callable[..., Job]) -> None:
    bad = job([{"1": "exit 77"}, FINISH], "--node-counts=2", "--no-kill", nodes=3)
    status, log = bad.end()
    assert status == 0, log
    assert bad.ranks()[2:] == [(1, rank, "node1,node3", False) for rank in ("0", "1")]
    assert bad.failures() == [(EndReason.BAD_NODE, "node2")]


def test_without_a_spare_the_run_goes_on_with_fewer_nodes(job: Callable[..., Job]) -> None:
    bad = job([{"2": "exit 77"}, FINISH], "--node-counts=4,2", "--no-kill", nodes=4)
    status, log = bad.end()
    assert status == 0, log
    assert bad.ranks()[4:] == [(1, rank, "node1,node2", False) for rank in ("0", "1")]


def test_without_enough_nodes_the_job_is_queued(job: Callable[..., Job]) -> None:
    bad = job([{"1": "exit 77"}, FINISH], "--node-counts=2")
    status, log = bad.end()
    assert status == 77
    assert json.loads((bad.folder / "job.json").read_text())["JobState"] == "PENDING"
    assert "a node or its GPU failed (node node2): the job is requeued" in log


def test_a_rank_that_hangs_is_killed_while_a_busy_controller_keeps_the_policy_waiting(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    (tmp_path / "hold").touch()
    bad = job([{"1": "exit 77"}], "--node-counts=2")
    bad.wait_for(lambda: len(bad.rows("ranks.jsonl")) == 2)
    hanging = next(int(str(row["pid"])) for row in bad.rows("ranks.jsonl") if row["SLURM_PROCID"] == "0")
    (tmp_path / "busy").touch()
    (tmp_path / "go_0").touch()
    bad.wait_for(lambda: start_ticks(hanging) is None)
    assert "requeued" not in (tmp_path / "log").read_text()
    (tmp_path / "busy").unlink()
    assert bad.end()[0] == 77


def test_a_node_that_slurm_has_set_down_is_left(job: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "node2.down").touch()
    down = job([{"1": "kill"}, FINISH], "--node-counts=2", "--no-kill", nodes=3)
    status, log = down.end()
    assert status == 0, log
    assert down.ranks()[2:] == [(1, rank, "node1,node3", False) for rank in ("0", "1")]


def test_a_step_whose_nodes_slurm_has_taken_has_not_finished(job: Callable[..., Job], tmp_path: Path) -> None:
    """With --no-kill, its srun ends with status 0, although its ranks may live on."""
    taken = job([{}, FINISH], "--node-counts=1", "--no-kill", nodes=2)
    taken.wait_for(lambda: len(taken.rows("ranks.jsonl")) == 1)
    (tmp_path / "node1.down").touch()
    (tmp_path / "taken_0").touch()
    status, log = taken.end()
    assert status == 0, log
    assert taken.ranks() == [(0, "0", "node1", False), (1, "0", "node2", False)]
    assert taken.failures() == [(EndReason.NODE_DOWN, "node1")]


@pytest.mark.parametrize(
    ("act", "status", "reason"), [("die 79", 0, EndReason.HUNG), ("exit 76", 0, EndReason.LOST_PEERS)]
)
def test_the_cause_is_what_the_first_rank_says(
    job: Callable[..., Job], act: str, status: int, reason: EndReason
) -> None:
    failed = job([{"0": act, "1": "exit 76"}, FINISH], "--heartbeat-seconds=1")
    assert failed.end()[0] == status
    assert failed.failures()[0][0] == reason


def test_ranks_that_all_stand_still_are_replaced(job: Callable[..., Job]) -> None:
    """No watchdog of a stopped process can act."""
    stopped = job([{"0": "stop", "1": "stop"}, FINISH], "--hang-seconds=2")
    status, log = stopped.end()
    assert status == 0, log
    assert stopped.failures() == [(EndReason.HUNG, "")]
    assert "has given no sign of life for 2 s" in log


def test_ranks_that_give_signs_of_life_may_work_for_long(job: Callable[..., Job]) -> None:
    done = job([{"0": "work 4", "1": "work 4"}], "--hang-seconds=2")
    assert done.end()[0] == 0
    assert done.failures() == []


def test_a_user_error_ends_the_job(job: Callable[..., Job]) -> None:
    failed = job([{"0": "exit 2", "1": "exit 76"}], "--heartbeat-seconds=1")
    assert failed.end()[0] == 2
    assert failed.failures() == []
    assert json.loads((failed.folder / "job.json").read_text())["Restarts"] == 0


def test_a_second_failure_without_progress_gives_the_nodes_back(job: Callable[..., Job]) -> None:
    failed = job([{"1": "kill"}])
    status, log = failed.end()
    assert status == 137
    assert "a rank was killed (node node2): the job is requeued in 60 s" in log
    assert json.loads((failed.folder / "job.json").read_text())["Restarts"] == 1
