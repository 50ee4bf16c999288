from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from motionmae.config import Config
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.process_group import distributed
from motionmae.distributed.watchdog import Watchdog
from motionmae.models.motionmae import Losses, MotionMAE, build_motionmae
from motionmae.runs.events import drop_repeated, read_rows
from motionmae.training.callbacks import stalled_heads
from motionmae.training.callbacks.stalled_heads import StalledHeads
from motionmae.training.setup import run_training
from tests.training.launch import run_ranks
from tests.training.run_workers import run_all
from tests.training.shards import STEPS, make_shards, tiny_run

STEPS_PER_EPOCH = 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def silent(config: Config) -> MotionMAE:
    """Return a model whose heads predict zero, the mean of every normalised target."""
    model = build_motionmae(config)
    for decoder in model.decoders.values():
        for head in decoder.heads.values():  # type: ignore[union-attr, operator]
            torch.nn.init.zeros_(head.weight)
    return model


def perfect(*_: Any) -> Losses:
    return Losses(*torch.full((3,), 0.01))


def warnings_of(config: Config, engine: Callable[..., Losses], rows: list[tuple[int, int]]) -> list[str]:
    """Return the messages after ``rows`` of (step, steps since the last row)."""
    messages: list[str] = []
    with (
        distributed(config.engine) as rank,
        closing(Watchdog(config.watchdog, Path("unused"), messages.append)) as watchdog,
    ):
        callback = StalledHeads(config, engine, rank, STEPS_PER_EPOCH, watchdog, messages.append)  # type: ignore[arg-type]
        for step, steps in rows:
            callback.on_log({"step": step, "steps": steps})
    return messages


def test_a_head_that_predicts_the_mean_is_named_once_with_the_settings_that_help(shards: Path, tmp_path: Path):
    config = tiny_run(shards, tmp_path, log={"stalled_head_clips": 30}, model={"pos_embed": "separate"})
    space, time = warnings_of(config, silent(config), [(4, 4), (8, 4), (12, 4)])
    assert space == (
        "the space head explains 0.0 % of the variance of its target after 48 clips, little more than the target's "
        "mean: start a new run with model.patch_embed_init=whitened, model.decoder_init=local"
    )
    assert time.startswith("the time head explains")
    assert time.endswith("model.decoder_init=local, target.motion_norm=clip")


def test_shards_that_cannot_be_read_for_the_check_do_not_end_the_run(shards: Path, tmp_path: Path):
    config = tiny_run(shards, tmp_path, log={"stalled_head_clips": 6})
    config = config.updated({"data.shards": "http://127.0.0.1:1/gone", "data.remote_retries": 0})
    (message,) = warnings_of(config, silent(config), [(6, 6)])
    assert message.startswith("the decoder heads were not checked (")
    assert message.endswith("); training continues")


def test_a_head_that_has_left_the_mean_is_not_named(shards: Path, tmp_path: Path):
    config = tiny_run(shards, tmp_path, log={"stalled_head_clips": 30})
    assert warnings_of(config, perfect, [(4, 4), (8, 4)]) == []


@pytest.mark.parametrize("rows", [[(4, 4)], [(8, 1), (9, 1)]])
def test_nothing_is_checked_before_the_clips_or_in_a_later_attempt(
    shards: Path, tmp_path: Path, rows: list[tuple[int, int]]
):
    config = tiny_run(shards, tmp_path, log={"stalled_head_clips": 30})
    assert warnings_of(config, silent(config), rows) == []


def test_nothing_is_checked_during_the_warm_up_or_if_disabled(shards: Path, tmp_path: Path):
    warming = tiny_run(shards, tmp_path, log={"stalled_head_clips": 6}, optim={"warmup_epochs": 2})
    assert warnings_of(warming, silent(warming), [(5, 5)]) == []
    assert len(warnings_of(warming, silent(warming), [(6, 6)])) == 2
    disabled = tiny_run(shards, tmp_path, log={"stalled_head_clips": 0})
    assert warnings_of(disabled, silent(disabled), [(5, 5), (10, 5)]) == []


@pytest.mark.parametrize("kind", ["frame", "motion"])
def test_only_trained_heads_are_named(shards: Path, tmp_path: Path, kind: str):
    config = tiny_run(shards, tmp_path, log={"stalled_head_clips": 6}, target={"kind": kind})
    (message,) = warnings_of(config, silent(config), [(6, 6)])
    assert message.startswith("the space head" if kind == "frame" else "the time head")


