import os
from pathlib import Path

import pytest

from motionmae.config import load_config
from motionmae.errors import UserError
from slurm.sbatch import (
    batch_script,
    check_environment,
    parse_minutes,
    parse_options,
    parse_sbatch_options,
    requested_resources,
    sbatch,
)


def test_sbatch_options_are_parsed_and_those_of_the_launcher_refused() -> None:
    assert parse_sbatch_options(["mem=200G", "--dependency=afterok:1=2"]) == {
        "mem": "200G",
        "dependency": "afterok:1=2",
    }
    for own, remedy in {"array=0-3": "use --seeds", "time=9": "use --time", "chdir=/": "leave it out"}.items():
        with pytest.raises(UserError, match=f"--sbatch {own.partition('=')[0]} .*{remedy}"):
            parse_sbatch_options([own])
    with pytest.raises(UserError, match="--sbatch mem"):
        parse_sbatch_options(["mem"])


@pytest.mark.parametrize("text", ["exclusive", "exclusive=", "exclusive=true", "--exclusive=True", "exclusive=yes"])
def test_an_option_without_a_value_becomes_a_bare_line(text: str) -> None:
    assert parse_sbatch_options([text]) == {"exclusive": True}
    assert "\n#SBATCH --exclusive\n" in batch_script(parse_sbatch_options([text]), [])


def test_values_of_flags_are_kept_and_false_leaves_an_option_out() -> None:
    given = ["exclusive=user", "contiguous=false", "overcommit=true", "wckey=true", "gres=nvme:1", "fresh=3", "newer"]
    expected = {"exclusive": "user", "overcommit": True, "wckey": "true", "gres": "nvme:1", "fresh": "3", "newer": True}
    assert parse_sbatch_options(given) == expected


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("p=gpu", "use --partition"), ("part=gpu", "use --partition"), ("partition=gpu", "use --partition"),
        ("N=4", "use --nodes"), ("-N=4", "use --nodes"), ("tasks-per-node=4", "use --ntasks-per-node"),
        ("exclude=n1", "use --exclude"), ("x=n1", "use --exclude"), ("G=4", "use --gpus-per-node"),
        ("gpus-per-task=a100:1", "launch.gpu_option"), ("gres=gpu:a100:8", "launch.gpu_option"),
        ("gres=nvme:1,gpu:2", "launch.gpu_option"), ("workdir=/", "leave it out"), ("m=cyclic", "leave it out"),
        ("distribution=cyclic", "leave it out"), ("test-only", "leave it out"), ("w=n3", "nodelist: write it in full"),
        ("nodel=n3", "nodelist: write it in full"), ("gre=gpu:1", "gres or gres-flags: write it in full"),
    ],
)  # fmt: skip
def test_options_of_the_launcher_are_refused_under_every_name(text: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        parse_sbatch_options([text])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["launch.gpus_per_node=4"], {"gpus_per_node": 4}),
        (["launch.gpus_per_node=a100:4"], {"gpus_per_node": "a100:4"}),
        (["launch.gpus_per_node=a100:4", "launch.gpu_option=gres"], {"gres": "gpu:a100:4"}),
        (["launch.gpus_per_node=4", "launch.gpu_option=gres"], {"gres": "gpu:4"}),
        (["launch.gpus_per_node=h100:4", "launch.gpu_option=gpus-per-task"], {"gpus_per_task": "h100:2"}),
        (["launch.gpu_type=a100", "launch.gpus_per_node=h100:4"], {"gpus_per_node": "h100:4"}),
        (["launch.gpus_per_node=0", "launch.gpu_type=a100"], {}),
    ],
)
def test_typed_gpus_are_requested_in_each_form(overrides: list[str], expected: dict[str, object]) -> None:
    launch = load_config("vitb_k400", ["launch.ntasks_per_node=2", *overrides]).launch
    found = requested_resources(launch)
    assert {key: value for key, value in found.items() if key.startswith("g")} == expected


@pytest.mark.parametrize("gpus", ["a100:4,h100:4", "a100:x", ":4", "gpu:a100:4", "a100:4(S:0)"])
def test_gpus_of_other_forms_are_refused(gpus: str) -> None:
    with pytest.raises(
        UserError, match="write a number or TYPE:NUMBER, for example a100:8; the nodes of a run need one"
    ):
        load_config("vitb_k400", [f"launch.gpus_per_node={gpus}"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("5:30", 6),
        ("12:00:00", 720),
        ("0:00:30", 1),
        ("2-00", 2880),
        ("1-12:30", 2190),
        ("1-00:00:01", 1441),
    ],
)
def test_reads_slurm_s_forms_of_a_time_limit(text: str, expected: int) -> None:
    assert parse_minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1-", "-5", "1:2:3:4", "1.5", "x-1", "1:"])
def test_refuses_other_forms(text: str) -> None:
    with pytest.raises(UserError, match="--time"):
        parse_minutes(text)


INJECTIONS = (
    "a\ntouch INJECTED",
    "a\r\nb",
    "a\x1b[2J",
    "a\0",
    "a\u2028b",
    "a \\'\"\ntouch INJECTED\n#",
    "a\\' --uid=0 '",
)


