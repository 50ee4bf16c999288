"""Write a planned shard, or the shards of a video in segments. A shard that is made again keeps its samples if their
originals are gone or give no better ones.
"""

import contextlib
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from data_tools.annotations import VideoRecord
from data_tools.decode import DecodedVideo, QuarantineReason, UndecodableVideo
from data_tools.decode_worker import DecodeWorker
from data_tools.frame_store import FrameStore
from data_tools.make_shards.candidates import decode_first
from data_tools.make_shards.old_samples import OldSamples, is_better, reach_end
from data_tools.make_shards.records import Counts, ShardRecord, save_record
from data_tools.make_shards.shard_plan import PlannedShard, ShardPlan, segment_key, segment_of
from motionmae.data.shards.format import ShardEntry, ShardWriter, load_index, shard_is_complete
from motionmae.data.shards.manifest import MANIFEST
from motionmae.data.shards.publish import index_path
from motionmae.data.shards.stored_samples import StoredSample, StoredSamples


class _NothingNew(Exception):  # noqa: N818 - a reason, not an error
    """The old shard has all that the new one would have."""


class _Sample(NamedTuple):
    """Sample to write: the frames that were decoded, or a sample of the old shard."""

    key: str
    segment: int  # number of the segment within the video; 0 if the video is one sample
    video: VideoRecord
    chosen: DecodedVideo | StoredSample


