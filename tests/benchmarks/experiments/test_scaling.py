import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.experiments.network import FP32, Link, Network, Work, step_parts
from benchmarks.experiments.scaling import MESSAGES, fit_link, last_above, matrices, predict_steps
from motionmae.commands.app import run
from motionmae.config import load_config
from motionmae.config.load import CONFIG_FOLDER
from motionmae.models.motionmae import build_motionmae
from motionmae.planning.flops import count_parameters

ROOT = Path(__file__).resolve().parents[3]
LINK = Link(1e-5, 1e9)
WORK = Work(1.0, 2.0, 0.4, 50_000_000, 50)


@pytest.mark.parametrize("ranks", [2, 5, 64])
def test_bus_bandwidth_of_one_node_is_the_links(ranks: int) -> None:
    """NCCL's tests define it: 2 (n - 1) / n of the bytes of an all-reduce pass every link."""
    network = Network(Link(0.0, 1e9), Link(0.0, 1.0), per_node=64)
    seconds = network.all_reduce(8e8, ranks)
    assert 8e8 / seconds * 2 * (ranks - 1) / ranks == pytest.approx(1e9)
    assert network.all_gather(8e8, ranks) == pytest.approx(seconds / 2)


def test_latency_counts_rounds() -> None:
    network = Network(Link(1.0, 1e30), Link(100.0, 1e30), per_node=4)
    assert network.all_reduce(8, 4) == pytest.approx(2 * 3)
    assert network.all_reduce(8, 4 * 64) == pytest.approx(2 * 3 + 100 * 2 * 6)  # a tree of 64 nodes: 6 levels
    assert network.all_reduce(8, 1) == network.all_gather(8, 1) == 0


def test_nodes_send_what_their_ranks_hold_between_them() -> None:
    """Every rank sends its eighth through its own card; a flat ring would send all through each."""
    network = Network(Link(0.0, 1e30), Link(0.0, 1e9), per_node=8)
    assert network.all_reduce(8e9, 16) == pytest.approx(2 * 1e9 / 1e9 / 2)
    assert network.all_gather(8e9, 32) == pytest.approx(1e9 / 1e9 * 3 / 4)


@pytest.mark.parametrize(("stage", "passes"), [(0, 2), (1, 2 + 1), (2, 2 + 1), (3, 1 + 1)])
def test_a_step_sends_what_its_stage_must(stage: int, passes: int) -> None:
    """In units of an all-gather: an all-reduce is two."""
    network = Network(Link(0.0, 1e9), LINK, per_node=8)
    parts = step_parts(WORK, network, 4, stage, bucket=10_000_000)
    assert parts.exposed == pytest.approx(passes * network.all_gather(FP32 * WORK.parameters, 4))
    assert parts.compute == pytest.approx(3.0 + (0.1 if stage else 0.4))
    assert step_parts(WORK, network, 1, stage, bucket=1).step == pytest.approx(3.4)


def test_gradients_hide_behind_the_backward_pass() -> None:
    network = Network(LINK, LINK, per_node=8)
    slow, hidden = (step_parts(WORK, network, 8, 1, bucket=50_000_000, overlap=overlap) for overlap in (0.0, 0.1))
    assert hidden.hidden == pytest.approx(0.2)
    assert slow.step - hidden.step == pytest.approx(0.2)
    everything = step_parts(WORK, Network(LINK, LINK, 8), 8, 1, bucket=50_000_000, overlap=1.0)
    gathering = Network(LINK, LINK, 8).all_gather(FP32 * WORK.parameters, 8)
    assert everything.exposed == pytest.approx(gathering)
    assert step_parts(WORK, Network(LINK, LINK, 8), 8, 0, bucket=1, overlap=1.0).hidden == 0  # DeepSpeed has no overlap


def test_more_micro_batches_send_once_but_at_stage_2() -> None:
    network = Network(LINK, LINK, per_node=8)
    for stage in (0, 1):
        once, four = (step_parts(WORK, network, 8, stage, bucket=10**8, micro_batches=n) for n in (1, 4))
        assert four.exposed == once.exposed
        assert four.compute - once.compute == pytest.approx(9.0)
    once, four = (step_parts(WORK, network, 8, 2, bucket=10**8, micro_batches=n) for n in (1, 4))
    assert four.exposed > 2.5 * once.exposed