@pytest.mark.parametrize("text", INJECTIONS)
def test_a_text_that_could_end_its_line_reaches_no_script(text: str) -> None:
    for refuse in (
        lambda: parse_sbatch_options([f"comment={text}"]),
        lambda: parse_sbatch_options([f"{text}=1"]),
        lambda: batch_script({"comment": text}, []),
        lambda: batch_script({text: "1"}, []),
        lambda: check_environment({"A": text.replace("\\", "\n")}),
        lambda: batch_script({}, [f"exec {text}".replace("\\", "\n")]),
    ):
        with pytest.raises(UserError, match="is not possible") as caught:
            refuse()
        assert str(caught.value).isprintable()


def test_honest_texts_reach_the_script_whole() -> None:
    script = batch_script({"comment": 'it\'s 100 % "mine"', "gpus_per_node": 8}, ["exec true 'a b'"])
    assert script.splitlines()[1:3] == [
        "#SBATCH --comment='it'\"'\"'s 100 % \"mine\"'",
        "#SBATCH --gpus-per-node=8",
    ]


def test_sbatch_answers_with_a_job_or_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sbatch"
    program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/words; cat > {tmp_path}/script; echo '12;cluster'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert sbatch("#!/bin/sh\ntrue\n") == "12"
    assert (tmp_path / "words").read_text() == "--parsable\n"
    assert (tmp_path / "script").read_text() == "#!/bin/sh\ntrue\n"
    program.write_text("#!/bin/sh\necho 'sbatch: error: Invalid account' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"sbatch refused the job \(sbatch: error: Invalid account\): correct the"):
        sbatch("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="sbatch is not installed on this machine"):
        sbatch("#!/bin/sh\n")


def test_a_script_is_requeued_and_its_logs_go_on() -> None:
    script = batch_script({"nodes": 2, "exclusive": True, "job_name": "a b"}, ["one", "two"])
    assert script == (
        "#!/bin/sh\n#SBATCH --nodes=2\n#SBATCH --exclusive\n#SBATCH --job-name='a b'\n#SBATCH --requeue\n"
        "#SBATCH --open-mode=append\none\ntwo\n"
    )


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("signal=USR1", "use --signal-seconds"), ("job-name=x", "use name=NAME"), ("cpus-per-gpu=2", "--cpus-per-task"),
        ("ntasks-per-gpu=1", "--ntasks-per-node"), ("ntasks-per-socket=1", "--ntasks-per-node"),
        ("ntasks-per-core=1", "--ntasks-per-node"), ("gpus=4", "--gpus-per-node NUMBER"),
        ("gpus-per-socket=1", "--gpus-per-node NUMBER"), ("nodes=2", "use --nodes"), ("qos=x", "use --qos"),
        ("account=x", "use --account"), ("constraint=x", "use --constraint"), ("comment=x", "use --comment"),
        ("cpus-per-task=3", "use --cpus-per-task"), ("ntasks-per-node=3", "use --ntasks-per-node"),
        *((f"{name}=x", "leave it out") for name in (
            "ntasks", "output", "error", "open-mode", "nodefile", "export", "export-file", "input", "wrap", "uid",
            "gid", "tres-per-task",
        )),
        *((name, "leave it out") for name in (
            "requeue", "no-requeue", "parsable", "wait", "help", "usage", "version", "quiet", "verbose", "no-kill",
        )),
    ],
)  # fmt: skip
def test_every_option_of_the_launcher_is_refused(option: str, remedy: str) -> None:
    with pytest.raises(UserError, match=f"--sbatch {option.partition('=')[0]} .*{remedy}"):
        parse_sbatch_options([option])


@pytest.mark.parametrize(
    "flag",
    ["contiguous", "exclusive", "get-user-env", "hold", "ignore-pbs", "nice", "overcommit", "oversubscribe",
     "propagate", "reboot", "resv-ports", "spread-job", "stepmgr", "use-min-nodes"],
)  # fmt: skip
def test_flags_of_sbatch_need_no_value(flag: str) -> None:
    assert parse_sbatch_options([flag]) == {flag: True}
    assert parse_sbatch_options([f"{flag}=no"]) == {}
    assert parse_sbatch_options([f"{flag}=false"]) == {}
    assert parse_sbatch_options([f"{flag}=3"]) == {flag: "3"}


@pytest.mark.parametrize("name", ["mem", "licenses", "mail-user", "wckey", "tmp", "switches", "nodelist"])
def test_other_options_need_one(name: str) -> None:
    with pytest.raises(UserError, match=f"--sbatch {name} has no value: write NAME=VALUE"):
        parse_sbatch_options([name])
    assert parse_sbatch_options([f"--{name}=1"]) == {name: "1"}


def test_the_options_of_shards_may_be_those_of_the_launcher() -> None:
    assert parse_options(["nodes=2", "exclusive", "hold=false"]) == {"nodes": "2", "exclusive": True}
    for text in ("p=gpu", "workdir=/", "parti=gpu"):
        with pytest.raises(UserError):
            parse_options([text])


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("0", 0), ("0:0", 0), ("0:01", 1), ("1:00:01", 61), ("1-0:1", 1441), ("10:59", 11), ("2-1", 2940)],
)
def test_seconds_round_up(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


def test_empty_values_of_launch_are_not_asked_for() -> None:
    launch = load_config("vitb_k400", ["launch.gpus_per_node=0", "launch.partition=''"]).launch
    found = requested_resources(launch)
    assert set(found) == {"nodes", "ntasks_per_node", "cpus_per_task", "time"}
    named = load_config("vitb_k400", ["launch.partition=p", "launch.qos=q", "launch.nodes=3"]).launch
    assert requested_resources(named).items() >= {"partition": "p", "qos": "q", "nodes": 3}.items()
