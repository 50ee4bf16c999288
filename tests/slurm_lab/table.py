"""Make the table of docs/measurements/faults.md from the measurements of the tests.

Example::

    SURVIVAL_JSON=survival.json python -m pytest tests/slurm_lab/test_survival.py
    python -m tests.slurm_lab.table survival.json
"""

import json
import sys
from pathlib import Path


def table(costs: dict[str, list[dict[str, float | str]]]) -> str:
    """The table in Markdown."""
    lines = [
        "| fault | steps lost | seconds to the next step | of them Slurm's own |",
        "|---|---|---|---|",
    ]
    for scenario, damages in costs.items():
        for damage in damages:
            seconds, slurm = (f"{damage[key]:.0f}" for key in ("seconds", "slurm_seconds"))
            remark = _REMARKS.get((scenario, str(damage["fault"])), "")
            lines.append(f"| {damage['fault']}{remark} | {damage['lost']} | {seconds} | {slurm} |")
    return "\n".join(lines)


_REMARKS = {
    ("nodes_lost", "preemption"): ", without the user signal",
    ("split_brain", "cable pulled"): " from all ranks at once (split brain)",
}

if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
