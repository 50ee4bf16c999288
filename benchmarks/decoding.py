"""Every file of a folder through make_shards, held against the ffmpeg program's own decoding: a table of outcomes.

Examples::

  python benchmarks/decoding.py --videos VIDEOS --out docs/decoding.md

Per file: why it is quarantined, or the frames that are stored and those that ffmpeg decodes, the stored size, and how
near the first and the last stored frame come to ffmpeg's (dB of PSNR; brightness alone, and all three colours).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

import av
import numpy as np
from av.stream import Disposition

from data_tools.make_shards.cli import main as make_shards
from motionmae.data.open_shards import open_reader
from motionmae.data.shards.reader import ShardReader
from motionmae.files import output_file, write_atomically
from tests.data_tools.videos import decode_jpegs, ffmpeg_count, ffmpeg_frames, psnr

_HEAD = """\
# What becomes of awkward videos

{stored} of {total} real files are stored with exactly the frames that the ffmpeg program decodes, upright; the
other {refused} hold no frame for ffmpeg either, and are quarantined with the reason. PSNR is that of the first and last
stored frame (JPEG quality 90, 4:2:0) to ffmpeg's RGB, of brightness and of all colours: where the second falls
below 30 dB it is a rendered test pattern whose colours change from pixel to pixel, and colour at half size is all that
is lost. Genuine clips of Kinetics-400, Something-Something V2, UCF101 and HMDB51 are among the files. Of several video
streams (general/nasa_13013.mp4 has two) the one that ffmpeg chooses is stored; ffmpeg decodes with one thread, since
what stands in for damaged parts depends on their number.

Written by `python benchmarks/decoding.py --videos VIDEOS --out docs/decoding.md`; tests hold the same files to it.

| file | outcome | frames, ours / ffmpeg | size | codec | PSNR brightness, first / last | PSNR colours, first / last |
|---|---|---|---|---|---|---|
"""


def codec_of(path: Path) -> str:
    """Name of the codec of the best video stream."""
    try:
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & Disposition.attached_pic:
                return ""
            return f"{stream.codec_context.name} {stream.codec_context.pix_fmt or ''}".strip()
    except (av.FFmpegError, AttributeError):
        return ""


def luma(frames: np.ndarray) -> np.ndarray:
    """Brightness of RGB frames."""
    return frames.astype(float) @ np.array([[0.299], [0.587], [0.114]])


def stored_row(reader: ShardReader, sample: int, path: Path) -> str:
    """The table's row of a stored video."""
    meta = reader.read_meta(sample)
    last = meta.frames - 1
    ours = decode_jpegs([bytes(jpeg) for jpeg in reader.read_frames(sample, [0, last])])
    theirs = ffmpeg_frames(path, meta.width, meta.height, f"select='eq(n,0)+eq(n,{last})'")[[0, -1]]
    pairs = list(zip(ours, theirs, strict=True))
    bright = " / ".join(f"{psnr(luma(one), luma(other)):.1f}" for one, other in pairs)
    colours = " / ".join(f"{psnr(one, other):.1f}" for one, other in pairs)
    counts = f"{meta.frames} / {ffmpeg_count(path)}"
    return f"stored | {counts} | {meta.width} x {meta.height} | {codec_of(path)} | {bright} | {colours}"


def main() -> None:
    """Parse, decode everything, write the table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("::", ":"), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--out", type=output_file, required=True, help="the Markdown file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shards = Path(name) / "shards"
        status = make_shards(["folder", "--videos", str(options.videos), "--out", str(shards)])
        assert status == 0, f"make_shards ended with status {status}"
        reader = open_reader(shards)
        rows = {}
        for sample in range(reader.manifest.samples):
            source = reader.read_json(sample)["source"]
            rows[source] = stored_row(reader, sample, options.videos / source)
        stored = len(rows)
        for line in (shards / "quarantine.jsonl").read_text().splitlines():
            fault = json.loads(line)
            path = options.videos / fault["path"]
            rows[fault["path"]] = f"quarantined: {fault['reason']} | 0 / {ffmpeg_count(path)} | | {codec_of(path)} | |"
    head = _HEAD.format(stored=stored, total=len(rows), refused=len(rows) - stored)
    table = "".join(f"| {source} | {row} |\n" for source, row in sorted(rows.items()))
    write_atomically(options.out, (head + table).encode())
    print(f"{options.out}: {len(rows)} files, {stored} stored")


if __name__ == "__main__":
    main()
