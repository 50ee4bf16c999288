"""The host waits for the GPU only to decide whether a step is applied, and for rows of metrics."""

from pathlib import Path

from tests.training.launch import run_ranks
from tests.training.run_workers import pretrain_and_count_waits
from tests.training.shards import STEPS, make_shards, tiny_run

ROWS = 3


def test_the_host_waits_in_the_optimizer_and_at_rows_of_metrics(tmp_path: Path):
    shards = make_shards(tmp_path / "shards")
    runs = [
        tiny_run(shards, tmp_path / f"zero{zero}", engine={"zero_stage": zero}, log={"every_steps": STEPS // ROWS})
        for zero in (0, 1, 2)
    ]
    for found in run_ranks(2, pretrain_and_count_waits, runs)[0]:
        in_step = {where: count for (part, where), count in found.items() if part == "train_step"}
        # each step reads whether the gradient is finite (ZeRO: for each parameter group)
        assert set(in_step) == {"step"}, found
        assert in_step["step"] % STEPS == 0
        assert in_step["step"] <= 3 * STEPS
        assert found["log_step", "row"] % ROWS == 0
        # the request of all ranks consists of two numbers in host memory
        assert {part for part, _ in found} <= {"train_step", "sync_across_ranks", "log_step", "save"}, found