class Writer:
    """Writer of shards, with decoding processes that its threads share."""

    def __init__(self, plan: ShardPlan, out: Path, decoders: Sequence[DecodeWorker], total: Counts, retry: bool):
        self._plan, self._out, self._total, self._retry = plan, out, total, retry
        self._total_lock = threading.Lock()
        self._idle: SimpleQueue[DecodeWorker] = SimpleQueue()
        for decoder in decoders:
            self._idle.put(decoder)

    def write(self, shard: PlannedShard) -> None:
        """Write a shard beside the old one, which it replaces if a sample is new, and whose samples it keeps."""
        counts = Counts()
        write = self._write_segments if self._plan.frames.segment_seconds else self._write_videos
        save_record(self._out, shard, ShardRecord(counts, tuple(write(shard, counts))))

    def _write_videos(self, shard: PlannedShard, counts: Counts) -> Iterator[ShardEntry]:
        path = self._out / shard.name
        old, known = StoredSamples(path), self._known_entry(path)
        samples = itertools.chain.from_iterable(
            self._samples(key, video, OldSamples({0: (old, key)}, video.label), known is not None, counts)
            for key, video in shard.videos
        )
        yield from self._write_file(path, samples, known, old, [key for key, _ in shard.videos])

    def _write_segments(self, shard: PlannedShard, counts: Counts) -> Iterator[ShardEntry]:
        """Write the shards of one video, each as soon as its last segment is decoded."""
        ((key, video),) = shard.videos
        numbers = ((shard.number_of_file(path.name), path) for path in self._out.glob(f"{shard.stem}-*.tar"))
        old = {number: StoredSamples(path) for number, path in numbers if number is not None}
        places = {
            segment: (samples, name)
            for samples in old.values()
            for name in samples.keys
            if (segment := segment_of(key, name)) is not None
        }
        known = {number: self._known_entry(self._out / shard.file_of_segments(number)) for number in old}
        is_trusted = self._retry and all(known.values())
        samples = self._samples(key, video, OldSamples(places, video.label), is_trusted, counts)
        count = self._plan.samples_per_shard
        for number, group in itertools.groupby(samples, lambda sample: sample.segment // count):
            path = self._out / shard.file_of_segments(number)
            keys = [segment_key(key, number * count + row) for row in range(count)]
            yield from self._write_file(path, group, known.get(number), old.pop(number, None), keys)
        for number in old:  # none of its samples can be read any more
            path = self._out / shard.file_of_segments(number)
            self._prepare_replacement(path, is_set_aside=True)
            path.unlink(missing_ok=True)
            index_path(path).unlink(missing_ok=True)

    def _known_entry(self, path: Path) -> ShardEntry | None:
        """Return the entry of the old shard if a retry may trust it."""
        return load_index(path)[0] if self._retry and shard_is_complete(path) else None

    def _write_file(
        self,
        path: Path,
        samples: Iterable[_Sample],
        known: ShardEntry | None,
        old: StoredSamples | None,
        keys: Sequence[str],
    ) -> Iterator[ShardEntry]:
        """Write one tar, and yield its entry if it has samples. ``known`` is the entry of the old, sound tar.

        The old tar is set aside if it may hold one of ``keys`` that the new tar lacks.
        """
        written: set[str] = set()
        new = 0
        with contextlib.suppress(_NothingNew), ShardWriter(path, self._plan.encoding) as writer:
            for key, segment, video, chosen in samples:
                if isinstance(chosen, StoredSample):
                    writer.copy(key, chosen.members, chosen.meta)
                else:
                    facts = _sample_json(video, chosen, self._plan.frames.stride)
                    if self._plan.frames.segment_seconds:
                        facts |= {"segment": segment, "last_segment": chosen.is_last}
                    writer.write(key, chosen.jpegs, facts, chosen.flows)
                    new += 1
                written.add(key)
            is_same = known is not None and not new and len(written) == known.samples
            if is_same or not written:  # readers cannot use a shard without samples
                raise _NothingNew
            writer.flush()  # the disk may be full, and then the folder stays as it is
            is_loss = old is not None and any(old.may_hold(key) for key in keys if key not in written)
            self._prepare_replacement(path, is_loss)
        if entry := writer.entry or (known if written else None):
            yield entry

    def _samples(
        self, key: str, video: VideoRecord, old: OldSamples, is_trusted: bool, counts: Counts
    ) -> Iterator[_Sample]:
        """Yield the samples of a video. Each is counted when the next one is asked for, because it is written then."""
        end, samples = Counts(videos=1), 0
        damaged = kept = False
        substitute = video.source
        try:
            for segment, chosen in self._choose(video, old, is_trusted):
                added = _count(chosen)
                name = segment_key(key, segment) if self._plan.frames.segment_seconds else key
                yield _Sample(name, segment, video, chosen)
                self._add(counts, added)
                samples += 1
                damaged |= chosen.damaged_packets > 0
                kept |= isinstance(chosen, StoredSample)
                end.matrices.update({video.source: chosen.matrices} if chosen.matrices else {})
                substitute = chosen.source if isinstance(chosen, DecodedVideo) else substitute
        except UndecodableVideo as error:
            stored = f"; {samples} of its segments are stored" if samples else ""
            row = {"path": video.source, "reason": error.reason.value, "error": error.detail + stored}
            end.quarantine.append(row)
        if substitute != video.source:
            end.substituted.append(f"{substitute} for {video.source}")
        if damaged:
            end.damaged.append(video.source)
        if kept and not (is_trusted and _is_readable(video.path)):
            end.kept.append(video.source)
        self._add(counts, end)

    def _add(self, counts: Counts, added: Counts) -> None:
        counts.add(added)
        with self._total_lock:
            self._total.add(added)

    def _choose(
        self, video: VideoRecord, old: OldSamples, is_trusted: bool
    ) -> Iterator[tuple[int, DecodedVideo | StoredSample]]:
        """Yield each segment with the stored sample if the original gives no better one. The whole video is segment 0.

        A retry (``is_trusted``) does not decode the originals of sound samples, which would give the same bytes.
        Raises UndecodableVideo in the end if the video is neither stored whole nor decoded to its end.
        """
        if is_trusted and old.is_sound:
            yield from old.samples(0)
            return
        decoded_segments, failure = 0, None
        try:
            for decoded in self._decode(video):
                stored = old.read(decoded.segment)
                yield decoded.segment, stored if stored and is_better(stored, decoded) else decoded
                decoded_segments = decoded.segment + 1
        except UndecodableVideo as error:
            failure = error
        rest = []
        for segment, stored in old.samples(decoded_segments):
            rest.append((segment, stored.is_last))
            yield segment, stored
        if failure and not reach_end(rest, decoded_segments):
            raise failure

    def _decode(self, video: VideoRecord) -> Iterator[DecodedVideo]:
        if video.path is None:
            raise UndecodableVideo(QuarantineReason.MISSING, "the annotations name it, but the file does not exist")
        decoder, is_idle = self._idle.get(), False
        try:
            for decoded in decode_first(video, decoder.decode):
                if decoded.is_last:  # the process can decode another video while this one is written
                    self._idle.put(decoder)
                    is_idle = True
                yield decoded
        finally:
            if not is_idle:
                self._idle.put(decoder)

    def _prepare_replacement(self, path: Path, is_set_aside: bool) -> None:
        """Delete the manifest, which would mark the folder as complete, and set a shard aside that loses a sample."""
        if is_set_aside:
            name = _set_aside(path)
            with self._total_lock:
                self._total.set_aside.append(name)
        (self._out / MANIFEST).unlink(missing_ok=True)


def _count(chosen: DecodedVideo | StoredSample) -> Counts:
    if isinstance(chosen, StoredSample):
        return Counts(samples=1, frames=chosen.meta["frames"], bytes=chosen.frame_bytes)
    jpegs = chosen.jpegs
    size = jpegs.size if isinstance(jpegs, FrameStore) else sum(map(len, jpegs))
    return Counts(samples=1, frames=len(jpegs), bytes=size)


def _is_readable(path: Path | None) -> bool:
    try:
        return path is not None and os.access(path, os.R_OK) and path.stat().st_size > 0
    except OSError:
        return False


def _set_aside(shard: Path) -> str:
    """Keep a damaged shard under a new name, and return the name."""
    names = (f"{shard.name}.damaged{number or ''}" for number in itertools.count())
    kept = next(path for path in map(shard.with_name, names) if not os.path.lexists(path))
    try:
        kept.hardlink_to(shard)
    except OSError:  # the disk has no hard links
        shard.rename(kept)
    return kept.name


def _sample_json(video: VideoRecord, decoded: DecodedVideo, stride: int) -> dict[str, Any]:
    """Return the content of KEY.json: all keys in motionmae.data.shards.format.META_KEYS, and decoding results."""
    content = {
        "label": video.label,
        "class_name": video.class_name,
        "source": decoded.source,
        "fps": decoded.fps,
        "frames": len(decoded.jpegs),
        "stride": stride,
        "height": decoded.height,
        "width": decoded.width,
        "times": decoded.times,
        "windows": decoded.windows,
        "source_frames": decoded.source_frames,
        "damaged_packets": decoded.damaged_packets,
    }
    if video.caption:
        content["caption"] = video.caption
    return content | ({"replaced_matrices": decoded.matrices} if decoded.matrices else {})
