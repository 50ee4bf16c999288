"""Coordinates of charts, worked by hand: the frame reaches from 54 to 470 across, and from 224 up to 10."""

from typing import Any

import pytest

from monitoring.report import charts
from monitoring.report.charts import Curve, LineChart, short_number, thin, ticks


def chart(*values: list[float | None], steps: tuple[float, ...] = (0, 50, 100), **options: Any) -> LineChart:
    return LineChart([Curve(f"c{n}", steps, each, "red") for n, each in enumerate(values)], **options)


def test_a_line_has_a_margin_of_five_per_cent_above_and_below():
    drawn = chart([10.0, 20.0, 30.0])  # the axis reaches from 9 to 31
    assert [drawn.x(step) for step in (0, 50, 100)] == [54, 262, 470]
    assert [drawn.y(value) for value in (9, 20, 31)] == [224, 117, 10]
    assert [path for _, path in drawn.paths()] == ["M54.0 214.3L262.0 117.0L470.0 19.7"]
    assert all(9 <= tick <= 31 for tick in drawn.ticks_up)
    assert drawn.ticks_across == [0, 20, 40, 60, 80, 100]


def test_an_axis_from_zero_has_no_margin_below():
    drawn = chart([10.0, 20.0, 40.0], zero=True)  # from 0 to 42
    assert [drawn.y(value) for value in (0, 21, 42)] == [224, 117, 10]


@pytest.mark.parametrize(("value", "low", "high"), [(5.0, 4.5, 5.5), (-5.0, -5.5, -4.5), (0.0, 0.0, 1.0)])
def test_a_constant_has_a_margin_of_its_own(value: float, low: float, high: float):
    drawn = chart([value] * 3)
    assert (drawn.y(low), drawn.y(high)) == (224, 10)


def test_one_step_is_at_the_left_edge():
    drawn = chart([1.0], steps=(7,))
    assert drawn.x(7) == 54


def test_a_gap_lifts_the_pen_and_curves_without_a_value_are_left_out():
    drawn = chart([None, None, None], [1.0, None, 1.0])
    ((curve, path),) = drawn.paths()
    assert (curve.name, path) == ("c1", "M54.0 117.0M470.0 117.0")
    assert LineChart([Curve("none", [1], [None], "red")]).curves == []


def test_areas_are_stacked_upon_each_other_from_zero():
    drawn = chart([1.0, 1.0, 2.0], [3.0, 2.0, 2.0], stacked=True)  # from 0 to 4.2
    first, second = (path for _, path in drawn.paths())
    y = {value: round(224 - value / 4.2 * 214, 1) for value in (0, 1, 2, 3, 4)}
    assert first == f"M54.0 {y[1]}L262.0 {y[1]}L470.0 {y[2]}L470.0 224.0L262.0 224.0L54.0 224.0Z"
    assert second == f"M54.0 {y[4]}L262.0 {y[3]}L470.0 {y[4]}L470.0 {y[2]}L262.0 {y[1]}L54.0 {y[1]}Z"


def test_marks_outside_the_curves_are_left_out():
    marks = [(step, "blue") for step in (-1, 0, 60, 100, 101)]
    drawn = LineChart([Curve("a", [0, 40], [1, 2], "red"), Curve("b", [20, 100], [1, 2], "red")], marks)
    assert [step for step, _ in drawn.marks] == [0, 60, 100]


def test_the_numbers_under_the_pointer_have_five_digits():
    drawn = chart([1.2345678, None, 123456.7])
    assert drawn.data() == {
        "left": 54, "right": 470, "first": 0, "last": 100,
        "curves": [["c0", "red", (0, 50, 100), [1.2346, None, 123460.0]]],
    }  # fmt: skip


@pytest.mark.parametrize(("count", "points"), [(300, 300), (301, 151), (601, 201)])
def test_more_than_three_hundred_points_are_averaged(count: int, points: int):
    curve = thin(Curve("c", list(range(1, count + 1)), [float(n) for n in range(1, count + 1)], "red", dashed=True))
    size = 1 if count == 300 else 2 if count == 301 else 3
    assert len(curve.steps) == len(curve.values) == points
    assert (curve.steps[0], curve.values[0]) == (size, (1 + size) / 2)
    assert (curve.steps[-1], curve.values[-1]) == (count, count)
    assert (curve.name, curve.colour, curve.dashed) == ("c", "red", True)


def test_averages_leave_out_what_is_missing():
    curve = thin(Curve("c", list(range(600)), [None, 4.0] + [None, None] + [1.0, 3.0] * 298, "red"))
    assert curve.values[:3] == [4.0, None, 2.0]
    assert charts.POINTS == 300


def test_ticks_are_about_five():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(1.1, 1.1) == [1.1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999"), (1000, "1k"), (999_999, "1e+03k"), (1e6, "1M"), (1e9, "1G"), (9.99e11, "999G"), (1e12, "1e+12"),
     (1e-3, "0.001"), (9.9e-4, "0.00099"), (-2e-5, "-2e-05"), (-3e9, "-3G")],
)  # fmt: skip
def test_short_numbers_at_the_limits(value: float, text: str):
    assert short_number(value) == text
