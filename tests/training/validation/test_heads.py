"""Losses and explained variance of the decoder heads on held-out clips, on one rank in this process."""

from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from motionmae.config import Config
from motionmae.data.loader import ClipLoader
from motionmae.distributed.context import DistributedContext
from motionmae.errors import UserError
from motionmae.models.motionmae import Losses, build_motionmae, masked_targets
from motionmae.training.validation import heads, rounds
from motionmae.training.validation.heads import HeadLosses, HeldOutClips
from motionmae.training.validation.measure import UnreadableShardsError
from tests.training.shards import make_shards, tiny_run
from tests.training.validation.workers import NoPause

CPU = torch.device("cpu")
ONE = DistributedContext(rank=0, local_rank=0, world=1, device=CPU)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return make_shards(folder / "train", samples=3), make_shards(folder / "val", shards=2, samples=5)


def test_sums_of_heads_by_hand(shards: tuple[Path, Path], tmp_path: Path):
    """Three clips in groups of two and one; means are over clips, whatever the groups."""
    config = tiny_run(shards[0], tmp_path, validation={"shards": str(shards[1])})
    held_out = heads.HeldOutClips(config, str(shards[1]), 17, torch.device("cpu"))
    assert (held_out.groups, heads.CLIPS) == (3, 8)
    sizes = {(first, every): [len(batch.seeds) for batch in held_out.read(first, every)]
             for first, every in ((0, 1), (0, 2), (1, 2))}  # fmt: skip
    assert sizes == {(0, 1): [8, 8, 1], (0, 2): [8, 1], (1, 2): [8]}
    sums = [{"space": torch.tensor([6.0, 2.0, 4.0])}, {"space": torch.tensor([3.0, 1.0, 2.0])}]
    assert {head: mean.tolist() for head, mean in heads.mean_targets(sums).items()} == {"space": [1.5, 0.5]}
    assert {head: total.tolist() for head, total in heads.add(sums).items()} == {"space": [9.0, 3.0, 6.0]}
    (batch,) = held_out.read(2, 3)
    losses = Losses(*torch.tensor([3.0, 2.0, 1.0]))
    (eight, *_) = held_out.read()
    assert held_out.sum_losses(eight, lambda *_: losses) == {"total": 24.0, "space": 16.0, "time": 8.0}
    assert held_out.sum_losses(batch, lambda *_: losses) == {"total": 3.0, "space": 2.0, "time": 1.0}


