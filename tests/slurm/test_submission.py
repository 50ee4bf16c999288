import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from motionmae.commands import app
from motionmae.config import load_config
from motionmae.data.open_shards import check_node_file
from motionmae.data.remote import download
from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason
from motionmae.runs.history import Attempt
from slurm import code_snapshot, submission
from slurm.attempt_log import AttemptLog
from slurm.job_state import JobRecord
from tests.commands.functions import submit
from tests.data.shard_server import serving
from tests.slurm import tiny
from tests.slurm.fakes.jobs import ROOT
from tests.training.launch import wait_until
from tests.training.shards import make_shards

LOCAL = ["--cluster", "local", "--config", "demo"]


def _run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = submit(argv)
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.mark.parametrize(("name", "parameters"), [("vitl_k400", "331.7 M"), ("vith_k400", "659.7 M")])
def test_dry_run_shows_script_config_and_estimate(
    name: str, parameters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PATH", "")  # a laptop without Slurm
    argv = ("--nodes", "4", "--config", name, "--partition", "big", "--time", "1-00:00:00", "--dry-run", "seed=7")
    status, out, _ = _run(capsys, *argv)
    assert status == 0
    script, _, rest = out.partition("# resolved configuration\n")
    for line in ("#SBATCH --nodes=4", "#SBATCH --partition=big", "#SBATCH --time=1440", "#SBATCH --signal=USR2@120"):
        assert line in script.splitlines()
    assert "srun --unbuffered" in script
    table = rest.index(f"{name}: estimate")
    shown = yaml.safe_load(rest[:table])
    expected = load_config(name, ["seed=7", "launch.nodes=4", "launch.partition=big"])
    assert (shown["seed"], shown["launch"]["nodes"], shown["model"]["size"]) == (7, 4, expected.model.size)
    assert shown["output_dir"] == str(tmp_path / "runs")
    for text in (parameters, "memory a GPU", "clips a step", "512 (", "GPU-days"):
        assert text in rest[table:]
    assert list(tmp_path.iterdir()) == []


def test_a_fine_tuning_without_weights_or_with_an_unreadable_policy_is_not_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shards = make_shards(tmp_path / "shards", classes=2)
    argv = ("--cluster", "local", "--config", "finetune_tiny_toy", f"data.shards={shards}", "finetune.init=gone")
    status, _, error = _run(capsys, *argv)
    assert status == 2
    assert f"finetune.init={tmp_path / 'gone'} does not exist" in error
    status, _, error = _run(capsys, *argv, "data.rand_augment=nonsense")
    assert status == 2
    assert "data.rand_augment=nonsense is not in timm's notation" in error
    assert not (tmp_path / "runs" / "finetune_tiny_toy" / "job.json").exists()


def test_dry_run_of_a_local_job_shows_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = _run(capsys, *LOCAL, "--dry-run")
    assert status == 0
    assert out.startswith("# 3")  # what differs from the defaults comes first
    assert any("-m submitit.core._submit" in line for line in out.splitlines())
    assert "memory a rank" in out


@pytest.mark.parametrize("argv", [["slurm/submit.py", "--config", "demo"], ["-m", "benchmarks.experiments.ablations"]])
def test_a_dry_run_of_which_only_the_head_is_read_ends_in_silence(argv: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *argv, "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "Error" not in done.stderr


def test_every_flag_reaches_its_key() -> None:
    given = {
        "--nodes": "3",
        "--ntasks-per-node": "2",
        "--gpus-per-node": "0",
        "--cpus-per-task": "5",
        "--time": "1:00:00",
        "--signal-seconds": "33",
        "--max-timeouts": "9",
        "--max-retries": "4",
        "--spares": "2",
        "--min-nodes": "1",
        "--standby": "False",
        "--heartbeat-seconds": "7",
        "--chain": "2",
        "--preflight-seconds": "50",
        "--partition": "p",
        "--account": "a",
        "--qos": "q",
        "--constraint": "c",
        "--exclude": "node[1-3],x",
        "--comment": "it's: 100 % {true}",
        "--gpu-type": "",
        "--gpu-option": "gres",
        "--master-interface": "",
        "--master-suffix": ".ib",
    }
    argv = ["--config", "demo", "optim.global_batch_size=96", *(word for pair in given.items() for word in pair)]
    _, config = submission.load(app.parse(["submit", *argv])[1])
    found = {f"--{key.replace('_', '-')}": str(value) for key, value in config.launch.model_dump().items()}
    assert found == given | {"--time": "60"}


def test_a_site_file_cannot_set_what_the_launcher_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("sbatch: {array: 0-3}")
    status, _, error = _run(capsys, "--config", "demo", "--site", str(site), "--dry-run")
    assert status == 2
    assert f"{site}: sbatch array conflicts with the launcher: use --seeds" in error


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--config", "vitl_k4000"], "has no config 'vitl_k4000'"),
        (["--config", "demo", "optim.btach=3"], "did you mean optim.global_batch_size"),
        (["--config", "demo", "--nodes", "2", "--cluster", "local"], "add --nodes 1"),
        (["--config", "demo", "--nodes", "0"], "launch.nodes=0 is not possible"),
        (["--config", "demo", "--nodes", "7"], "is not divisible by"),
        (["--config", "vitb_k400", "--gpus-per-node", "4", "--dry-run"], "add --ntasks-per-node 4"),
        (["--config", "demo", "--time", "soon"], "--time soon"),
        (["--config", "demo", "--time", "2", "--signal-seconds", "120"], "launch.signal_seconds=120 is not possible"),
        ([*LOCAL, "--sbatch", "mem=1G"], "--sbatch is for Slurm"),
        ([*LOCAL, "--dependency", "afterok:1"], "--dependency is for Slurm"),
        (["--config", "demo", "--site", "nowhere.yaml"], "--site nowhere.yaml does not exist"),
        (["--config", "demo", "--seeds", "0-x"], "--seeds 0-x is not a list of seeds: write for example"),
        (["--config", "demo", "--seeds", "1,0-2"], "is empty or names a seed twice"),
        (["--config", "demo", "--seeds", "0-1", "--follow"], "leave out --follow"),
        ([*LOCAL, "data.shards=''"], "data.shards is empty"),
        ([*LOCAL, "data.shards=nowhere"], "does not exist"),
        ([*LOCAL, "data.shards='pipe://cat x'"], "URL of http, https, s3"),
        ([*LOCAL, "data.shards=http://me:secret@host/x"], "holds a user name"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(
    argv: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = _run(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_remote_shards_are_looked_at_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "FIRST_DELAY", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    make_shards(tmp_path / "shards", samples=8)
    with serving(tmp_path / "shards") as server:
        config = load_config("demo", [f"data.shards={server.url}"])
        submission.check_shards(config)
        with pytest.raises(UserError, match=r"16 samples, fewer than one step takes .*: set optim\.global_batch_size="):
            submission.check_shards(config.updated({"optim.global_batch_size": 32}))
        with pytest.raises(UserError, match=r"has no manifest\.json"):
            submission.check_shards(load_config("demo", [f"data.shards={server.url}/nowhere"]))
    assert capsys.readouterr().out == ""
    submission.check_shards(config)  # perhaps only the nodes reach it
    assert capsys.readouterr().out.startswith("note: this machine cannot reach the shards, but the nodes may: ")


def test_a_validation_folder_that_cannot_validate_the_run_is_refused(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", samples=8, classes=2)
    make_shards(tmp_path / "val", samples=4, classes=3)
    (tmp_path / "videos").mkdir()
    demo = load_config("demo", [f"data.shards={tmp_path / 'shards'}", "optim.global_batch_size=8"])
    small = demo.updated({"engine.micro_batch_size": 4, "clip.frames": 4, "clip.stride": 1})
    finetune = small.updated({"task": "finetune"})
    submission.check_shards(small.updated({"validation.shards": str(tmp_path / "val")}))
    faults = {
        "nowhere": r"validation\.shards=\S+nowhere cannot be used: the folder of shards \S+ does not exist",
        "videos": r"validation\.shards=\S+videos cannot be used: ",
        "val": r"1 classes of \S+val are not among the 2 classes of the model, such as 'bar2'",
    }
    for name, sentence in faults.items():
        with pytest.raises(UserError, match=sentence):
            submission.check_shards(finetune.updated({"validation.shards": str(tmp_path / name)}))
    one_class = make_shards(tmp_path / "unlabelled", samples=8)
    knn = {"validation.shards": str(tmp_path / "val"), "validation.knn_train": str(one_class)}
    with pytest.raises(UserError, match="has 1 classes, but the k-NN needs two"):
        submission.check_shards(small.updated(knn))


def test_a_mixture_with_different_classes_is_refused_for_fine_tuning(tmp_path: Path) -> None:
    two, three = (make_shards(tmp_path / f"{n}", samples=4 * n, classes=n) for n in (2, 3))
    mixture = load_config("demo", [f"data.shards=[{two}, {three}]", "optim.global_batch_size=8"])
    small = mixture.updated({"engine.micro_batch_size": 4, "clip.frames": 4, "clip.stride": 1})
    submission.check_shards(small)  # pre-training needs no classes
    finetune = small.updated({"task": "finetune"})
    for config in (finetune, finetune.updated({"validation.shards": str(two)})):
        with pytest.raises(UserError, match=r"2 and 3 of data\.shards have different classes \(2 and 3\)"):
            submission.check_shards(config)


def test_a_beton_that_is_missing_is_refused_or_on_slurm_looked_for_by_the_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shards = make_shards(tmp_path / "shards", samples=16)
    status, out, err = _run(capsys, *LOCAL, f"data.shards={shards}", "data.beton=x.beton")
    assert (status, out) == (2, "")
    assert f"data.beton={tmp_path}/x.beton does not exist: write it with `motionmae shards beton" in err
    assert not (tmp_path / "runs").exists()
    data = load_config("demo", [f"data.beton={tmp_path}/x.beton"]).data
    note = check_node_file(data, on_this_machine=False)
    assert note.startswith(f"data.beton={tmp_path}/x.beton does not exist on this machine")
    assert check_node_file(load_config("demo", ["data.beton=$TMPDIR/x.beton"]).data, on_this_machine=True) == ""
    (tmp_path / "x.beton").touch()
    for here in (True, False):
        assert check_node_file(data, on_this_machine=here) == ""


def test_a_machine_without_slurm_is_told_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    status, _, err = _run(capsys, "--config", "demo")
    assert status == 2
    assert "sbatch is missing on this machine" in err


def test_what_sbatch_says_against_a_job_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_shards(tmp_path / "shards", samples=8)
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    status, _, err = _run(capsys, "--config", "demo", f"data.shards={shards}", "--partition", "nowhere")
    assert status == 2
    assert "invalid partition specified: nowhere" in err
    assert JobRecord.read(tmp_path / "runs/demo") is None


def test_a_submission_passes_on_site_file_seeds_dependency_and_bad_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_shards(tmp_path / "shards", samples=8)
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        "#!/bin/sh\necho $$ $(cat $1 | grep SBATCH | tr '\\n' ' ') >> said; echo Submitted batch job $$\n"
    )
    sbatch.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "site.yaml").write_text(
        "launch: {partition: gpu, account: vision}\nsbatch: {mem: 40G, reservation: us, dependency: singleton}\n"
    )
    for restart in (0, 1):
        (tmp_path / "runs/demo_seed3").mkdir(parents=True, exist_ok=True)
        AttemptLog(tmp_path / "runs/demo_seed3").log_failure(
            Attempt(job="7", restart=restart), EndReason.KILLED, 0, "node9"
        )

    argv = ("--config", "demo", f"data.shards={shards}", "--site", "site.yaml", "--seeds", "2-3", "--account", "mine")
    status, out, _ = _run(capsys, *argv, "--dependency", "afterok:4", "--sbatch", "mem=9G", "launch.exclude=node1")
    assert status == 0
    first, second = Path("said").read_text().splitlines()
    for line in (first, second):
        for option in ("partition=gpu", "account=mine", "mem=9G", "reservation=us", "dependency=afterok:4"):
            assert f"--{option} " in line
    assert "--exclude=node1 " in first
    assert "--exclude=node1,node9 " in second
    assert "excluded   node9 (a rank was killed and a rank was killed)" in out
    assert "name=demo_seed3 seed=3 --follow" in out
    records = [JobRecord.read(tmp_path / f"runs/demo_seed{seed}") for seed in (2, 3)]
    assert [record.job_id for record in records if record] == [line.split()[0] for line in (first, second)]


def test_a_chain_has_as_many_jobs_as_asked_for_and_ends_where_slurm_refuses_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_shards(tmp_path / "shards", samples=8)
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(  # takes five jobs, 41 to 45
        "#!/bin/sh\ntest ! -e said || test $(wc -l < said) -lt 5 || { echo too many jobs >&2; exit 1; }\n"
        "echo $(sed -n 's/#SBATCH --dependency=//p' $1) >> said; echo Submitted batch job 4$(wc -l < said)\n"
    )
    sbatch.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    argv = ("--config", "demo", f"data.shards={shards}", "--chain", "2", "--dependency", "afterok:4")
    status, out, _ = _run(capsys, *argv, "name=whole")
    assert status == 0
    assert "job        41 (slurm), then 42, 43" in out
    status, out, _ = _run(capsys, *argv, "name=cut")
    assert status == 0
    assert "note: Slurm refused job 2 of 2 behind the run's job: " in out
    assert Path("said").read_text().split() == [
        "afterok:4", "afterok:4,singleton", "afterok:4,singleton", "afterok:4", "afterok:4,singleton",
    ]  # fmt: skip
    records = [JobRecord.read(tmp_path / "runs" / name) for name in ("whole", "cut")]
    assert [(record.chain, record.links) for record in records if record] == [
        (("41", "42", "43"), 2), (("44", "45"), 2),
    ]  # fmt: skip


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Path]:
    """A copy of the repository, and an end to the local job that was started from it."""
    copy = code_snapshot.collect(ROOT).write(tmp_path / "elsewhere")
    yield copy / "slurm/submit.py"
    record = JobRecord.read(tmp_path / "runs/demo")
    if record is not None:
        with suppress(ProcessLookupError):
            os.killpg(int(record.job_id), signal.SIGKILL)


def _logs(run: Path) -> str:
    logs = [path for path in sorted((run / "logs").rglob("*")) if path.suffix in (".out", ".err", ".log")]
    return "\n".join(f"--- {log} ---\n{log.read_text(errors='replace')}" for log in logs)


@pytest.mark.long
def test_a_local_run_is_preempted_and_goes_on_with_the_code_it_was_submitted_with(
    program: Path, tmp_path: Path
) -> None:
    shards = make_shards(tmp_path / "shards", samples=8)
    command = [sys.executable, str(program), *LOCAL, *tiny.overrides(shards), "--follow"]
    run = tmp_path / "runs/demo"
    watcher = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(tiny.rows(run)) >= 5, "metrics", output=lambda: _logs(run))
    watcher.send_signal(signal.SIGINT)
    _, message = watcher.communicate(timeout=300)  # standard error
    record = JobRecord.read(run)
    assert record is not None
    assert watcher.returncode == 130
    assert f"job {record.job_id} continues" in message

    for module in ("training/trainer", "training/setup", "engine/deepspeed_engine"):  # --follow imports none of these
        edited = program.parents[1] / f"motionmae/{module}.py"
        assert edited.is_file()
        edited.write_text("raise RuntimeError('edited after the submission')")
    os.kill(int(record.job_id), signal.SIGUSR2)
    attached = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert attached.returncode == 0, attached.stdout
    assert f"following job {record.job_id}; nothing new is submitted" in attached.stdout
    assert [row["step"] for row in tiny.rows(run)] == list(range(1, tiny.STEPS + 1))
    assert len({row["attempt"] for row in tiny.rows(run)}) == 2


def test_a_run_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_shards(tmp_path / "shards")
    (tmp_path / "runs").write_text("a file")
    status, _, error = _run(capsys, *LOCAL, f"output_dir={tmp_path}/runs", f"data.shards={shards}")
    assert (status, error.count("\n")) == (2, 1)
    assert f"error: {tmp_path}/runs/demo cannot be read or written (" in error
    assert "set output_dir to a writable folder" in error


def test_what_a_run_would_not_look_at_is_refused(capsys: pytest.CaptureFixture[str]):
    assert submit(["--cluster", "local", "--config", "tiny_toy", "--dry-run", "finetune.init=runs/x"]) == 2
    assert "finetune.init=runs/x would change nothing" in capsys.readouterr().err


def test_an_attempt_log_of_a_stranger_reaches_no_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"what": "failure", "job": "1", "restart": 0, "reason": "bad_node", "step": 0, "node": node}
        for node in ("n1 \\'\"\ntouch INJECTED_BY_ATTEMPTS\n#", "n2")
    ]
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/attempts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    status, out, _ = _run(capsys, "--config", "demo", "--dry-run")
    script = out.partition("# resolved configuration")[0]
    assert status == 0
    assert "INJECTED" not in out
    assert "#SBATCH --exclude=n2" in script.splitlines()
    checked = subprocess.run(["bash"], input=script.partition("\nexec")[0], text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    "argv",
    [
        ["--comment", "a\ntouch INJECTED"],
        ["--partition", "a\\' --uid=0"],
        ["--exclude", "n1\n"],
        ["--sbatch", "comment=a\ntouch INJECTED"],
        ["--dependency", "afterok:1\ntouch INJECTED"],
        ["--dependency", "bogus"],
        ["name=a\nb"],
        ["output_dir=a\\b"],
    ],
)
def test_a_text_that_ends_its_line_of_the_script_is_refused(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = _run(capsys, "--config", "demo", "--dry-run", *argv)
    assert (status, out) == (2, "")
    assert "is not possible: " in err
    assert len(err.splitlines()) == 1
