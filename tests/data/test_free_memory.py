import psutil
import pytest

from motionmae.data import free_memory
from motionmae.data.free_memory import check_buffers_fit, free_bytes
from motionmae.errors import UserError
from tests.data.loading import loader


def test_micro_batches_that_do_not_fit_are_refused_with_bytes_and_options():
    check_buffers_fit(10, prefetch=4, free=60)
    with pytest.raises(UserError) as caught:
        check_buffers_fit(77_070_336, prefetch=4, free=64 << 20)  # 32 clips of 16 x 224 x 224
    message = str(caught.value)
    for part in ("needs 462422016 bytes", "67108864 are free", "data.prefetch", "engine.micro_batch_size"):
        assert part in message


def test_a_loader_checks_before_it_starts(shards, monkeypatch):
    monkeypatch.setattr(free_memory, "free_bytes", lambda: 1000)
    with pytest.raises(UserError, match="bytes of shared memory"):
        loader(shards)


@pytest.mark.parametrize(
    ("inner", "outer", "left"), [("max", "max", None), ("5000", "max", 2300), ("9000", "4000", 800)]
)
def test_the_limit_of_a_control_group_counts(tmp_path, inner, outer, left):
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    for folder, limit, used in ((job, inner, 3000), (job.parent, outer, 3500)):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 2700\ninactive_file 200\nactive_file 100\nfile 900\n")
    (tmp_path / "own").write_text("0::/slurm/job\n")
    found = free_bytes(tmp_path, tmp_path / "own")
    if left is None:
        assert found == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    else:
        assert found == left
    (tmp_path / "own").write_text("4:memory:/slurm/job\n")
    assert free_bytes(tmp_path, tmp_path / "own") > 10_000