def test_a_run_prints_the_warning(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_training(tiny_run(shards, tmp_path, log={"stalled_head_clips": 24}, optim={"base_lr": 1e-6}))
    assert capsys.readouterr().out.count("the time head explains") == 1


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_the_check_changes_no_loss(shards: Path, tmp_path: Path, zero_stage: int):
    configs = [
        tiny_run(shards, tmp_path / str(clips), log={"stalled_head_clips": clips}, engine={"zero_stage": zero_stage})
        for clips in (0, 24)
    ]
    assert run_ranks(2, run_all, configs)[0] == ["FINISHED"] * 2
    without, checked = (
        list(drop_repeated(read_rows(Path(config.output_dir) / "tiny" / "metrics.jsonl"))) for config in configs
    )
    assert len(checked) == STEPS
    assert [row["loss_time"] for row in without] == [row["loss_time"] for row in checked]


@pytest.mark.parametrize(("rows", "checks"), [([(4, 4), (8, 4)], 1), ([(3, 3), (4, 1), (5, 1)], 1), ([(3, 3)], 0)])
def test_the_check_comes_once_also_where_a_row_is_at_its_step(
    shards: Path, tmp_path: Path, rows: list[tuple[int, int]], checks: int
):
    """24 clips are read after four steps of three videos, each taken twice."""
    config = tiny_run(
        shards, tmp_path, log={"stalled_head_clips": 24}, optim={"global_batch_size": 3, "warmup_epochs": 0},
        data={"repeated_sampling": 2}, target={"kind": "frame"},
    )  # fmt: skip
    found = warnings_of(config, silent(config), rows)
    assert len(found) == checks
    assert all("after 24 clips" in line for line in found)


@pytest.mark.parametrize(
    ("micro", "world", "repeated", "batches"), [(3, 1, 1, 22), (4, 1, 1, 16), (3, 2, 2, 6), (70, 1, 1, 1)]
)
def test_64_clips_are_read_over_all_ranks(
    micro: int, world: int, repeated: int, batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []

    class Stream:
        def __init__(self, *words: Any, **named: Any) -> None:
            asked.extend((*words, named))

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

        def batches(self, step: int) -> Any:
            assert step == 0
            return iter(range(1000))

    monkeypatch.setattr(stalled_heads, "ClipLoader", Stream)
    monkeypatch.setattr(stalled_heads, "DevicePrefetcher", lambda device: lambda batches: batches)
    config = tiny_run(tmp_path, tmp_path).updated(
        {"optim.global_batch_size": micro * world, "engine.micro_batch_size": micro, "data.workers": 3,
         "data.repeated_sampling": repeated, "seed": 2}
    )  # fmt: skip
    rank = DistributedContext(rank=world - 1, local_rank=0, world=world, device=torch.device("cpu"))
    nothing: Any = None
    callback = StalledHeads(config, nothing, rank, STEPS_PER_EPOCH, nothing, print)
    assert callback._first_batches() == (list(range(batches)), "")
    data, clip, named = asked
    assert (data.workers, data.prefetch, data.shards, clip) == (0, 1, config.data.shards, config.clip)
    assert named == {"seed": 2, "batch": micro * world, "micro_batch_size": micro, "rank": world - 1, "world": world,
                     "flow": False, "pinned": False}  # fmt: skip


def test_explained_variance_is_one_minus_the_loss_over_that_of_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two batches whose targets have the mean 2 and the mean squares 5 and 1 around it; losses 1.5 and 0.75."""
    monkeypatch.setattr(stalled_heads.dist, "all_reduce", lambda value: value.mul_(2))  # two equal ranks
    targets = {"first": torch.tensor([[[3.0], [1.0]]]), "second": torch.tensor([[[5.0], [-1.0]]])}
    monkeypatch.setattr(stalled_heads, "masked_targets", lambda config, clips, seeds, flow: {"space": targets[clips]})
    losses = {"first": 0.75, "second": 1.5}
    engine: Any = lambda clips, seeds, flow: Losses(torch.tensor(9.0), torch.tensor(losses[clips]), torch.tensor(9.0))  # noqa: E731
    rank = DistributedContext(rank=0, local_rank=0, world=2, device=torch.device("cpu"))
    nothing: Any = None
    callback = StalledHeads(tiny_run(tmp_path, tmp_path), engine, rank, STEPS_PER_EPOCH, nothing, print)
    batches: Any = [SimpleNamespace(clips=name, seeds=0, flow=None) for name in targets]
    assert callback.explained_variance(batches) == {"space": pytest.approx(1 - 1.125 / 5)}


@pytest.mark.parametrize(("explained", "named"), [(0.0099, True), (0.01, False), (-0.5, True)])
def test_a_head_that_explains_less_than_a_hundredth_is_stalled(
    explained: float, named: bool, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(StalledHeads, "explained_variance", lambda self, batches: {"space": explained})
    found = warnings_of(tiny_run(shards, tmp_path, log={"stalled_head_clips": 24}), perfect, [(4, 4)])
    assert [line.partition(" % ")[0] for line in found] == (
        [f"the space head explains {max(100 * explained, 0):.1f}"] if named else []
    )


@pytest.mark.parametrize(
    ("changes", "space", "time"),
    [
        ({}, "P, S, L", "P, S, L, C"),
        ({"model.patch_embed_init": "whitened", "model.pos_embed": "separate"}, "L", "L, C"),
        ({"target.normalize": False}, "P, S, L", "P, S, L"),
        ({"model.patch_embed_init": "whitened", "model.pos_embed": "separate", "model.decoder_init": "local",
          "target.motion_norm": "clip"}, "another optim.base_lr", "another optim.base_lr"),
    ],
)  # fmt: skip
def test_the_settings_that_a_stalled_run_lacks(changes: dict[str, Any], space: str, time: str, tmp_path: Path):
    long = {"P": "model.patch_embed_init=whitened", "S": "model.pos_embed=separate", "L": "model.decoder_init=local",
            "C": "target.motion_norm=clip"}  # fmt: skip
    nothing: Any = None
    rank = DistributedContext(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    callback = StalledHeads(tiny_run(tmp_path, tmp_path).updated(changes), nothing, rank, 3, nothing, print)
    for head, expected in (("space", space), ("time", time)):
        assert callback._remedy(head) == ", ".join(long.get(word, word) for word in expected.split(", "))