def test_a_link_is_found_again_from_its_times() -> None:
    network = Network(LINK, LINK, per_node=2)
    reduced, gathered = fit_link([network.all_reduce(s, 2) for s in MESSAGES], 2), fit_link(
        [network.all_gather(s, 2) for s in MESSAGES], 1
    )  # fmt: skip
    for found in (reduced, gathered):
        assert (found.alpha, found.beta) == (pytest.approx(LINK.alpha), pytest.approx(LINK.beta))


def test_processes_share_cores() -> None:
    """Four processes on two cores, beside which computing takes 1.1 times as long: everything twice, and that."""
    config = load_config("demo", ["engine.precision=fp32"])
    phases = {"forward": 1.0, "backward": 2.0, "optimizer": 0.5, "step": 3.5}
    network = Network(LINK, LINK, per_node=2)
    link = {"all_reduce": [network.all_reduce(s, 2) for s in MESSAGES]}
    link["all_gather"] = [network.all_gather(s, 2) for s in MESSAGES]
    steps = {str(stage): phases for stage in range(4)}
    measured = {
        world: {"compute": compute, "steps": steps, "link": link} for world, compute in ((1, 1.0), (2, 1.1), (4, 9.9))
    }
    rows = {(row["world"], row["stage"]): row["predicted"] for row in predict_steps(measured, config, cores=2)}
    size = FP32 * count_parameters(config).total
    assert rows[1, 0] == pytest.approx(3.5)
    assert rows[2, 0] == pytest.approx(1.1 * 3.5 + network.all_reduce(size, 2))
    assert rows[4, 0] == pytest.approx(2 * 1.1 * 3.5 + 2 * Network(LINK, LINK, 4).all_reduce(size, 4))


def test_matrices_are_those_of_the_model() -> None:
    for changes in ([], ["model.decoder=shared"], ["target.kind=frame"]):
        config = load_config("demo", ["model.pos_embed=sinusoidal", *changes])
        assert matrices(config) == sum(p.ndim == 2 for p in build_motionmae(config).parameters())


def test_the_end_of_scaling_is_the_last_number_of_gpus_above() -> None:
    rows = [{"stage": 0, "ranks": n, "weak": e} for n, e in ((1, 1.0), (2, 0.95), (4, 0.8), (8, 0.91))]
    assert [last_above(rows, 0, "weak", limit) for limit in (0.9, 0.5)] == [2, 8]


def test_the_script_draws_and_writes(tmp_path: Path) -> None:
    picture, figures = tmp_path / "scaling.png", tmp_path / "scaling.json"
    command = [sys.executable, "-m", "benchmarks.experiments.scaling", f"--picture={picture}", f"--json={figures}"]
    done = subprocess.run([*command, "--seconds-per-clip=0.006"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "6.00 ms per clip (measured)" in done.stdout.replace("\n", " ")
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = json.loads(figures.read_text())["rows"]
    assert len(rows) == 4 * 11
    assert all(row["weak"] == 1 for row in rows if row["ranks"] == 1)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("experiments/scaling.py --gpu foo", "unknown GPU foo"),
        ("experiments/scaling.py --config nope", f"{CONFIG_FOLDER} has no config 'nope'"),
        ("experiments/scaling.py foo.bar=1", "unknown key foo (from foo.bar=1)"),
        ("experiments/scaling.py --per-node 0", "--per-node 0 is out of range: it must be above 0"),
        ("experiments/scaling.py --outside-gbs 0", "--outside-gbs 0.0 is out of range: it must be above 0"),
        ("experiments/scaling.py --inside-us nan", "--inside-us nan is out of range: it must be at least 0"),
        ("experiments/scaling.py --overlap 3", "--overlap 3.0 is out of range: it is a fraction and at most 1"),
        ("checkpoint.py --config nope", f"{CONFIG_FOLDER} has no config 'nope'"),
        ("memory.py --config nope", f"{CONFIG_FOLDER} has no config 'nope'"),
        ("davis_baselines.py --davis nope", "nope/ImageSets/2017/val.txt is missing"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    argv: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *given = argv.split()
    monkeypatch.setattr(sys, "argv", [script, *given])
    main = importlib.import_module(f"benchmarks.{script.removesuffix('.py').replace('/', '.')}").main
    assert run(main) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}")
    assert error.count("\n") == 1
