"""Trees of settings: how large a file may be, from both sides, and how trees are laid over each other."""

from pathlib import Path

import pytest
import yaml

from motionmae.config.trees import flat, merge, nest, parse_yaml, read_yaml
from motionmae.errors import UserError


def test_a_tree_may_have_ten_thousand_values_and_twenty_levels():
    assert len(parse_yaml("[" + "a," * 9_999 + "]")) == 9_999  # and the list itself
    with pytest.raises(yaml.YAMLError, match="more than 10000 values"):
        parse_yaml("[" + "a," * 10_000 + "]")
    parse_yaml("[" * 20 + "a" + "]" * 20)
    with pytest.raises(yaml.YAMLError, match="more than 20 levels"):
        parse_yaml("[" * 21 + "a" + "]" * 21)
    parse_yaml("{a: " * 20 + "b" + "}" * 20)
    with pytest.raises(yaml.YAMLError, match="more than 20 levels"):
        parse_yaml("{a: " * 21 + "b" + "}" * 21)


def test_a_file_may_have_a_megabyte(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text("a: " + "b" * (1_000_000 - 3))
    assert len(read_yaml(file)["a"]) == 1_000_000 - 3
    file.write_text("a: " + "b" * (1_000_001 - 3))
    with pytest.raises(UserError, match="not readable YAML"):
        read_yaml(file)


def test_the_upper_tree_wins_key_by_key():
    lower, upper = {"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": 4}}, {"a": {"c": 5}, "e": 6, "d": {"g": 7}}
    assert merge(lower, upper) == {"a": {"b": 1, "c": 5}, "d": {"g": 7}, "e": 6}
    assert lower == {"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": 4}}
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}
    assert nest("a.b.c", 1) == {"a": {"b": {"c": 1}}}
    assert nest("a", 1) == {"a": 1}


def test_a_problem_is_named_by_its_line_and_by_that_of_its_block(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\nb: [1,\n  2\nc: 3\n")
    with pytest.raises(UserError, match=r"in line 4 \(in the block that begins in line 2\)"):
        read_yaml(file)
    file.write_text("a: 1\na: 2\n")
    with pytest.raises(UserError, match=r"duplicate key a in line 2$"):
        read_yaml(file)
    file.write_text("")
    assert read_yaml(file) == {}
