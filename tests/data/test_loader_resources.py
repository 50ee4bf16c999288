import gc
import itertools
import multiprocessing.resource_tracker
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from motionmae.data.decode_workers import WorkerFailed
from tests.data.loading import loader, rows


def decoders():
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("clip-decoder")]
    return [*threads, *(child for child in multiprocessing.active_children() if child.name == "clip-worker")]


class TestResources:
    def test_no_thread_is_left(self, shards):
        with loader(shards, threads=4) as ours:
            next(ours.batches(0))
            assert 1 <= len(decoders()) <= 4  # a thread is started when all others are busy
        assert decoders() == []
        ours.close()

    @pytest.mark.parametrize("workers", [0, 1])
    def test_nothing_is_left_when_the_consumer_fails(self, shards, workers):
        multiprocessing.resource_tracker.ensure_running()
        gc.collect()  # or it would close files of earlier tests meanwhile
        files = len(list(Path("/proc/self/fd").iterdir()))

        def train():
            with loader(shards, prefetch=20, workers=workers) as ours:
                for _ in ours.batches(0):
                    raise RuntimeError("training")

        with pytest.raises(RuntimeError, match="training"):
            train()
        assert decoders() == []
        assert len(list(Path("/proc/self/fd").iterdir())) <= files  # fewer where an earlier test's are closed meanwhile

    def test_prefetch_is_bounded(self, shards):
        with loader(shards, prefetch=3, threads=1, micro_batch_size=6) as ours:
            stream = ours.batches(0)
            next(stream)
            assert ours._pool._work_queue.qsize() <= 3 * 6

    def test_a_batch_that_is_kept_keeps_its_content(self, shards):
        with loader(shards) as ours:
            kept = list(itertools.islice(ours.batches(0), 24))
            again = [rows(batch) for batch in itertools.islice(ours.batches(0), 24)]
        assert [rows(batch) for batch in kept] == again

    def test_memory_is_used_again(self, shards):
        with loader(shards, prefetch=2) as ours:
            places = [batch.clips.data_ptr() for batch in itertools.islice(ours.batches(0), 30)]
        assert len(set(places)) <= 4

    def test_what_is_meant_for_the_training_process_does_not_end_its_workers(self, shards, one_rank):
        with loader(shards, workers=1, prefetch=1) as ours:
            stream = ours.batches(0)
            (worker,) = multiprocessing.active_children()
            for name in ("SIGINT", "SIGTERM", "SIGUSR2"):
                os.kill(worker.pid, signal.Signals[name])
            assert [row for _ in range(6) for row in rows(next(stream))] == one_rank[0]

    def test_a_worker_that_is_killed_ends_the_stream(self, shards):
        with loader(shards, workers=1, prefetch=1) as ours:
            stream = ours.batches(0)
            next(stream)
            (worker,) = multiprocessing.active_children()
            worker.kill()
            with pytest.raises(WorkerFailed, match=r"ended with exit code -9"):
                list(itertools.islice(stream, 9))

    def test_workers_end_when_nobody_holds_their_pipes(self, shards):
        """The system closes the pipes when the training process is killed."""
        with loader(shards, workers=2) as ours:
            next(ours.batches(0))
            workers = [child for child in multiprocessing.active_children() if child.name == "clip-worker"]
            ours._pool.shutdown(cancel_futures=True)  # what reads ahead gives its pipes back
            while not ours._decoder._free.empty():
                ours._decoder._free.get().connection.close()
            for worker in workers:
                worker.join(30)
            assert [worker.exitcode for worker in workers] == [0, 0]

    def test_a_view_keeps_the_memory(self, shards):
        with loader(shards, prefetch=1) as ours:
            stream = ours.batches(0)
            view = next(stream).clips[1, 0]
            before = view.clone()
            for _ in range(10):
                next(stream)
            assert torch.equal(view, before)
