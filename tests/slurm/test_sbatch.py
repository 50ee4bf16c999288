import pytest

from motionmae.errors import UserError
from slurm.sbatch import batch_script, check_environment, parse_minutes, parse_sbatch_options


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
