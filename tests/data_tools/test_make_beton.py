import subprocess
import sys
from pathlib import Path

import pytest

from data_tools import make_beton
from motionmae.data.ffcv.reader import BetonReader
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.format import load_index, pack_frames
from tests.commands.functions import make_beton as main
from tests.data.made_shards import flip_byte, make_shards, meta, needs_ffcv, picture

pytestmark = needs_ffcv
ROOT = Path(__file__).resolve().parents[2]
COUNTS = (4, 1, 7)


@pytest.fixture
def shards(tmp_path):
    make_shards(tmp_path / "s", COUNTS, frames=6, height=20, width=28)
    return tmp_path / "s"


def run(shards, out, *options):
    return main([str(shards), "--out", str(out), *options])


def test_the_blobs_are_the_shards_in_the_order_of_ids(shards, tmp_path, capsys):
    out = tmp_path / "a.beton"
    assert run(shards, out) == 0
    assert "12 samples" in capsys.readouterr().out
    reader, stored = BetonReader(out, load_manifest(shards)), open_reader(shards)
    for sample in range(12):
        found = reader.read_meta(sample)
        assert (found.label, found.frames, found.height, found.width) == (sample, 6, 20, 28)
        jpegs = [bytes(jpeg) for jpeg in reader.read_frames(sample, range(6))]
        assert jpegs == [bytes(jpeg) for jpeg in stored.read_frames(sample, range(6))]
        start, size = int(reader._rows[sample]["ptr"]), int(reader._rows[sample]["size"])
        assert bytes(reader.memory[start : start + size]) == b"".join(pack_frames(jpegs))
    assert list(tmp_path.glob("*.tmp")) == []


def test_the_bytes_are_the_same_each_time(shards, tmp_path):
    assert run(shards, tmp_path / "a.beton") == run(shards, tmp_path / "b.beton") == 0
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()


def test_samples_over_many_pages(tmp_path, monkeypatch):
    """A sample that does not fit into the rest of a page starts the next page."""
    make_shards(tmp_path / "s", (40,), frames=90, height=120, width=160)
    monkeypatch.setattr(make_beton, "_MAX_PAGE", make_beton._MIN_PAGE)
    assert run(tmp_path / "s", tmp_path / "a.beton") == 0
    assert (tmp_path / "a.beton").stat().st_size > 3 * make_beton._MIN_PAGE
    reader, stored = BetonReader(tmp_path / "a.beton", load_manifest(tmp_path / "s")), open_reader(tmp_path / "s")
    for sample in range(40):
        assert reader.read_frames(sample, [89])[0] == stored.read_frames(sample, [89])[0]


def test_the_page_wastes_least(tmp_path):
    make_shards(tmp_path / "s", (40,), frames=90, height=120, width=160)
    manifest, sizes = load_manifest(tmp_path / "s"), {}
    chosen = make_beton.page_size(tmp_path / "s", manifest)
    with pytest.MonkeyPatch.context() as patch:
        for power in range(21, 26):
            patch.setattr(make_beton, "_MIN_PAGE", 2**power)
            patch.setattr(make_beton, "_MAX_PAGE", 2**power)
            assert make_beton.write_beton(tmp_path / "s", manifest, tmp_path / "a.beton") == 2**power
            sizes[2**power] = (tmp_path / "a.beton").stat().st_size
    assert min(sizes, key=sizes.get) == chosen
    assert max(sizes.values()) > 1.5 * sizes[chosen]


def test_a_second_run_does_nothing(shards, tmp_path, capsys):
    out = tmp_path / "a.beton"
    assert run(shards, out) == 0
    before = out.stat()
    assert run(shards, out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    assert run(shards, out, "--force") == 0
    assert out.stat().st_ino != before.st_ino


def test_a_file_in_another_form_is_not_the_same(shards, tmp_path, capsys):
    out = tmp_path / "a.beton"
    assert run(shards, out) == 0
    assert run(shards, out, "--raw") == 2
    assert "holds other data: give --force" in capsys.readouterr().err
    assert run(shards, out, "--raw", "--short-side", "18", "--force") == 0
    assert run(shards, out, "--raw", "--short-side", "16") == 2
    assert run(shards, out, "--raw", "--short-side", "18") == 0
    assert "nothing to do" in capsys.readouterr().out
    meta = BetonReader(out, load_manifest(shards)).read_meta(5)
    assert (meta.height, meta.width, meta.encoding) == (18, 26, "raw")


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--short-side", "18"], "add --raw to --short-side 18"), (["--raw", "--short-side", "4"], "choose 16 to 16384")],
)
def test_a_short_side_that_is_impossible(shards, tmp_path, capsys, options, says):
    assert run(shards, tmp_path / "a.beton", *options) == 2
    assert says in capsys.readouterr().err


