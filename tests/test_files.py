import argparse
import os
from pathlib import Path

import pytest

from motionmae.__main__ import main
from motionmae.files import FileTail, atomic_path, output_file, write_atomically
from tests.commands import make_shards


def test_the_folder_of_an_output_is_made(tmp_path):
    path = tmp_path / "new" / "deep" / "figures.json"
    assert output_file(str(path)) == path
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(("name", "says"), [("", "is a folder"), ("file/x.json", "cannot be written")])
def test_an_impossible_output_is_refused(tmp_path, name, says):
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match=says):
        output_file(str(tmp_path / name))


def test_what_is_no_file_is_written_to_and_a_link_stays_one(tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)
    write_atomically(output_file(str(pipe)), b"figures")
    assert os.read(end, 100) == b"figures"
    os.close(end)
    assert pipe.is_fifo()
    with target.open("w") as redirected:
        redirected.write("printed ")
        redirected.flush()
        write_atomically(Path(f"/dev/fd/{redirected.fileno()}"), b"figures")
        assert os.fstat(redirected.fileno()).st_ino == target.stat().st_ino
    target.write_bytes(b"before")
    link.symlink_to(target)
    write_atomically(output_file(str(link)), b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (make_shards, "folder --videos {0}/videos --out {0}/out --json {0}/file/x.json"),
        (main, "knn {0}/run --train {0}/a --test {0}/b --json {0}/file/x.json"),
        (main, "doctor data --config tiny_toy --json {0}/file/x.json"),
    ],
)
def test_commands_refuse_it_before_their_work(tmp_path, capsys, command, words):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        command(words.format(tmp_path).split())
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "argument --json: " in error
    assert "cannot be written" in error
    assert not (tmp_path / "out").exists()


class TestAtomicPath:
    def test_an_error_keeps_the_old_file_and_leaves_no_other(self, tmp_path):
        path = tmp_path / "figures.json"
        path.write_bytes(b"before")

        def fail():
            with atomic_path(path) as temporary:
                temporary.write_bytes(b"half")
                raise RuntimeError("full")

        with pytest.raises(RuntimeError, match="full"):
            fail()
        assert path.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_is_renamed_or_removed_whole(self, tmp_path):
        def write(name, error=None):
            with atomic_path(tmp_path / name, durable=False) as temporary:
                (temporary / "deep").mkdir(parents=True)
                (temporary / "deep" / "file").write_text("content")
                if error:
                    raise error

        write("whole")
        with pytest.raises(KeyboardInterrupt):
            write("half", KeyboardInterrupt())
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]
        assert (tmp_path / "whole" / "deep" / "file").read_text() == "content"

    def test_two_writers_do_not_share_a_temporary_file(self, tmp_path):
        path = tmp_path / "figures.json"
        with atomic_path(path) as first, atomic_path(path) as second:
            assert first != second
            first.write_bytes(b"first")
            second.write_bytes(b"second")
        assert path.read_bytes() == b"first"

    def test_large_files_reuse_the_name_of_a_killed_writer(self, tmp_path):
        path = tmp_path / "clips.beton"
        (tmp_path / "clips.beton.tmp").write_bytes(b"left by a killed process")
        with atomic_path(path, unique=False) as temporary:
            temporary.write_bytes(b"whole")
        assert [found.name for found in tmp_path.iterdir()] == ["clips.beton"]


def test_a_log_is_printed_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = FileTail(path)
    assert tail.new_text() == ""
    path.write_text("one\ntw")
    assert tail.new_text() == "one\n"
    assert tail.new_text() == ""
    with path.open("a") as file:
        file.write("o\nthree ü\n")
    assert tail.new_text() == "two\nthree ü\n"
