"""Compare make_shards with the decoding of the ffmpeg program, for every file of a folder, and write a table.

Examples:
  python -m benchmarks.decoding --videos VIDEOS --out docs/data/decoding.md

The row of a quarantined file gives the reason. The row of a stored file gives the number of stored frames and of
ffmpeg's frames, the stored size, and the PSNR in dB of the first and the last stored frame compared with ffmpeg's, for
brightness alone and for all three colours.
"""

import json
import tempfile
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from benchmarks.script import build_parser, run_script
from motionmae.commands.app import main as motionmae
from motionmae.data.open_shards import open_reader
from motionmae.data.shards.reader import ShardReader
from motionmae.data.video.open_video import RefusedFormat, open_video
from motionmae.files import output_file, write_atomically
from tests.data_tools.videos import decode_jpegs, ffmpeg_count, ffmpeg_frames, psnr

_HEAD = """\
# Outcomes for awkward videos

{stored} of {total} real files are stored, upright and with exactly the frames that ffmpeg decodes. The other
{refused} give no frame in ffmpeg either, and are quarantined with the reason. Clips of Kinetics-400,
Something-Something V2, UCF101 and HMDB51 are among the files.

- PSNR compares the first and the last stored frame (JPEG quality 90, 4:2:0) with ffmpeg's RGB, for brightness and for
  all colours, in dB. Colours are below 30 dB in rendered test patterns whose colours change from pixel to pixel: the
  half size of chroma causes the whole loss.
- If a file has several video streams (general/nasa_13013.mp4 has two), the stream that ffmpeg chooses is stored.
- ffmpeg decodes with one thread, because its replacement for damaged parts depends on the number of threads.

## Pixels

- **Interlaced videos.** A frame is scaled as a whole, also if it holds two fields or is wrongly flagged so. ffmpeg,
  decord and torchcodec do the same. swscale of FFmpeg 8 by itself scales each field, which leaves comb lines.
- **Matrix coefficients.** Tags that FFmpeg 8 refuses (ICtCp, YCgCo and others) are decoded as BT.601, and BT.2020 with
  constant luminance as BT.2020. decord, torchcodec and ffmpeg 5 do the same, to the bit. `replaced_matrices` of
  `manifest.json` and of each KEY.json names the videos, their tags and what was used.
- **RGB of 16 bits** (old AVI and QuickTime files) is widened so that white is 255 at every size. FFmpeg 8 reads the
  big-endian formats wrongly, which is mended.
- **Rotation** by the display matrix is applied. **Cropping by the container** (`clap` of mp4, PixelCrop of Matroska)
  and **sample aspect ratios** are not, as in decord and ffmpeg 5: the stored pixels are those of the codec.
- **Size.** A video with a stored side above 16384 pixels is quarantined as `unsupported_frame`, and so is one with a
  pixel format that FFmpeg cannot convert.
- **Times.** The frames are placed by the rate of the header if two neighbouring timestamps are more than an hour apart
  (the clock of the camera has jumped), or if timestamps are on average a millisecond apart or less. A rate of 0 or of
  1000 and more is no rate; the default is 25.

`tests/data/video/test_video_frames.py` compares 512 combinations with the ffmpeg program 5.1: progressive, top field
first, bottom field first, flagged only; scaled or not; 4:2:0, 4:2:2, 4:4:4, gray, alpha, 8 and 10 bits; limited and
full range; four rotations. `--raw` and `read_video` are the same to the bit. JPEGs of quality 100 have a PSNR of 44.4
dB or more to JPEGs of ffmpeg's planes. Flow fields differ by 0.016 pixels at most (median of a field).

## Files

Written by `python -m benchmarks.decoding --videos VIDEOS --out docs/data/decoding.md`. Tests check the same files.

| file | outcome | frames, stored / ffmpeg | size | codec | PSNR brightness, first / last | PSNR colours, first / last |
|---|---|---|---|---|---|---|
"""


def codec_of(path: Path) -> str:
    """Return the codec and the pixel format of the best video stream."""
    try:
        with open_video(path) as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & Disposition.attached_pic:
                return ""
            return f"{stream.codec_context.name} {getattr(stream.codec_context, 'pix_fmt', None) or ''}".strip()
    except (av.FFmpegError, RefusedFormat, AttributeError):
        return ""


def luma(frames: np.ndarray) -> np.ndarray:
    """Return the luma of RGB frames."""
    return frames.astype(float) @ np.array([[0.299], [0.587], [0.114]])


def stored_row(reader: ShardReader, sample: int, path: Path) -> str:
    """Return the row of a stored video."""
    meta = reader.read_meta(sample)
    last = meta.frames - 1
    stored = decode_jpegs([bytes(jpeg) for jpeg in reader.read_frames(sample, [0, last])])
    expected = ffmpeg_frames(path, meta.width, meta.height, f"select='eq(n,0)+eq(n,{last})'")[[0, -1]]
    pairs = list(zip(stored, expected, strict=True))
    bright = " / ".join(f"{psnr(luma(one), luma(other)):.1f}" for one, other in pairs)
    colours = " / ".join(f"{psnr(one, other):.1f}" for one, other in pairs)
    counts = f"{meta.frames} / {ffmpeg_count(path)}"
    return f"stored | {counts} | {meta.width} x {meta.height} | {codec_of(path)} | {bright} | {colours}"


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--out", type=output_file, required=True, help="the Markdown file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shards = Path(name) / "shards"
        status = motionmae(["shards", "make", "folder", "--videos", str(options.videos), "--out", str(shards)])
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
    run_script(main)
