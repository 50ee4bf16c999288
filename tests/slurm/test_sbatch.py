import pytest

from motionmae.errors import UserError
from slurm.sbatch import parse_minutes, parse_sbatch_options


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
