"""A real Slurm cluster on one machine: a head and N nodes, each in separate namespaces.

Every machine of the lab has its own network, host name, mounts and process IDs. The lab opens no port on the host,
several labs can run at the same time, and one signal removes a whole machine. Nothing of the lab has a name on the
host. When the process that started the lab dies, the kernel kills the machines (``PR_SET_PDEATHSIG`` and ``unshare
--kill-child``), and their interfaces and mounts disappear with the namespaces.

Needs root, ``apt-get install slurm-wlm munge iproute2`` and the right to make namespaces. Partition ``low`` is
preempted by ``high``: Slurm sends the user signal, waits for the grace time, and then requeues or cancels the job.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 20
"""Time for a preempted job to end."""
KILL_WAIT_SECONDS = 10
"""Time from SIGTERM to SIGKILL at a requeue, cancellation or time limit (Slurm's default: 30)."""
SLURMD_TIMEOUT_SECONDS = 10
"""Time until a silent node counts as down (Slurm's default: 300)."""
CPUS_PER_NODE = 2
HEAD_ADDRESS = "10.77.0.1"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "ip", "tc", "nsenter", "unshare", "setpriv")

_SLURM_CONF = """\
ClusterName=lab
SlurmctldHost=head({head})
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmdParameters=config_overrides
{user_signal}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode={preempt_mode}
JobRequeue=1
ReturnToService=1
SlurmdTimeout={slurmd_timeout}
MessageTimeout=8
KillWait={kill_wait}
MinJobAge=3600
MailProg=/bin/true
{nodes}
PartitionName=low Nodes=ALL Default=YES State=UP MaxTime=INFINITE PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL State=UP MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""

_HEAD_SCRIPT = """\
set -e
hostname head
ip link set lo up
ip link add lab0 type bridge
ip addr add {head}/24 dev lab0
ip link set lab0 up
munged --foreground --force --key-file={folder}/munge/key --socket={folder}/munge/socket \\
    --pid-file={folder}/munge/pid --log-file={folder}/log/munged.log --seed-file={folder}/munge/seed &
until [ -S {folder}/munge/socket ]; do sleep 0.05; done
slurmctld -D -f {folder}/slurm.conf &
wait
"""

_NODE_SCRIPT = """\
set -e
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs -o mode=1777 shm /dev/shm
until [ -e /proc/sys/net/ipv4/conf/eth0 ]; do sleep 0.05; done
ip link set lo up
ip addr add {address}/24 dev eth0
ip link set eth0 up
{limit}
while sleep 0.2; do
    [ -e {folder}/{name}.no-slurmd ] || slurmd -D -N {name} -f {folder}/slurm.conf || true
