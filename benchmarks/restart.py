"""Cost of a restart: `python -m benchmarks.restart --config tiny_toy data.shards=data/toy/train`.

The script starts a run in a temporary folder, kills it (-9) after its first checkpoint, starts it again, and kills it
after its first step. It prints the seconds from the start of the process to the end of that step by stage, for the new
and the resumed process (medians over --rounds). Every run writes these stages to the event `ready` of events.jsonl.
Slurm's own delay is not included.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.script import build_parser, run_script, write_json
from motionmae.files import output_file
from motionmae.runs.events import Row, read_rows


def run_until(kind: str, command: list[str], events: Path) -> dict[str, float]:
    """Run the command until it writes an event of ``kind``, kill it, and return its seconds by stage."""
    known = len(list(read_rows(events)))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        rows: list[Row] = []
        while not any(row["kind"] == kind for row in rows):
            if process.poll() is not None:
                sys.exit(f"the run ended with status {process.returncode} before its event `{kind}`: see above")
            time.sleep(0.02)
            rows = list(read_rows(events))[known:]
        process.kill()
    ready, first = (next(row for row in rows if row["kind"] == name) for name in ("ready", "first_step"))
    return {**ready["startup"], "first step": first["seconds"], "total": first["since_process_start"]}


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--config", required=True, help="name of a file in configs/, or the path of a YAML file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=output_file, help="file for the results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    options = parser.parse_args()
    new, resumed = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            fixed = [f"output_dir={folder}", "name=restart", "checkpoint.every_steps=1", "monitoring.enabled=false"]
            command = [sys.executable, "-m", "motionmae", "pretrain", "--config", options.config, *options.overrides]
            events = Path(folder) / "restart/events.jsonl"
            new.append(run_until("checkpoint", [*command, *fixed], events))
            resumed.append(run_until("first_step", [*command, *fixed], events))
    figures = {
        name: {stage: median(row[stage] for row in rows) for stage in rows[0]}
        for name, rows in (("new", new), ("resumed", resumed))
    }
    table = Table("seconds", "new", "resumed")
    for stage in figures["resumed"]:
        values = [figures[name].get(stage) for name in ("new", "resumed")]
        table.add_row(stage.replace("_", " "), *("" if value is None else f"{value:.2f}" for value in values))
    Console().print(table)
    write_json(options.json, figures)


if __name__ == "__main__":
    run_script(main)
