"""What the report says of a run, worked by hand."""

from pathlib import Path

import pytest

from monitoring.report import page
from monitoring.report.losses import HeadLoss, last_loss, loss_table
from monitoring.report.pictures import data_url, reconstructions
from motionmae.config import Config
from motionmae.planning.flops import step_flops
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Phase
from tests.monitoring.runs import history_of, metrics_row


def test_flops_are_those_of_the_clips_of_all_ranks(tmp_path: Path):
    rows = [metrics_row(1, clips_per_second=10.0), {**metrics_row(2, clips_per_second=30.0), "attempt": "unknown"}]
    history = history_of(tmp_path / "run", (), rows, "monitoring.peak_tflops=2")
    flops = step_flops(history.config).model  # type: ignore[arg-type]
    assert page._flops(history, with_peak=True) == pytest.approx([10 * flops / 4e12, 30 * flops / 2e12])
    assert page._flops(history, with_peak=False) == pytest.approx([10 * flops / 1e9, 30 * flops / 1e9])
    assert page._flops(history_of(tmp_path / "bare", (), rows), with_peak=False) == [None, None]


def test_mfu_needs_the_peak_of_every_run(tmp_path: Path):
    rows = [metrics_row(1), metrics_row(2)]
    known = history_of(tmp_path / "known", (), rows, "monitoring.peak_tflops=2")
    unknown = history_of(tmp_path / "unknown", (), rows, "seed=1")
    assert ">MFU<" in page.render([known])
    for histories in ([unknown], [known, unknown]):
        assert "GFLOP/s of the model" in page.render(histories)
        assert ">MFU<" not in page.render(histories)


def test_facts_of_the_loader(tmp_path: Path):
    rows = [
        metrics_row(step, seconds=2.0, data_wait_seconds=wait, loader_ready=ready)
        for step, wait, ready in ((1, 1.0, 0), (2, 0.0, 2), (3, 0.5, 0), (4, 0.1, 6))
    ]
    corrupt = [{"kind": "corrupt_sample", "step": 4, "reasons": {"decode": n}, "total": n} for n in (1, 3)]
    history = history_of(tmp_path / "run", corrupt, rows, "data.prefetch=7")
    assert page._loader_facts(history) == [
        ("waiting for data, mean over steps", "20.0%"),
        ("waiting for data, 95th percentile", "25.0%"),  # of four rows, the third
        ("micro-batches ready, mean", "2.0 of 7"),
        ("logged steps with none ready", "50.0%"),
        ("corrupt: decode", "3"),
    ]
    assert page._loader_facts(history_of(tmp_path / "none")) == []


def test_facts_of_a_mixture():
    row = {"source_samples/a": 3000, "source_samples/b": 1000, "source_passes/a": 1.5, "source_passes/b": None}
    assert page._source_facts({**row, "loss": 1.0}) == [
        ("samples of a", "3,000 (75.0%), 1.50 passes"), ("samples of b", "1,000 (25.0%), 0.00 passes"),
    ]  # fmt: skip
    assert page._source_facts({"source_samples/a": None}) == [("samples of a", "0 (0.0%), 0.00 passes")]


def test_intervals_of_a_run_begin_with_its_submission(tmp_path: Path):
    events = [
        {"kind": "submitted", "step": 0, "time": 40.0, "attempt": ""},
        {"kind": "ready", "step": 0, "time": 108.0, "total_steps": 9},
        {"kind": "finish", "step": 5, "time": 130.0},
    ]
    history = history_of(tmp_path / "run", events, [metrics_row(step) for step in (1, 5)])
    assert page._attempt_intervals(history) == [
        (0.0, 60.0, "queue_wait", "in the queue"),
        (60.0, 68.0, "init", "attempt 1: starting"),
        (68.0, 90.0, "productive", "attempt 1: steps 0 to 5"),
    ]
    assert page._attempt_intervals(history_of(tmp_path / "bare")) == [
        (0.0, 0.0, "init", "attempt 1: starting"),
        (0.0, 0.0, "productive", "attempt 1: steps 0 to 0"),
    ]