done
"""
# Traffic above the rate waits. Steps take longer without using the processor.
_LIMIT = """\
for device in eth0 lo; do tc qdisc add dev $device root tbf rate {rate} burst 128kb latency 2s; done
"""


class LabError(RuntimeError):
    """The lab could not start. The message contains the last lines of its logs."""


def missing() -> str:
    """The reason why this machine cannot run a lab, or the empty string."""
    if os.geteuid() != 0:
        return "the Slurm lab needs root"
    absent = [program for program in PROGRAMS if shutil.which(program, path=_search_path()) is None]
    if absent:
        return f"the Slurm lab needs {', '.join(absent)}: apt-get install slurm-wlm munge iproute2"
    namespaces = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True)
    return "" if namespaces.returncode == 0 else "the Slurm lab needs the right to make namespaces (CAP_SYS_ADMIN)"


class Lab:
    """A started cluster; use as a context manager.

    Args:
        nodes: machines that run jobs, named node1, node2, ...
        user_signal: whether a preempted job gets the signal of `sbatch --signal` (preempt_send_user_signal), else only
            SIGTERM.
        rate: bandwidth of a node's network in the notation of `tc`; empty: no limit.
        preempt_mode: Slurm's PreemptMode. With CANCEL, a preempted job ends for good.
        grace_seconds: time for a preempted job to end; 0: it is killed at once.
    """

    def __init__(
        self,
        nodes: int = 4,
        user_signal: bool = True,
        rate: str = "",
        preempt_mode: str = "REQUEUE",
        grace_seconds: int = GRACE_SECONDS,
    ) -> None:
        self.nodes, self.user_signal, self.rate = nodes, user_signal, rate
        self.preempt_mode, self.grace_seconds = preempt_mode, grace_seconds
        self.folder = Path(
            tempfile.mkdtemp(prefix="slurm-lab-")
        )  # a short path, because a socket's path has at most 107 bytes
        self._machines: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Lab":
        try:
            self._write_files()
            self._start_machine("head", _HEAD_SCRIPT.format(folder=self.folder, head=HEAD_ADDRESS))
            for number in range(1, self.nodes + 1):
                self.power_on(f"node{number}")
            self._wait(self._all_idle, seconds=120)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(
        self, *command: str, seconds: float = 180, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` on the head. The exit status is not checked."""
        return subprocess.run(
            self.on_head(*command),
            env=self.environment() | dict(env or {}),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def on_head(self, *command: str) -> list[str]:
        """The command with a prefix that runs it in the head's network."""
        return ["nsenter", f"--net=/proc/{self._machines['head'].pid}/ns/net", *command]

    def on_node(self, node: str) -> list[str]:
        """A prefix that runs a command with a node's mounts."""
        (first,) = _children(self._machines[node].pid)
        return ["nsenter", f"--mount=/proc/{first}/ns/mnt"]

    def environment(self) -> dict[str, str]:
        """Variables of a user's shell on the head."""
        path = f"{Path(sys.executable).parent}:{_search_path()}"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SUBMITIT"))}
        return inherited | {"PATH": path, "SLURM_CONF": f"{self.folder}/slurm.conf"}

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of ``scontrol show job``."""
        fields = self.run("scontrol", "show", "job", "-o", job_id).stdout.split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait_for_job(self, job_id: str, states: tuple[str, ...], seconds: float) -> str:
        """Wait until the job is in one of ``states``; returns the state.

        Raises:
            TimeoutError: if that takes longer than ``seconds``.
        """
        state = ""

        def reached() -> bool:
            nonlocal state
            state = self.job(job_id).get("JobState", "")
            return state in states

        self._wait(reached, seconds, lambda: f"job {job_id} is {state or 'unknown'}, not {' or '.join(states)}")
        return state

    def wait_until(self, holds: Callable[[], bool], seconds: float) -> None:
        """Wait until ``holds()`` is true, or raise a TimeoutError after ``seconds``."""
        self._wait(holds, seconds, lambda: self.run("squeue", "-o", "%i %j %T %r").stdout)

    def power_on(self, node: str) -> None:
        """Start a node and plug it in."""
        number = int(node.removeprefix("node"))
        limit = _LIMIT.format(rate=self.rate) if self.rate else ""
        script = _NODE_SCRIPT.format(name=node, folder=self.folder, address=_address(number), limit=limit)
        self._start_machine(node, script)
        cable = ["link", "add", _cable(node), "type", "veth", "peer", "name", "eth0"]
        self._wait(lambda: self._ip(*cable, "netns", str(self._machines[node].pid)), seconds=60)
        self._wait(lambda: self._ip("link", "set", _cable(node), "master", "lab0", "up"), seconds=60)

    def power_off(self, node: str) -> None:
        """Cut a node's power: its processes end without a message."""
        assert self._ip("link", "del", _cable(node))  # first, to stop all packets
        _switch_off(self._machines.pop(node))

    def power_on_all(self) -> None:
        """Start all nodes that are off."""
        for node in (f"node{number}" for number in range(1, self.nodes + 1)):
            if node not in self._machines:
                self.power_on(node)

    def unplug(self, node: str) -> None:
        """Pull a node's network cable; its processes continue."""
        assert self._ip("link", "set", _cable(node), "down")

    def plug(self, node: str) -> None:
        """Plug a node's network cable in again."""
        assert self._ip("link", "set", _cable(node), "up")

    def change_rate(self, rate: str) -> None:
        """Change the bandwidth of all nodes that are on, in a lab with a rate."""
        for machine in (machine for name, machine in self._machines.items() if name != "head"):
            for device in ("eth0", "lo"):
                limit = ["tbf", "rate", rate, "burst", "128kb", "latency", "2s"]
                inside = ["nsenter", f"--net=/proc/{machine.pid}/ns/net"]
                command = [*inside, "tc", "qdisc", "change", "dev", device, "root", *limit]
                subprocess.run(command, env=self.environment(), check=True)

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's slurmd and prevent its restart; job steps continue."""
        (self.folder / f"{node}.no-slurmd").touch()
        (first,) = _children(self._machines[node].pid)
        for process in _children(first):
            if Path(f"/proc/{process}/comm").read_text().strip() == "slurmd":
                os.kill(process, signal.SIGKILL)

    def start_slurmd(self, node: str) -> None:
        """Start a node's slurmd again."""
        (self.folder / f"{node}.no-slurmd").unlink()

    def resume_drained(self) -> None:
        """Do what an administrator does with a node that Slurm has drained: restart its slurmd, and resume the node.

        Slurm 22.05 drains a node that was cut off and believes that it still runs a job ("Duplicate jobid").
        """
        shown = self.run("sinfo", "-h", "-N", "-t", "drained", "-o", "%N").stdout.split()
        for node in dict.fromkeys(shown):
            self.kill_slurmd(node)
            self.start_slurmd(node)
            self.run("scontrol", "update", f"nodename={node}", "state=resume")

    def stop(self) -> None:
        """End every process of the lab and remove its folder."""
        for machine in reversed(self._machines.values()):
            _switch_off(machine)
        self._machines.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ip(self, *argv: str) -> bool:
        return self.run("ip", *argv).returncode == 0

    def _write_files(self) -> None:
        for name in ("log", "state", "spool", "munge", *(f"spool/node{n}" for n in range(1, self.nodes + 1))):
            (self.folder / name).mkdir()
        key = self.folder / "munge/key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        nodes = [f"NodeName=node{n} NodeAddr={_address(n)} CPUs={CPUS_PER_NODE}" for n in range(1, self.nodes + 1)]
        conf = _SLURM_CONF.format(
            folder=self.folder,
            head=HEAD_ADDRESS,
            nodes="\n".join(nodes),
            grace=self.grace_seconds,
            preempt_mode=self.preempt_mode,
            kill_wait=KILL_WAIT_SECONDS,
            slurmd_timeout=SLURMD_TIMEOUT_SECONDS,
            user_signal="SlurmctldParameters=preempt_send_user_signal" if self.user_signal else "",
        )
        (self.folder / "slurm.conf").write_text(conf)
        hosts = [f"{HEAD_ADDRESS} head", *(f"{_address(n)} node{n}" for n in range(1, self.nodes + 1))]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))

    def _start_machine(self, name: str, script: str) -> None:
        spaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with (self.folder / f"log/{name}.out").open("wb") as log:
            machine = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "bash", "-c", script],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is for pytest
            )
        self._machines[name] = machine
        self._wait(lambda: _has_own_network(machine.pid), seconds=60)

    def _all_idle(self) -> bool:
        lines = self.run("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N").stdout.split()
        return len(lines) == self.nodes

    def _wait(self, holds: Callable[[], bool], seconds: float, what: Callable[[], str] | None = None) -> None:
        end = time.monotonic() + seconds
        while not holds():
            dead = [name for name, machine in self._machines.items() if machine.poll() is not None]
            if dead:
                raise LabError(f"{', '.join(dead)} stopped by itself\n{self._logs()}")
            if time.monotonic() > end:
                if what is not None:
                    raise TimeoutError(f"after {seconds:.0f} s {what()}")
                raise LabError(f"the lab was not ready after {seconds:.0f} s\n{self._logs()}")
            time.sleep(0.2)

    def _logs(self) -> str:
        logs = sorted((self.folder / "log").iterdir())
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)


def _switch_off(machine: subprocess.Popen[bytes]) -> None:
    for first in _children(machine.pid):  # process 1 of the machine; it ends after all others
        with suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)
    machine.wait()


def _has_own_network(process: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{process}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    return False  # the process has ended


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _cable(node: str) -> str:
    return node.replace("node", "cable")


def _address(node: int) -> str:
    return f"10.77.0.{10 + node}"


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
