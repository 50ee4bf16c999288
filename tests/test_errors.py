from types import SimpleNamespace

import pytest

from motionmae.errors import UserError, check_limits

LIMITS = {"short_side": (16, 512), "quality": (1, 100)}


@pytest.mark.parametrize(("short_side", "quality"), [(16, 100), (512, 1), (64, 50)])
def test_values_at_and_within_the_limits_are_possible(short_side: int, quality: int) -> None:
    check_limits(SimpleNamespace(short_side=short_side, quality=quality, others=-1), LIMITS)


@pytest.mark.parametrize(
    ("short_side", "quality", "message"),
    [
        (15, 50, "--short-side 15 is not possible: choose 16 to 512"),
        (513, 50, "--short-side 513 is not possible: choose 16 to 512"),
        (64, 0, "--quality 0 is not possible: choose 1 to 100"),
        (64, 101, "--quality 101 is not possible: choose 1 to 100"),
        (64, float("nan"), "--quality nan is not possible: choose 1 to 100"),
    ],
)
def test_a_value_outside_is_named_with_its_option(short_side: int, quality: float, message: str) -> None:
    with pytest.raises(UserError) as refused:
        check_limits(SimpleNamespace(short_side=short_side, quality=quality), LIMITS)
    assert str(refused.value) == message
    assert not refused.value.already_reported


def test_an_error_that_rank_0_reports_says_so() -> None:
    assert UserError("no shards", already_reported=True).already_reported
