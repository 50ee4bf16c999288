import argparse
import hashlib
import multiprocessing
import os
import re
import stat
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from motionmae.__main__ import main
from motionmae.errors import UserError
from motionmae.files import (
    FileTail,
    aside_of,
    atomic_folder,
    atomic_path,
    hash_files,
    is_folder,
    is_special,
    matching,
    output_ending,
    output_file,
    recover_folder,
    remove_folder,
    replace_folder,
    write_atomically,
    write_json,
)
from tests.commands.functions import make_shards
from tests.fault_injection import Operation, kill_points, operations
from tests.flushes import record


def write_often(path: Path, content: bytes) -> None:
    for _ in range(100):
        write_atomically(path, content * 200_000)


def test_the_folder_of_an_output_is_made(tmp_path):
    path = tmp_path / "new" / "deep" / "figures.json"
    assert output_file(str(path)) == path
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(("name", "says"), [("", "is a folder"), ("file/x.json", "cannot be written")])
def test_an_impossible_output_is_refused(tmp_path, name, says):
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match=says):
        output_file(str(tmp_path / name))


def test_a_link_in_a_loop_or_into_an_absent_folder_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("absent/x.json")
    for name, says in (("loop", "cannot be written .*levels of symbolic links"), ("dangling", "No such file.*absent")):
        with pytest.raises(argparse.ArgumentTypeError, match=says):
            output_file(str(tmp_path / name))
    assert not (tmp_path / "absent").exists()


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    """The tests of CI run as root, who may write everywhere: the answer of the system is set."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: bool(asked.append((path, mode))))
    with pytest.raises(argparse.ArgumentTypeError, match=f"you have no write permission for {tmp_path}: choose"):
        output_file(str(tmp_path / "x.json"))
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_an_output_has_one_of_the_endings(tmp_path):
    parse = output_ending(".png", ".svg")
    for name in ("a.png", "a.svg", "a.json.svg"):
        assert parse(str(tmp_path / "new" / name)) == tmp_path / "new" / name
    assert (tmp_path / "new").is_dir()
    for name in ("a", "a.PNG", "a.png.json", "png"):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"{name} must end in \.png or \.svg$"):
            parse(str(tmp_path / name))


def test_json_is_written_with_a_line_for_each_value(tmp_path):
    write_json(tmp_path / "figures.json", {"b": [1, 2.5], "a": "é"})
    assert (tmp_path / "figures.json").read_bytes() == b'{\n "b": [\n  1,\n  2.5\n ],\n "a": "\\u00e9"\n}\n'


def test_the_hash_is_that_of_the_joined_files_in_their_order(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two\0"), ("c", b"")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (tmp_path / name for name in "abc")
    assert hash_files([a, b, c]) == hashlib.sha256(b"onetwo\0").hexdigest()
    assert hash_files([b, a]) == hashlib.sha256(b"two\0one").hexdigest()


def test_names_that_match_are_sorted(tmp_path):
    names = [f"toy-{number:06d}.tar" for number in range(40)]
    for name in [*sorted(names, key=hash), "x-toy-000001.tar", "toy-000001.tar.gz", "toy-1.tar"]:
        (tmp_path / name).touch()
    name = re.compile(r"toy-\d{6}\.tar")
    assert matching(tmp_path, name) == [tmp_path / one for one in names]
    assert matching(tmp_path / "absent", name) == []
    assert matching(tmp_path / names[0], name) == []


def test_what_a_rename_must_not_replace(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "file", tmp_path / "absent", Path("/dev"), Path("/dev/absent")):
        assert not is_special(path)
    for path in (tmp_path / "pipe", Path("/dev/null"), Path("/dev/stdout")):
        assert is_special(path)
    with (tmp_path / "file").open() as file:
        for folder in ("/dev/fd", "/proc/self/fd"):
            assert is_special(Path(folder, str(file.fileno())))


def test_figures_for_a_full_disk_are_one_sentence():
    with pytest.raises(UserError, match=r"^/dev/full cannot be written \(No space left on device\): free space"):
        write_json(Path("/dev/full"), [1])


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
            with atomic_folder(tmp_path / name) as temporary:
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

    def test_the_next_writer_deletes_what_a_killed_one_left(self, tmp_path):
        path = tmp_path / "clips.beton"
        foreign = ["clips.beton.tmp", ".clips.beton.12345678.tmp.bak", ".clips.beton.1234567.tmp", ".x.12345678.tmp"]
        for name in [*foreign, ".clips.beton.12345678.tmp"]:
            (tmp_path / name).write_bytes(b"kept")
        (tmp_path / ".clips.beton.0000abcd.tmp").symlink_to(tmp_path / "clips.beton.tmp")
        with atomic_path(path) as running, atomic_path(path) as temporary:
            running.write_bytes(b"first")
            temporary.write_bytes(b"whole")
        names = {found.name for found in tmp_path.iterdir()}
        assert names == {"clips.beton", ".clips.beton.0000abcd.tmp", *foreign}
        assert (tmp_path / "clips.beton.tmp").read_bytes() == b"kept"

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
    def test_the_mode_of_the_old_file_stays(self, tmp_path, mode):
        path = tmp_path / "secret.json"
        path.touch()
        path.chmod(mode)
        write_atomically(path, b"new")
        assert stat.S_IMODE(path.stat().st_mode) == mode

    def test_a_new_file_has_the_mode_of_the_umask(self, tmp_path):
        (tmp_path / "touched").touch()
        write_atomically(tmp_path / "new", b"")
        assert (tmp_path / "new").stat().st_mode == (tmp_path / "touched").stat().st_mode

    @pytest.mark.parametrize("durable", [True, False])
    def test_only_a_durable_file_is_flushed(self, tmp_path, monkeypatch, durable):
        found = record(tmp_path, monkeypatch)
        with atomic_path(tmp_path / "file", durable=durable) as temporary:
            temporary.write_bytes(b"new")
        rename = ("rename", "file")
        assert found == ([("fsync", temporary.name), rename, ("fsync", ".")] if durable else [rename])

    def test_a_private_file_is_private_while_it_is_written(self, tmp_path):
        path = tmp_path / "secret.json"
        path.touch()
        path.chmod(0o644)
        with atomic_path(path) as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_an_existing_folder_is_not_replaced(self, tmp_path):
        (tmp_path / "code").mkdir()
        (tmp_path / "code/mine").touch()
        with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "code"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["code"]
        with atomic_folder(tmp_path / "new" / "deep" / "code"):
            pass
        assert (tmp_path / "new/deep/code").is_dir()

    def test_a_link_to_itself_is_an_error_of_the_system(self, tmp_path):
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(OSError, match="symbolic links"):
            write_atomically(tmp_path / "loop", b"new")

    def test_many_writers_of_one_file(self, tmp_path):
        """Each write succeeds, and each read finds a whole file."""
        path = tmp_path / "race.json"
        write_atomically(path, b"0" * 200_000)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            writers = [pool.submit(write_often, path, content) for content in (b"a", b"b")]
            while not all(writer.done() for writer in writers):
                content = path.read_bytes()
                assert content == content[:1] * 200_000
            for writer in writers:
                writer.result()
        assert [found.name for found in tmp_path.iterdir()] == ["race.json"]


class TestReplaceFolder:
    def test_the_new_folder_replaces_the_old_one(self, tmp_path):
        for name in ("old", "new"):
            (tmp_path / name).mkdir()
            (tmp_path / name / name).touch()
        replace_folder(tmp_path / "new", tmp_path / "old")
        assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["old", "old/new"]

    def test_of_a_link_only_the_link_is_replaced(self, tmp_path):
        (tmp_path / "archive").mkdir()
        (tmp_path / "archive/file").touch()
        (tmp_path / "link").symlink_to(tmp_path / "archive")
        (tmp_path / "new").mkdir()
        replace_folder(tmp_path / "new", tmp_path / "link")
        assert (tmp_path / "archive/file").exists()
        assert not (tmp_path / "link").is_symlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "link"]

    def test_the_folder_is_flushed_after_the_renames(self, tmp_path, monkeypatch):
        for name in ("old", "new"):
            (tmp_path / name).mkdir()
        found = record(tmp_path, monkeypatch)
        replace_folder(tmp_path / "new", tmp_path / "old")
        assert found == [("rename", ".old.replaced"), ("rename", "old"), ("fsync", ".")]

    def test_a_new_folder_that_cannot_be_renamed_leaves_the_old_one(self, tmp_path):
        (tmp_path / "old").mkdir()
        (tmp_path / "old/kept").touch()
        with pytest.raises(FileNotFoundError):
            replace_folder(tmp_path / "absent", tmp_path / "old")
        assert [path.name for path in tmp_path.rglob("*")] == ["old", "kept"]

    def test_a_killed_replacement_is_undone_or_completed(self, tmp_path):
        final, aside = tmp_path / "final", tmp_path / ".final.replaced"
        assert aside_of(final) == aside
        aside.mkdir()
        (aside / "old").touch()
        recover_folder(final)
        assert [path.name for path in tmp_path.rglob("*")] == ["final", "old"]
        aside.mkdir()
        recover_folder(final)
        assert [path.name for path in tmp_path.rglob("*")] == ["final", "old"]
        (tmp_path / ".other.replaced").touch()
        recover_folder(tmp_path / "other")  # a file is not a folder that was set aside
        assert (tmp_path / ".other.replaced").is_file()


def test_a_folder_is_deleted_with_its_content_and_of_a_link_only_the_link(tmp_path):
    (tmp_path / "folder/deep").mkdir(parents=True)
    (tmp_path / "folder/deep/file").touch()
    (tmp_path / "file").touch()
    for name, target in (("link", "folder"), ("dangling", "absent"), ("link_to_file", "file")):
        (tmp_path / name).symlink_to(target)
    is_one = {path.name: is_folder(path) for path in tmp_path.iterdir()}
    assert is_one == {"folder": True, "file": False, "link": True, "dangling": True, "link_to_file": False}
    assert not is_folder(tmp_path / "absent")
    for name in ("file", "link_to_file", "absent", "link", "dangling"):
        remove_folder(tmp_path / name)
    assert (tmp_path / "folder/deep/file").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link_to_file"]
    remove_folder(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_progress_bar_and_bytes_that_are_no_text_are_printed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = FileTail(path)
    path.write_bytes(b"1 of 9\r2 of 9\r3 of")
    assert tail.new_text() == "1 of 9\r2 of 9\r"
    with path.open("ab") as file:
        file.write(b" 9\rdone\nand \xff\nmore\r")
    assert tail.new_text() == "3 of 9\rdone\nand \ufffd\nmore\r"
    assert FileTail(Path("/dev/zero")).new_text() == ""
    assert FileTail(tmp_path).new_text() == ""


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


def write_new(folder: Path) -> None:
    write_atomically(folder / "figures.json", b"new")


def replace_with_new(folder: Path) -> None:
    replace_folder(folder / "new", folder / "final")


def write_folder(folder: Path) -> None:
    with atomic_folder(folder / "code") as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text(name)


class TestKilled:
    """The process is killed before each file system operation."""

    @pytest.mark.parametrize("old", [b"old", b""])
    def test_a_written_file_is_old_or_new(self, tmp_path, old):
        (tmp_path / "seed").mkdir()
        path = tmp_path / "seed" / "figures.json"
        if old:
            path.write_bytes(old)
        for kill in kill_points(write_new, tmp_path / "seed", tmp_path / "work"):
            path = kill.folder / "figures.json"
            assert (path.read_bytes() if path.exists() else b"") in (old, b"new"), kill
            write_new(kill.folder)
            assert [found.name for found in kill.folder.iterdir()] == ["figures.json"], kill

    def test_a_replaced_folder_is_old_or_new(self, tmp_path):
        for name in ("new", "final"):
            (tmp_path / "seed" / name).mkdir(parents=True)
            for number in range(3):
                (tmp_path / "seed" / name / str(number)).write_text(name)
        for kill in kill_points(replace_with_new, tmp_path / "seed", tmp_path / "work"):
            recover_folder(kill.folder / "final")
            content = {path.read_text() for path in (kill.folder / "final").iterdir()}
            assert content in ({"final"}, {"new"}), kill
            assert len(list((kill.folder / "final").iterdir())) == 3, kill
            if (kill.folder / "new").exists():
                replace_with_new(kill.folder)
            assert [found.name for found in kill.folder.iterdir()] == ["final"], kill

    def test_a_written_folder_is_whole_or_absent(self, tmp_path):
        for kill in kill_points(write_folder, tmp_path / "absent", tmp_path / "work"):
            if not (kill.folder / "code").exists():
                write_folder(kill.folder)
            assert [found.name for found in kill.folder.iterdir()] == ["code"], kill
            assert {path.name: path.read_text() for path in (kill.folder / "code").iterdir()} == {"a": "a", "b": "b"}

    def test_content_is_flushed_before_the_rename_and_the_folder_after(self, tmp_path):
        found = operations(write_new, tmp_path / "absent", tmp_path / "work")
        temporary = found[0].path
        assert found[-3:] == [
            Operation("fsync", temporary),
            Operation("rename", temporary, "figures.json"),
            Operation("fsync", "."),
        ]