def test_an_interval_between_attempts_says_why(tmp_path: Path):
    events = [
        {"kind": "ready", "step": 0, "time": 108.0, "total_steps": 9},
        {"kind": "stop", "step": 5, "time": 130.0, "reason": "preempted"},
        {"kind": "start", "step": 0, "time": 150.0, "world": 2, "hosts": ["n"], "attempt": "b"},
    ]
    (_, _, between, *_) = sorted(page._attempt_intervals(history_of(tmp_path / "run", events)))[:3]
    assert between == (30.0, 50.0, "queue_wait", "preempted or out of time, after a save; waiting in the queue")


def test_differences_leave_out_names_and_shorten_long_values():
    one = {"name": "a", "output_dir": "x", "data.shards": "s", "seed": 0, "long": "v" * 120, "same": 1}
    other = {"name": "b", "output_dir": "y", "data.shards": "t", "seed": 1, "long": "w" * 121, "same": 1}
    assert page._differences({"a": one, "b": other}) == [
        ["seed", "0", "1"], ["long", "v" * 120, "w" * 117 + "..."],
    ]  # fmt: skip
    assert page._differences({}) == []


def test_one_run_is_compared_with_the_defaults_and_two_with_each_other(tmp_path: Path):
    one = history_of(tmp_path / "one", (), [metrics_row(1)], "seed=3")
    other = history_of(tmp_path / "other", (), [metrics_row(1)], "seed=4")
    assert "<td>seed</td><td>0</td><td>3</td>" in page.render([one]).replace("\n", "").replace("> <", "><")
    both = page.render([one, other]).replace("\n", "").replace("> <", "><")
    assert "<td>seed</td><td>3</td><td>4</td>" in both
    assert Config().seed == 0
    assert "one and other" in both


def test_validations_have_a_chart_of_each_figure(tmp_path: Path):
    events = [
        {"kind": "validation", "step": 4, "top1": 25.0, "loss": 2.0, "seconds": 1.0},
        {"kind": "validation", "step": 8, "top1": 50.0, "loss": 1.5, "seconds": 1.0, "is_best": True},
    ]
    measured, bare = history_of(tmp_path / "one", events), history_of(tmp_path / "two")
    found = page._validation_charts([measured, bare], ["red", "blue"])
    assert [title for title, _ in found] == ["Validation: loss", "Validation: top-1, per cent"]
    (curve,) = found[1][1].curves
    assert (curve.name, curve.steps, curve.values, curve.colour) == ("one", [4, 8], [25.0, 50.0], "red")
    (alone,) = page._validation_charts([measured], ["red"])[0][1].curves
    assert alone.name == ""


def test_confusion_matrices_of_the_best_and_the_last_validation(tmp_path: Path):
    events = [
        {"kind": "validation", "step": step, "loss": 1.0, "seconds": 1.0, "is_best": step == 4} for step in (4, 8, 12)
    ]
    history = history_of(tmp_path / "run", events)
    history.folder.validation.mkdir()
    assert page._confusions(history) == []
    for step in (4, 8, 12):
        (history.folder.validation / f"step-{step:08d}.png").write_bytes(b"%d" % step)
    assert page._confusions(history) == [
        ("Confusion matrix of step 4", data_url(b"4")), ("Confusion matrix of step 12", data_url(b"12")),
    ]  # fmt: skip
    best_is_last = history_of(tmp_path / "other", [{**events[0], "step": 12}])
    best_is_last.folder.validation.mkdir()
    (best_is_last.folder.validation / "step-00000012.png").write_bytes(b"12")
    assert len(page._confusions(best_is_last)) == 1
    assert data_url(b"12") == "data:image/png;base64,MTI="