def test_another_file_is_not_replaced_unasked(shards, tmp_path, capsys):
    out = tmp_path / "a.beton"
    out.write_bytes(b"mine")
    assert run(shards, out) == 2
    assert "holds other data: give --force" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert run(shards, out, "--force") == 0
    BetonReader(out, load_manifest(shards))


class TestDamage:
    """FFCV's own writer would wait forever. make_beton ends with an error and leaves no file."""

    def refused(self, shards, tmp_path, capsys, says):
        assert run(shards, tmp_path / "a.beton") == 2
        assert says in (error := capsys.readouterr().err)
        assert error.startswith("error: ")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]

    def test_a_changed_frame(self, shards, tmp_path, capsys):
        shard = shards / "toy-000002.tar"
        flip_byte(shard, load_index(shard)[1]["jpgs_offset"][3] + 200)
        self.refused(shards, tmp_path, capsys, "toy-000002.tar:00000008: checksum")

    def test_a_missing_shard(self, shards, tmp_path, capsys):
        (shards / "toy-000001.tar").unlink()
        self.refused(shards, tmp_path, capsys, "toy-000001.tar")

    def test_a_replaced_shard(self, shards, tmp_path, capsys):
        index = shards / "toy-000001.idx.json"
        index.write_text(
            index.read_text().replace('"samples":1', '"samples":1,"more":1').replace('"sha256":"', '"sha256":"0')
        )
        self.refused(shards, tmp_path, capsys, "toy-000001.tar: replaced_shard")

    @pytest.mark.parametrize("jpeg", [b"no picture", picture(0, 16, 16)], ids=["no_jpeg", "another_size"])
    def test_frames_that_were_stored_wrong(self, tmp_path, capsys, jpeg):
        from motionmae.data.shards.format import ShardWriter
        from motionmae.data.shards.manifest import EncoderSettings, Manifest, write_manifest

        (tmp_path / "s").mkdir()
        with ShardWriter(tmp_path / "s" / "toy-000000.tar") as shard:
            shard.write("00000000", [picture(0, 20, 28), jpeg], meta(2, 20, 28))
        settings = EncoderSettings(short_side=20, jpeg_quality=95)
        write_manifest(tmp_path / "s", Manifest("toy", "train", ("none",), settings, (shard.entry,)))
        self.refused(tmp_path / "s", tmp_path, capsys, "toy-000000.tar:00000000: decode: frame 1")

    def test_a_sample_larger_than_a_page(self, shards, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(make_beton, "_MAX_PAGE", 1000)
        self.refused(shards, tmp_path, capsys, "exceeds FFCV's largest page: train from the shards")


def test_an_impossible_name(shards, tmp_path, capsys):
    assert run(shards, tmp_path / "a.tar") == 2
    assert "does not end in .beton" in capsys.readouterr().err


@pytest.mark.long
def test_a_killed_run_leaves_no_file_of_that_name(shards, tmp_path):
    code = f"""
import os, signal, sys
from pathlib import Path
from data_tools.make_beton import write_beton
from motionmae.data.open_shards import load_manifest
left = [7]
def advance():
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
shards = Path({str(shards)!r})
write_beton(shards, load_manifest(shards), Path({str(tmp_path / "a.beton")!r}), advance)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "a.beton").exists()
    assert run(shards, tmp_path / "a.beton") == 0
    assert run(shards, tmp_path / "b.beton") == 0
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.long
def test_it_starts_as_a_folder(shards, tmp_path):
    command = [sys.executable, "data_tools/make_beton", str(shards), "--out", str(tmp_path / "a.beton")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "12 samples" in result.stdout
