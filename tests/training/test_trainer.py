"""The loop leaves a GPU its work: the host waits for it only where a step must be decided or is written down."""

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
        in_step = {where: count for (part, where), count in found.items() if part == "advance"}
        # whether the gradient is finite decides whether weights change, so each step asks once (ZeRO: for each group)
        assert set(in_step) == {"step"}, found
        assert in_step["step"] % STEPS == 0
        assert in_step["step"] <= 3 * STEPS
        assert found["record", "record"] % ROWS == 0
        # the agreement on signals is of two numbers that lie on the host
        assert {part for part, _ in found} <= {"advance", "sync_across_ranks", "record", "save"}, found