class Measuring:
    """A replacement for held-out clips that gives the sums of two groups."""

    groups, clips, config = 2, 10, None

    def __init__(self) -> None:
        self.baselines = 0

    def sum_targets(self, batch: int) -> dict[str, torch.Tensor]:
        return {"space": torch.tensor([1.0, 2.0])}

    def sum_baselines(self, batch: int, means: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.baselines += 1
        assert means["space"].tolist() == [0.5]
        return {"space": torch.tensor(20.0)}

    def sum_losses(self, batch: int, forward: object) -> dict[str, torch.Tensor]:
        return {"total": torch.tensor(15.0), "space": torch.tensor(5.0), "time": torch.tensor(0.0)}

    def read(self, first: int, every: int) -> Generator[int, None, None]:
        yield from range(first, self.groups, every)


def test_figures_of_heads_and_baselines_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [mine])
    rank = DistributedContext(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    measurement = heads.HeadLosses(tiny_run(tmp_path, tmp_path), rank, sharded=False)
    measurement._held_out = clips = Measuring()  # type: ignore[assignment]
    for _ in range(2):
        found = measurement.measure(None, Mock())  # type: ignore[arg-type]
        assert found.figures == pytest.approx({"loss": 3.0, "loss_space": 1.0, "explained_space": 0.75})
        assert (found.videos, found.missing) == (10, 0)
    assert clips.baselines == 2  # of two groups, in the first validation only


def test_clips_that_cannot_be_read_end_the_measurement_on_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Gone(Measuring):
        def read(self, first: int, every: int) -> Generator[int, None, None]:
            yield 0
            raise UserError("the disk is gone")

    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [mine])
    rank = DistributedContext(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    measurement = heads.HeadLosses(tiny_run(tmp_path, tmp_path), rank, sharded=False)
    measurement._held_out = Gone()  # type: ignore[assignment]
    with pytest.raises(UnreadableShardsError, match="the disk is gone"):
        measurement.measure(None, Mock())  # type: ignore[arg-type]


def config_of(shards: tuple[Path, Path], tmp_path: Path, **changes: Any) -> Config:
    validation = {"shards": str(shards[1]), "heldout_clips": 10}
    return tiny_run(shards[0], tmp_path, validation=validation).updated(changes)


def test_clips_are_the_first_that_training_would_read_of_the_held_out_shards(shards: tuple[Path, Path], tmp_path: Path):
    """Each video once, also where training repeats it."""
    config = config_of(shards, tmp_path, **{"data.repeated_sampling": 2, "seed": 5})
    first, _ = HeldOutClips(config, str(shards[1]), 10, CPU).read()
    plain = config.updated({"data.shards": str(shards[1]), "data.repeated_sampling": 1}).data
    with ClipLoader(plain, config.clip, seed=5, batch=5, micro_batch_size=5) as loader:
        read = next(loader.batches(0))
        for name in ("clips", "seeds", "samples", "labels"):
            assert torch.equal(getattr(first, name)[:5], getattr(read, name)), name
    assert first.flow is None


@pytest.mark.parametrize("same", [True, False])
def test_how_held_out_clips_are_read(
    same: bool, shards: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A .beton file belongs to the training shards alone."""
    asked: list[Any] = []

    def refuse(*parts: Any, **named: Any) -> None:
        asked.extend((*parts, named))
        raise UserError("asked")

    monkeypatch.setattr(heads, "ClipLoader", refuse)
    config = config_of(shards, tmp_path, **{"target.motion_source": "flow", "seed": 3, "data.workers": 4})
    config = config.model_copy(update={"data": config.data.model_copy(update={"beton": "x.beton"})})
    held_out = HeldOutClips(config, str(shards[0 if same else 1]), 10, CPU)
    with pytest.raises(UserError, match="asked"):
        next(held_out.read())
    data, clip, named = asked
    assert (data.shards, data.beton) == (str(shards[0 if same else 1]), "x.beton" if same else "")
    assert (data.workers, data.repeated_sampling, data.threads) == (0, 1, config.data.threads)
    assert clip == config.clip
    assert named == {"seed": 3, "batch": 1, "micro_batch_size": 1, "flow": True}


def test_figures_are_those_of_all_clips_at_once(
    shards: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ten clips in groups of eight and two."""
    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [mine])
    config = config_of(shards, tmp_path)
    model = build_motionmae(config).eval()
    with torch.no_grad():
        measured = HeadLosses(config, ONE, sharded=False).measure(model, NoPause())
        clips, seeds = (
            torch.cat([getattr(batch, name) for batch in HeldOutClips(config, str(shards[1]), 10, CPU).read()])
            for name in ("clips", "seeds")
        )
        total, space, time = model(clips, seeds, None)
    expected = {"loss": total, "loss_space": space, "loss_time": time}
    for head, target in masked_targets(config, clips, seeds, None).items():
        spread = (target - target.mean((0, 1))).square().mean()
        expected[f"explained_{head}"] = 1 - expected[f"loss_{head}"] / spread
    assert measured.figures == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4)
    assert (measured.videos, measured.missing, measured.confusion) == (10, 0, None)
    baselines = heads.measure_baselines(HeldOutClips(config, str(shards[1]), 10, CPU))
    for head, loss in baselines.items():
        assert 1 - float(expected[f"loss_{head}"]) / loss == pytest.approx(
            float(expected[f"explained_{head}"]), rel=1e-4
        )


@pytest.mark.parametrize(("sharded", "needs_flow", "passes"), [(True, False, 3), (True, True, 3), (False, False, 1)])
def test_at_zero_3_a_rank_without_clips_takes_part_in_forward_passes(
    sharded: bool, needs_flow: bool, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Three groups, of which the second and the third cannot be read; the targets need no model."""

    class Half(Measuring):
        groups, read_already = 3, 0

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config = config  # type: ignore[assignment]

        def sum_losses(self, batch: int, forward: Any) -> dict[str, torch.Tensor]:
            forward("a batch", None, None)
            return super().sum_losses(batch, forward)

        def read(self, first: int, every: int) -> Generator[int, None, None]:
            self.read_already += 1
            yield from range(3 if self.read_already < 3 else 1)
            raise UserError("the disk is gone")

    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [mine])
    config = tiny_run(tmp_path, tmp_path).updated({"target.motion_source": "flow"} if needs_flow else {})
    measurement = HeadLosses(config, ONE, sharded=sharded)
    measurement._held_out = Half(config)  # type: ignore[assignment]
    model = Mock()
    with pytest.raises(UnreadableShardsError, match="the disk is gone"):
        measurement.measure(model, Mock())
    assert model.call_count == passes
    if sharded:
        clips, seeds, flow = model.call_args.args
        assert (clips.shape, clips.dtype, seeds.tolist()) == ((1, 4, 32, 32, 3), torch.uint8, [0])
        assert (None if flow is None else flow.shape) == ((1, 4, 32, 32, 2) if needs_flow else None)
