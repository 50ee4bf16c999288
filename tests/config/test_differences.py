"""Settings in which two configurations differ, as people read them."""

from pathlib import Path

import pytest

from motionmae.config import Config
from motionmae.config.differences import describe_differences, differences


def test_only_what_differs_is_named_with_both_values() -> None:
    now, before = Config().updated({"seed": 3, "mask.ratio": 0.5}), Config().updated({"seed": 1, "mask.ratio": 0.5})
    assert differences(now, before) == {"seed": (3, 1)}
    assert differences(now, now) == {}


def test_the_differences_from_the_defaults_leave_out_what_a_run_is() -> None:
    config = Config().updated(
        {"name": "run", "task": "finetune", "output_dir": "/x", "seed": 3, "data.crop_scale": [0.3, 1.0]}
    )
    assert list(describe_differences(config)) == [
        "2 settings differ from the defaults:",
        "  seed             3  (default 0)",
        "  data.crop_scale  [0.3, 1.0]  (default [0.5, 1.0])",
    ]
    assert list(describe_differences(Config().updated({"name": "run"}))) == ["no settings differ from the defaults"]
    (title, line) = describe_differences(Config().updated({"seed": 1}))
    assert (title, line) == ("1 setting differs from the defaults:", "  seed  1  (default 0)")


def test_paths_are_compared_as_the_job_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative, absolute = (Config().updated({"data.shards": path}) for path in ("shards", f"{tmp_path}/shards"))
    same = ["no settings differ from the last attempt of this run"]
    assert list(describe_differences(relative, absolute)) == same
    assert list(describe_differences(absolute, relative)) == same
    other = Config().updated({"name": "a", "data.shards": "x"})
    lines = list(describe_differences(other, relative))
    assert lines[0] == "2 settings differ from the last attempt of this run:"
    assert lines[1] == '  name         "a"  (was "")'
    assert lines[2] == f'  data.shards  "{tmp_path}/x"  (was "{tmp_path}/shards")'
