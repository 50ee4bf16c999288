import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.decode import DecodedVideo, FrameSettings, QuarantineReason, UndecodableVideo
from data_tools.decode_worker import DecodeWorker, WorkerStopped
from motionmae.errors import UserError
from tests.data_tools.make_shards.in_process import decode_video
from tests.data_tools.videos import draw_frames, write_video

ROOT = Path(__file__).resolve().parents[2]


def decode(worker: DecodeWorker, path: Path) -> DecodedVideo:
    (decoded,) = worker.decode(path)
    return decoded


@pytest.fixture
def worker():
    worker = DecodeWorker(FrameSettings(), stall_timeout=1)
    yield worker
    worker.stop()


@pytest.fixture
def pipe(tmp_path):
    """A file that blocks on open, as on a dead disk."""
    path = tmp_path / "hangs.mp4"
    os.mkfifo(path)
    return path


def test_frames_arrive_as_they_were_decoded(tmp_path, worker):
    video = write_video(tmp_path / "v.mp4", draw_frames(40))
    (decoded,) = ((one, list(one.jpegs)) for one in worker.decode(video))
    assert replace(decoded[0], jpegs=decoded[1], flows=[]) == decode_video(video, FrameSettings())


def test_a_hanging_video_is_given_up_and_the_next_one_decodes(tmp_path, worker, pipe):
    video = write_video(tmp_path / "v.mp4", draw_frames(3))
    started = time.monotonic()
    with pytest.raises(UndecodableVideo, match="no frame for 1 s") as caught:
        decode(worker, pipe)
    assert caught.value.reason is QuarantineReason.TIMEOUT
    assert time.monotonic() - started < 30
    assert decode(worker, video).source_frames == 3


def test_a_dying_process_costs_its_video_only(tmp_path, worker, pipe):
    video = write_video(tmp_path / "v.mp4", draw_frames(3))
    decode(worker, video)
    process = worker._process
    threading.Timer(0.3, os.kill, (process.pid, signal.SIGSEGV)).start()
    with pytest.raises(UndecodableVideo, match="SIGSEGV") as caught:
        decode(worker, pipe)
    assert caught.value.reason is QuarantineReason.CRASHED
    assert decode(worker, video).source_frames == 3


def test_ctrl_c_is_left_to_the_parent(tmp_path, worker):
    """A terminal sends it to all processes of the command."""
    video = write_video(tmp_path / "v.mp4", draw_frames(3))
    decode(worker, video)
    process = worker._process
    os.kill(process.pid, signal.SIGINT)
    assert decode(worker, video).source_frames == 3
    assert worker._process is process


def test_a_process_that_dies_while_it_starts_is_no_fault_of_the_video(tmp_path, worker):
    video = write_video(tmp_path / "v.mp4", draw_frames(3))

    def kill_at_once():
        while worker._process is None or worker._process.pid is None:
            time.sleep(0.001)
        os.kill(worker._process.pid, signal.SIGKILL)

    threading.Thread(target=kill_at_once).start()
    with pytest.raises(UserError, match=r"did not start \(SIGKILL\)"):
        decode(worker, video)
    assert decode(worker, video).source_frames == 3


def test_stopping_takes_no_time(tmp_path, worker):
    decode(worker, write_video(tmp_path / "v.mp4", draw_frames(3)))
    process, started = worker._process, time.monotonic()
    worker.stop()
    assert time.monotonic() - started < 0.15  # a run stops hundreds of workers one after another
    assert process.exitcode == -signal.SIGKILL


def test_an_unexpected_failure_is_told_with_its_name(tmp_path, worker):
    with pytest.raises(UndecodableVideo, match="ValueError: embedded null byte") as caught:
        decode(worker, Path("nul\0byte.mp4"))
    assert caught.value.reason is QuarantineReason.CRASHED


def test_stop_ends_a_wait_in_another_thread(worker, pipe):
    threading.Timer(0.3, worker.stop).start()
    with pytest.raises(WorkerStopped):
        decode(worker, pipe)
    with pytest.raises(WorkerStopped):
        decode(worker, pipe)


def test_the_process_ends_with_its_parent_even_while_it_hangs(pipe):
    script = (
        "import sys, threading, time\n"
        "from pathlib import Path\n"
        "from data_tools.decode import FrameSettings\n"
        "from data_tools.decode_worker import DecodeWorker\n"
        "worker = DecodeWorker(FrameSettings(), 60)\n"
        "threading.Thread(target=lambda: list(worker.decode(Path(sys.argv[1]))), daemon=True).start()\n"
        "while worker._process is None or worker._process.pid is None: time.sleep(0.05)\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, pipe], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(1)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
