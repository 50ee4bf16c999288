"""srun, scancel, scontrol, sbatch, squeue and sinfo of a pretended job, for tests of the supervisor in seconds.

The program that this file is linked as decides what it does. srun prints what Slurm 22.05 prints, as recorded in
``test_step_failure.py``; the folder FAKE_SLURM holds the state of the job.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ.get("FAKE_SLURM", "."))


def srun(words: list[str]) -> int:
    options, program = {}, []
    while words:
        word = words.pop(0)
        if word == "--output":
            words.pop(0)
        elif word.startswith("--"):
            key, _, value = word.partition("=")
            options[key] = value
        else:
            program = [word, *words]
            break
    number = len(list(STATE.glob("step_*")))
    nodes = options.get("--nodelist", "node1").split(",")
    each = int(options.get("--ntasks-per-node", 1))
    tasks = [(node, local) for node in nodes for local in range(each)]
    variables = {"SLURM_STEP_ID": str(number)}
    running = {}
    for task, (node, local) in enumerate(tasks):
        own = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(local), "SLURMD_NODENAME": node}
        running[task] = subprocess.Popen(program, env=os.environ | variables | own, stderr=sys.stdout)
    (STATE / f"step_{number}").write_text(json.dumps([process.pid for process in running.values()]))
    worst = 0
    while running:
        if (STATE / f"taken_{number}").exists():  # Slurm has set all nodes of the step down, and lets the ranks be
            print(f"srun: error: Node failure on {','.join(nodes)}", file=sys.stderr, flush=True)
            return 0
        for task, process in list(running.items()):
            if (status := process.poll()) is None:
                continue
            del running[task]
            worst = max(worst, 128 - status if status < 0 else status)
            if status:
                end = {-9: "Killed", -15: "Terminated"}.get(status, f"Exited with exit code {status}")
                print(f"srun: error: {tasks[task][0]}: task {task}: {end}", file=sys.stderr, flush=True)
                for other in running.values():
                    other.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    while (STATE / f"stays_{number}").exists():
        time.sleep(0.02)
    return worst


def scancel(words: list[str]) -> int:
    number = words[1].rpartition(".")[2]
    for pid in json.loads((STATE / f"step_{number}").read_text()):
        try:
            os.kill(pid, signal.Signals["SIG" + words[0].removeprefix("--signal=")])
        except ProcessLookupError:
            continue
    return 0


def scontrol(words: list[str]) -> int:
    while (STATE / "busy").exists():
        time.sleep(0.05)
    job = json.loads((STATE / "job.json").read_text())
    if words[:2] == ["show", "job"]:
        print(" ".join(f"{key}={value}" for key, value in job.items()))
    elif words[:2] == ["show", "node"]:
        for node in words[3].split(","):
            state = "DOWN" if (STATE / f"{node}.down").exists() else "IDLE"
            print(f"NodeName={node} State={state} Reason=test [")
    elif words[0] == "requeue":
        job |= {"JobState": "PENDING", "Restarts": job["Restarts"] + 1}
        (STATE / "job.json").write_text(json.dumps(job))
    return 0


def sbatch(words: list[str]) -> int:
    sys.stdin.read()
    print("8")
    return 0


def squeue(words: list[str]) -> int:
    return 0


def sinfo(words: list[str]) -> int:
    print("\n".join(f"node{number}" for number in range(1, 9)))
    return 0


if __name__ == "__main__":
    programs = {
        "srun": srun,
        "scancel": scancel,
        "scontrol": scontrol,
        "sinfo": sinfo,
        "sbatch": sbatch,
        "squeue": squeue,
    }
    sys.exit(programs[Path(sys.argv[0]).name](sys.argv[1:]))