def test_areas_of_the_phases_are_the_seconds_of_a_step(tmp_path: Path):
    row = metrics_row(1, seconds=8.0)
    del row["checkpoint_seconds"]  # of an older version
    history = history_of(tmp_path / "run", (), [row, {"step": 2}])
    drawn = page._phases(history)
    seconds = {curve.name: curve.values for curve in drawn.curves}
    assert seconds == {
        "forward": [4.0], "backward": [2.0], "optimizer": [1.0], "data wait": [1.0], "checkpoint": [0.0],
        "memory copy": [0.0], "validation": [0.0], "other": [0.0],
    }  # fmt: skip
    assert {curve.colour for curve in drawn.curves} == {f"var(--{phase.value})" for phase in Phase}
    assert drawn.stacked


def test_charts_of_the_rows_name_runs_only_beside_others(tmp_path: Path):
    rows = [metrics_row(1, lr=0.5), metrics_row(2, lr=1.0), {**metrics_row(2, lr=0.25), "attempt": "b"}]
    one, other = (history_of(tmp_path / name, (), rows) for name in ("one", "other"))
    loss = HeadLoss("one", "space", 2, 9.0, 7.0, 8.0, None)
    drawn = dict(page._charts([one, other], ["red", "blue"], [loss]))
    assert list(drawn)[-5:] == [
        "Learning rate", "Gradient norm, before clipping", "Clips a second", "Seconds a step",
        "GFLOP/s of the model (set monitoring.peak_tflops for MFU)",
    ]  # fmt: skip
    assert [curve.name for curve in drawn["loss, space head"].curves] == ["one", "one predicting the mean", "other"]
    mean = drawn["loss, space head"].curves[1]
    assert (mean.steps, mean.values, mean.dashed, mean.colour) == ([1, 2], [8.0, 8.0], True, "red")
    assert [curve.name for curve in dict(page._charts([one], ["red"], [loss]))["loss, space head"].curves] == [
        "", "predicting the mean",
    ]  # fmt: skip
    rate = drawn["Learning rate"]
    assert (rate.curves[0].values, rate.marks, rate.y(0)) == ([0.5, 0.25], [(2, "red"), (2, "blue")], 224)
    assert drawn["loss"].y(0) > 224  # its axis does not begin at 0


@pytest.mark.parametrize(
    ("key", "name"), [("loss", "loss"), ("loss_space", "loss, space head"), ("loss_time", "loss, time head")]
)
def test_names_of_losses(key: str, name: str):
    assert page._loss_name(key) == name


def test_the_last_loss_is_the_mean_of_five_and_the_table_compares_it(tmp_path: Path):
    rows = [metrics_row(step, loss=float(loss)) for step, loss in enumerate((100, 6, 5, 4, 3, 2), 1)]
    history = history_of(tmp_path / "run", (), [*rows, metrics_row(7, loss=None)])
    assert last_loss(history, "loss") == 4
    losses = [HeadLoss("r", "space", 7, 6.0, 4.0, 5.0, 0.25), HeadLoss("r", "time", 7, 6.0, 4.0, None, None)]
    head, table = loss_table(losses)
    assert head[-3:] == ["predicting the mean", "last / mean", "explained, held out"]
    assert table == [
        ["r", "space", "7", "6.0000", "4.0000", "5.0000", "0.80", "0.250"],
        ["r", "time", "7", "6.0000", "4.0000", "", "", ""],
    ]
    assert len(loss_table(losses[1:])[0]) == 7


def test_three_of_the_drawn_pictures_are_shown_in_order(tmp_path: Path):
    folder = RunFolder(tmp_path / "run").reconstructions
    folder.mkdir(parents=True)
    for step in (30, 10, 20, 50, 40):
        (folder / f"step-{step:08d}.png").write_bytes(b"%d" % step)
    shown = reconstructions(tmp_path / "run")
    assert [(picture.title, picture.strips) for picture in shown] == [
        (f"run, step-000000{step}", [("", data_url(b"%d" % step))]) for step in (10, 30, 50)
    ]
    for step in (10, 30, 40, 50):
        (folder / f"step-{step:08d}.png").unlink()
    assert len(reconstructions(tmp_path / "run")) == 1
