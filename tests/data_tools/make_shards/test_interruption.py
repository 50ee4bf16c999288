import os
import shutil
import signal
import time
from random import Random

import pytest

from data_tools.make_shards.shard_plan import STATE
from tests.data_tools.make_shards.runs import (
    fingerprint,
    make,
    manifest,
    run_on_full_disk,
    small_set,
    start,
)
from tests.data_tools.videos import draw_frames, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return small_set(tmp_path_factory.mktemp("videos"), 24)


@pytest.fixture(scope="module")
def undisturbed(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    assert make(videos, out) == 0
    return fingerprint(out)


def wait_until(condition, process) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def finished(out) -> int:
    return len(list((out / STATE).glob("all-*.json")))


def made(out) -> dict:
    """Path -> modification time of each finished shard."""
    finished_shards = (path for path in out.glob("*.tar") if (out / STATE / f"{path.stem}.json").exists())
    return {path: path.stat().st_mtime_ns for path in finished_shards}


@pytest.mark.long
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(4, 10))]
)
def test_a_run_killed_at_random_moments_goes_on_to_the_same_bytes(videos, undisturbed, tmp_path, seed):
    """Two kills: at the start, during planning, while shards are open, between shards."""
    out, random, kept = tmp_path / "out", Random(seed), {}
    workers, kills = str([1, 2, 4][seed % 3]), 0
    while kills < 2:
        goal = random.choice(["start", "open shard", finished(out) + 1, finished(out) + 2])
        process = start(videos, out, "--workers", workers)
        if goal == "open shard":
            wait_until(lambda: list(out.glob("*.tar.tmp")), process)
        elif goal != "start":
            wait_until(lambda goal=goal: finished(out) >= goal, process)
        time.sleep(random.uniform(0, 1 if goal == "start" else 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (out / "manifest.json").exists():  # under load it may finish before the signal: start again
            shutil.rmtree(out)
            kills, kept = 0, {}
            continue
        assert process.returncode == -signal.SIGKILL
        kills, kept = kills + 1, kept | made(out)
    assert make(videos, out, "--workers", workers) == 0
    assert fingerprint(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # finished shards were not made again


@pytest.mark.slow
def test_parts_that_run_at_once_make_the_bytes_of_one_run(videos, undisturbed, tmp_path, capsys):
    out = tmp_path / "out"
    processes = [start(videos, out, "--workers", "1", "--part", f"{part}/3") for part in range(3)]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, "")
        assert "when all parts are made, run the same command without --part" in output
    assert not (out / "manifest.json").exists()
    before = made(out)
    assert len(before) == len([name for name in undisturbed if name.endswith(".tar")])
    assert make(videos, out) == 0
    assert made(out) == before
    assert fingerprint(out) == undisturbed
    assert make(videos, out, "--part", "1/3") == 0  # nothing is missing, and the manifest is kept
    assert fingerprint(out) == undisturbed


def test_parts_of_another_count_are_refused(tmp_path, capsys):
    write_video(tmp_path / "videos" / "a.mp4", draw_frames(4))
    videos, out = tmp_path / "videos", tmp_path / "out"
    assert make(videos, out, "--part", "0/2") == 0
    for _ in range(2):
        assert make(videos, out, "--part", "1/3") == 2
        assert f"{out} was started in 2 parts, but --part names one of 3" in capsys.readouterr().err
    assert make(videos, out, "--part", "1/2") == make(videos, out) == 0


def test_a_part_and_the_whole_do_not_write_at_once(tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    os.mkfifo(videos / "hangs.mp4")
    out = tmp_path / "out"
    first = start(videos, out, "--part", "0/2")
    wait_until(lambda: list(out.glob("*.tar.tmp")), first)
    for more in ((), ("--part", "0/2")):
        assert make(videos, out, *more) == 2
        assert "another make_shards is writing to" in capsys.readouterr().err
    assert make(videos, out, "--part", "1/2") == 0
    first.kill()
    first.communicate()


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start(videos, out, "--workers", "2")
    wait_until(lambda: finished(out) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == f"stopped: repeat the command to continue; finished shards stay in {out}\n"
    assert not list(out.glob("*.tmp"))
    assert make(videos, out) == 0
    assert fingerprint(out) == undisturbed


@pytest.mark.slow
def test_shards_lost_or_cut_short_since_are_made_again(videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    assert make(videos, out) == 0
    shard = out / "all-000002.tar"
    os.truncate(shard, shard.stat().st_size // 2)
    (out / STATE / "all-000003.json").write_text("{")
    (out / "all-000004.tar").unlink()
    (out / "all-000005.idx.json").unlink()
    index = out / "all-000007.idx.json"
    index.write_text(index.read_text().replace('"fps":[2', '"fps":[3'))
    sound = (out / "all-000006.tar").stat().st_mtime_ns
    assert make(videos, out) == 0
    assert fingerprint(out) == undisturbed
    assert (out / "all-000006.tar").stat().st_mtime_ns == sound


def test_a_second_run_into_the_same_folder_is_refused_while_the_first_writes(tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    os.mkfifo(videos / "hangs.mp4")
    out = tmp_path / "out"
    first = start(videos, out)
    wait_until(lambda: list(out.glob("*.tar.tmp")), first)
    assert make(videos, out) == 2
    assert "another make_shards is writing to" in capsys.readouterr().err
    first.kill()
    first.communicate()


def test_a_disk_that_takes_no_more_is_answered_in_a_sentence_and_the_run_goes_on_later(videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = run_on_full_disk(videos, out, "--samples-per-shard", "3")
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert f"error: {out} cannot be written" in process.stderr
    assert "raise the limit on the size of a file (ulimit -f)" in process.stderr
    assert not list(out.glob("*.tmp"))
    assert make(videos, out) == 0
    assert fingerprint(out) == undisturbed


def test_other_libraries_may_not_finish_what_was_begun_but_may_find_it_finished(videos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert make(videos, out) == 0
    monkeypatch.setattr("av.__version__", "99.0")
    assert make(videos, out) == 0
    (out / "manifest.json").unlink()
    assert make(videos, out) == 2
    assert "this run has av=99.0" in capsys.readouterr().err
    monkeypatch.undo()
    assert make(videos, out) == 0
    assert manifest(out)["samples"] == 24
