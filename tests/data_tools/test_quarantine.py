import os
from pathlib import Path

import pytest

from data_tools.quarantine import read_quarantine, refuse_foreign_quarantine, write_quarantine
from motionmae.errors import UserError

ROW = {"path": "a é.mp4", "reason": "empty", "error": "it has no bytes"}


def test_a_row_has_three_keys_in_one_line(tmp_path: Path):
    write_quarantine(tmp_path, [{**ROW, "further": "x"}, {**ROW, "path": "b\n.mp4"}])
    lines = read_quarantine(tmp_path).decode().split("\n")
    assert lines == [
        '{"path": "a \\u00e9.mp4", "reason": "empty", "error": "it has no bytes"}',
        '{"path": "b\\n.mp4", "reason": "empty", "error": "it has no bytes"}',
        "",
    ]
    refuse_foreign_quarantine(tmp_path)
    write_quarantine(tmp_path, [])
    assert read_quarantine(tmp_path) == b""
    refuse_foreign_quarantine(tmp_path)


def test_an_absent_one_is_empty_and_one_of_others_is_refused(tmp_path: Path):
    assert read_quarantine(tmp_path) == b""
    refuse_foreign_quarantine(tmp_path)
    for content in ('{"path": "a", "reason": "b"}\n', "mine\n", '{"path": "a", "reason": "b", "error": "c", "d": 1}\n'):
        (tmp_path / "quarantine.jsonl").write_text(content)
        with pytest.raises(UserError, match=r"quarantine\.jsonl was not written by this program: move it away"):
            refuse_foreign_quarantine(tmp_path)
    (tmp_path / "quarantine.jsonl").unlink()
    os.mkfifo(tmp_path / "quarantine.jsonl")
    with pytest.raises(UserError, match=r"cannot be read \(it is not a regular file\): make the shards again"):
        read_quarantine(tmp_path)
    with pytest.raises(UserError, match=r"cannot be read \(.*\): check its permissions"):
        read_quarantine(tmp_path / "quarantine.jsonl")
