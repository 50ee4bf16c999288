"""A rank without torch: it joins the roll call like a training rank, and then acts as the test has written.

``acts.json`` in the folder of the test: for each start a map of rank to ``finish``, ``finish N``, ``exit N``,
``die N``, ``kill``, ``stop``, ``work SECONDS`` or ``wait``. ``exit`` announces the status, ``die`` does not;
``finish N`` announces success.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from slurm.batch import member
from slurm.batch.member import join, start_ticks, take_place
from slurm.batch.protocol import Report

folder = Path(sys.argv[1])
member.ALIVE_SECONDS = 0.2
membership = join()
assert membership is not None
with (folder / "joined.txt").open("a") as file:
    file.write(f"{'standby' if membership.standby else 'rank'} {os.getpid()} {os.environ['SLURMD_NODENAME']}\n")
assignment = membership.wait(lambda: None)
take_place(assignment)
signal.signal(signal.SIGTERM, lambda *_: None)
place = {key: os.environ[key] for key in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NODELIST", "SLURM_NODEID")}
row = {"start": assignment.start, "standby": membership.standby, "pid": os.getpid(), **place, "time": time.time()}
row["predecessors_gone"] = all(start_ticks(p.pid) != p.began for p in assignment.predecessors)
with (folder / "ranks.jsonl").open("a") as file:
    file.write(json.dumps(row) + "\n")
acts = json.loads((folder / "acts.json").read_text())
act, _, number = acts[min(assignment.start, len(acts) - 1)].get(str(assignment.rank), "wait").partition(" ")
membership._report(Report(what="trains"))
ready = folder / f"go_{assignment.start}"


def written() -> int:
    """Rows of this start: a rank that acts before another has written its row would hide that rank from the test."""
    rows = map(json.loads, (folder / "ranks.jsonl").read_text().splitlines())
    return sum(other["start"] == assignment.start for other in rows)


while written() < int(place["SLURM_NTASKS"]) or (not ready.exists() and (folder / "hold").exists()):
    time.sleep(0.02)
if act == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif act == "die":
    os._exit(int(number))
elif act == "work":
    time.sleep(float(number))
    membership.leave(0)
    os._exit(0)
elif act == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
elif act == "exit":
    membership.leave(int(number))
    sys.exit(int(number))
elif act == "finish":
    membership.leave(0)
    os._exit(int(number or 0))
else:
    time.sleep(150)
