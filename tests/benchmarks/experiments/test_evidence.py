"""The experiment benchmarks/experiments/evidence: names of runs, order of trials, and the table."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.experiments.evidence import cli
from benchmarks.experiments.evidence.cli import main
from benchmarks.experiments.evidence.data import a_tenth
from benchmarks.experiments.evidence.jobs import ARMS, USES, Experiment, Job, Trial, trials_of
from benchmarks.experiments.evidence.pool import Pool
from benchmarks.experiments.evidence.table import BEGIN, END, as_markdown, results
from tests.training.shards import make_shards

SMALL = (
    *("clip.frames=4", "clip.stride=1", "clip.size=24", "model.depth=1", "model.decoder_depth=1"),
    *(
        "optim.global_batch_size=4",
        "engine.micro_batch_size=4",
        "optim.epochs=1",
        "optim.warmup_epochs=0.5",
        "test.crops=1",
    ),
)


def test_a_run_is_found_again_by_what_it_depends_on_and_by_nothing_else(tmp_path: Path):
    row = Trial("both", 1, "finetune10")
    names = [job.config.name for job in Experiment(tmp_path).jobs(row)]
    encoder, classifier, test = names
    assert encoder.startswith("both_s1-")
    assert classifier.startswith("both_finetune10_s1-")
    assert test == classifier
    elsewhere = Experiment(tmp_path / "elsewhere", ("engine.micro_batch_size=2", "log.every_steps=1"))
    assert [job.config.name for job in elsewhere.jobs(row)] == names
    longer = [job.config.name for job in Experiment(tmp_path, ("optim.epochs=200",)).jobs(row)]
    assert not set(longer) & set(names)
    # the classifier's own recipe is as before, but its encoder is another
    other_encoder = [job.config.name for job in Experiment(tmp_path).jobs(Trial("both_tube", 1, "finetune10"))]
    keys = [name.rpartition("-")[2] for name in (classifier, other_encoder[1])]
    assert keys[0] != keys[1]


def test_changes_for_all_runs_do_not_train_the_untrained_encoder(tmp_path: Path):
    encoder, *_ = Experiment(tmp_path, ("optim.base_lr=0.03", "optim.epochs=9")).jobs(Trial("scratch", 0, "probe"))
    assert (encoder.config.optim.base_lr, encoder.config.optim.epochs) == (1e-12, 1)


def test_arms_differ_in_nothing_but_target_and_mask(tmp_path: Path):
    experiment = Experiment(tmp_path)
    for use in ("finetune10", "finetune100", "probe"):
        trained = {arm: experiment.jobs(Trial(arm, 0, use)) for arm in ARMS}
        recipes = {json.dumps([job.config.optim.__dict__, job.config.data.__dict__]) for *_, job in trained.values()}
        assert len(recipes) == 1
        if use != "probe":
            assert [job.config.finetune.init for job in trained["scratch"]] == ["scratch", "scratch"]
    budgets = {(job.config.optim, job.config.data, job.config.clip, job.config.model)
               for arm in ARMS if arm != "scratch" for job in experiment.jobs(Trial(arm, 0, "probe"))[:1]}  # fmt: skip
    assert len(budgets) == 1


def test_the_most_telling_rows_come_first():
    rows = trials_of(list(ARMS), None, list(USES))
    main_arms = [arm for arm in ARMS if ARMS[arm].main]
    assert [row.arm for row in rows[:5]] == [*main_arms, "scratch"]
    assert {row.use for row in rows[:4]} == {"finetune10"}
    assert [row.seed for row in rows if row.use == "finetune10" and ARMS[row.arm].main] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(rows) == len(set(rows)) == 3 * (4 * 3 + (len(ARMS) - 4)) + 1


def test_a_tenth_has_every_class():
    lines = [f"train/{number}.mp4 {number % 3}\n" for number in range(62)]
    kept = a_tenth(lines)
    assert [line.split()[1] for line in kept] == ["0", "1", "2"] * 2
    assert set(kept) < set(lines)
    assert a_tenth(lines[:3]) == lines[:3]


def test_the_table_says_what_is_there_and_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    experiment = Experiment(tmp_path)
    rows = trials_of(["scratch", "both"], None, ["finetune10", "single_frame"])
    for row, top1 in zip(rows, (20.0, 40.0, 7.0, 22.0, 41.0), strict=False):
        finish(experiment.jobs(row)[-1], top1)
    table = as_markdown(results({row: experiment.jobs(row) for row in rows}, "data", []))
    assert "| none: from scratch | 21.0 ± 1.4 (20.0, 22.0), 1 of 3 seeds not yet run |" in table
    assert "A classifier of single frames, all labels: 7.0." in table
    other = Trial("frame", 5, "probe")
    assert as_markdown(results({other: experiment.jobs(other)}, "data", [])).endswith("| frame | not yet run |")

    page = tmp_path / "page.md"
    argv = ["--collect", "--work", str(tmp_path), "--arm", "scratch", "both", "--use", "finetune10"]
    page.write_text("no marks")
    assert main([*argv, "--write", str(page)]) == 2
    assert "add them where the table belongs" in capsys.readouterr().err
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main([*argv, "--write", str(page), "--json", str(tmp_path / "found.json")]) == 0
    assert page.read_text() == f"before\n{BEGIN}\n{capsys.readouterr().out}{END}\nafter\n"
    assert [record["top1"] for record in json.loads((tmp_path / "found.json").read_text())] == [
        20.0, 22.0, None, 40.0, 41.0, None,
    ]  # fmt: skip


def test_figures_of_another_machine_are_taken_and_their_runs_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    there, here = Experiment(tmp_path / "there"), Experiment(tmp_path / "here")
    first, second = (Trial("scratch", seed, "finetune10") for seed in (0, 1))
    finish(there.jobs(first)[-1], 20.0)
    finish(there.jobs(second)[-1], 30.0)
    figures_file = tmp_path / "figures.json"
    argv = ["--arm", "scratch", "--use", "finetune10"]
    collect = ["--seed", "0", "1", "--collect", "--work", str(there.work), "--json", str(figures_file)]
    assert main([*argv, *collect]) == 0

    finish(here.jobs(second)[-1], 40.0)  # what lies here counts first
    made: list[Job] = []
    monkeypatch.setattr(cli, "make_data", lambda *_: None)
    monkeypatch.setattr(cli.Pool, "run", lambda pool: made.extend(pool._waiting))
    argv += ["--seed", "0", "1", "2", "--work", str(here.work), "--known", str(figures_file)]
    assert main(argv) == 0
    assert {job.config.seed for job in made} == {2}
    assert "30.0 ± 14.1 (20.0, 40.0), 1 of 3 seeds not yet run" in capsys.readouterr().out

    # a part of the rows loses nothing of what is known, and figures of other videos are not taken
    part = ["--collect", "--arm", "both", "--use", "probe", "--known", str(figures_file), "--work", str(here.work)]
    assert main([*part, "--json", str(tmp_path / "all.json")]) == 0
    assert [record["top1"] for record in json.loads((tmp_path / "all.json").read_text())][:2] == [20.0, 30.0]
    assert main([*part, "--train", "100", "--json", str(tmp_path / "other.json")]) == 0
    assert {record["top1"] for record in json.loads((tmp_path / "other.json").read_text())} == {None}

    good = json.loads(figures_file.read_text())
    for broken in (
        {"top1": 3},
        "",
        [good[0] | {"top1": math.nan}],
        [good[0] | {"top1": "3"}],
        [good[0] | {"arm": "x"}],
        [good[0] | {"seed": "0"}],
    ):
        figures_file.write_text(json.dumps(broken))
        assert main([*argv, "--collect"]) == 2
        assert "--known takes a file that --json wrote" in capsys.readouterr().err


def finish(job: Job, top1: float) -> None:
    report = job.run.path / "test" / "step1" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"top1": top1}))


@pytest.mark.long
def test_runs_are_made_once_and_what_needs_a_failed_one_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    experiment = Experiment(tmp_path, SMALL)
    for split in ("train10", "val"):
        make_shards(experiment.shards(split), samples=4, classes=2)
    make_shards(experiment.shards("train"), shards=1, samples=2)  # too few for a step of the pre-training
    rows = [Trial("scratch", 0, "finetune10"), Trial("both", 0, "finetune10")]
    jobs = [job for row in rows for job in experiment.jobs(row)]
    pool = Pool(jobs, 2, tmp_path / "logs")
    pool.run()
    assert [job.name for job in pool.failed] == [jobs[2].name]
    assert "error: " in (tmp_path / "logs" / f"{jobs[2].config.name}.log").read_text()
    top1 = jobs[1].top1()
    assert top1 is not None
    assert 0 <= top1 <= 100
    assert f"done    test {jobs[1].config.name}: {top1:.1f} % top-1" in capsys.readouterr().out

    again = Pool(jobs[:2], 2, tmp_path / "logs")
    again.run()
    assert again.failed == []
    assert capsys.readouterr().out == ""


def test_the_published_figures_belong_to_the_committed_configs():
    published = json.loads((Path(__file__).parents[3] / "docs/measurements/evidence.json").read_text())
    for record in published:
        trial = Trial(record["arm"], record["seed"], record["use"])
        assert Experiment(Path("work")).jobs(trial)[-1].config.name == record["run"]
