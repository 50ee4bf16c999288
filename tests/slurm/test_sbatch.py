import pytest

from motionmae.config import load_config
from motionmae.errors import UserError
from slurm.sbatch import (
    batch_script,
    check_environment,
    parse_minutes,
    parse_sbatch_options,
    requested_resources,
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
