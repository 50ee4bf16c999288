import pytest

from data_tools.make_shards import cli
from data_tools.make_shards.records import load_record
from data_tools.make_shards.retry import end_retry
from data_tools.make_shards.write import write_shards
from tests.data_tools.make_shards.runs import fingerprint, make, small_set


@pytest.fixture
def two_lack_a_video(tmp_path):
    """(videos, shards): an unreadable video in each of two shards."""
    videos, out = small_set(tmp_path / "videos"), tmp_path / "out"
    assert make(videos, out) == 0
    lacking = sum('"quarantine": [{' in record.read_text() for record in records(out))
    assert lacking == 2
    return videos, out


def records(out):
    return sorted((out / ".make_shards").glob("all-*.json"))


def times(out):
    return {record.name: record.stat().st_mtime_ns for record in records(out)}


@pytest.mark.parametrize("part", [(), ("--part", "0/1")])
def test_a_retry_that_was_stopped_goes_on_where_it_was(two_lack_a_video, monkeypatch, part):
    videos, out = two_lack_a_video
    before, bytes_before = times(out), fingerprint(out)

    def stopped_after_the_first(plan, out, *arguments):
        missing = next(
            i for i, shard in enumerate(plan.shards) if shard.name.replace(".tar", ".json") not in times(out)
        )
        write_shards(plan.part(missing, len(plan.shards)), out, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "write_shards", stopped_after_the_first)
        assert make(videos, out, *part, "--retry") == 130
    assert len(records(out)) == len(before) - 1
    between = times(out)
    assert make(videos, out, *part, "--retry") == 0
    assert between.items() <= times(out).items()  # shards made before the stop are not made a third time
    assert make(videos, out) == 0
    assert fingerprint(out) == bytes_before


@pytest.mark.parametrize(("more", "times_each"), [((), 1), (("--retry",), 2)])
def test_a_run_checks_each_shard_at_its_start_and_again_if_it_made_one(two_lack_a_video, monkeypatch, more, times_each):
    videos, out = two_lack_a_video
    checked = []

    def load(out, shard):
        checked.append(shard.name)
        return load_record(out, shard)

    monkeypatch.setattr("data_tools.make_shards.records.load_record", load)
    assert make(videos, out, *more) == 0
    assert len(checked) == times_each * len(records(out))


def test_the_next_retry_tries_again(two_lack_a_video):
    videos, out = two_lack_a_video
    for _ in range(2):
        before = times(out)
        assert make(videos, out, "--retry") == 0
        assert sum(before[name] != time for name, time in times(out).items()) == 2


def test_the_end_of_a_retry_of_the_whole_ends_those_of_its_parts(tmp_path):
    """A marker that stays would keep the next retry of its part from trying anything again."""
    state, others = tmp_path / ".make_shards", {"plan.json", "retry.0of2.bak", "retry.old"}
    state.mkdir()
    for name in ("retry", "retry.0of2", "retry.1of2", *others):
        (state / name).touch()
    for part, left in (((1, 2), {"retry", "retry.0of2"}), (None, set()), (None, set())):
        end_retry(tmp_path, part)
        assert {path.name for path in state.iterdir()} == others | left
