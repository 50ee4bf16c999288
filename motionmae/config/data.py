"""Data configuration: location, sampling, augmentation and decoding of clips."""

from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeInt, PositiveFloat, PositiveInt

from motionmae.config.section import MAY_CHANGE, MAY_CHANGE_RESULT, NodePath, PathOrUrl, Probability, Section, refusal

REMOTE_SCHEMES = ("http", "https", "s3", "gs", "az")
"""URL schemes of remote shards. None of them can run a program."""


def _known_scheme(location: str) -> str:
    scheme, is_url, _ = location.partition("://")
    if is_url and scheme not in REMOTE_SCHEMES:
        raise ValueError(f"set a folder, or a URL of {', '.join(REMOTE_SCHEMES)}")
    return location


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 < limits[0] <= limits[1]:
        raise ValueError("it must be two positive numbers, the smaller first")
    return limits


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


class DataConfig(Section):
    """Shards and the loader that reads clips from them."""

    shards: Annotated[PathOrUrl, AfterValidator(_known_scheme), MAY_CHANGE_RESULT] = ""
    """Folder of the shards, which holds manifest.json: a path, or an http, https or s3 URL (docs/data.md)."""
    cache: Annotated[NodePath, MAY_CHANGE] = ""
    """Folder on the node's local disk for copies of remote shards, shared by all runs of a user. The node expands
    variables of folders, user and job: `$TMPDIR`, `$USER` (docs/security.md). Empty: motionmae-cache-UID in
    the system's temporary folder."""
    cache_gb: Annotated[PositiveFloat, MAY_CHANGE] = 100.0
    """Maximum size of the cache in GB; least recently used shards are deleted first. Two shuffle windows must fit."""
    remote_retries: Annotated[NonNegativeInt, MAY_CHANGE] = 5
    """Retries of a remote read without progress, after 1, 2, 4, ... seconds."""
    remote_timeout: Annotated[PositiveFloat, MAY_CHANGE] = 30.0
    """Seconds without data after which a connection has failed."""
    downloads: Annotated[NonNegativeInt, MAY_CHANGE] = 4
    """Remote shards that a rank downloads ahead at the same time. 0: a shard is downloaded when a clip needs it."""
    beton: Annotated[NodePath, MAY_CHANGE_RESULT] = ""
    """FFCV file with the clips of the shards, written by `motionmae shards beton` (docs/ffcv.md). Of ``shards`` only
    manifest.json is then needed. The node expands variables as in `cache`. Empty: clips are read from shards."""
    sampling: Literal["dense", "segments"] = "dense"
    """dense: frames clip.stride apart. segments: one frame from each of clip.frames equal parts of the video
    (fine-tuning on SSv2)."""
    crop: Literal["random_resized", "multi_scale"] = "random_resized"
    """random_resized (section 4) or multi_scale (MultiScaleCrop of Table 6a)."""
    crop_scale: Range = (0.5, 1.0)
    """Range of the share of the frame's area that random_resized keeps."""
    crop_ratio: Range = (0.75, 1.3333333333333333)
    """Range of the aspect ratio of random_resized."""
    flip: bool = True
    """Mirror half of the clips left to right. Set to false for SSv2, whose classes name left and right."""
    rand_augment: str = ""
    """RandAugment policy in timm's notation, for example rand-m9-mstd0.5-inc1. Empty: none."""
    random_erasing: Probability = 0.0
    """Probability that noise replaces a rectangle of the clip, the same rectangle in all frames."""
    repeated_sampling: PositiveInt = 1
    """Clips drawn from each video that is read (repeated sampling)."""
    share_frames: bool = False
    """Take the clips of a video from the same frames, as VideoMAE's fine-tuning does: each frame is decoded once for
    all of them, and they differ in crop, flip, augmentation and mask. False: each clip draws its own frames."""
    workers: Annotated[NonNegativeInt, MAY_CHANGE] = 0
    """Decoding processes per rank. 0: ``threads`` decode, which suffices for one or two cores."""
    threads: Annotated[PositiveInt, MAY_CHANGE] = 2
    """Decoding threads per rank if ``workers`` is 0."""
    prefetch: Annotated[PositiveInt, MAY_CHANGE] = 4
    """Decoded micro-batches held ready per rank."""
    shuffle_window_shards: PositiveInt = 64
    """Shards whose samples are shuffled together."""
    max_corrupt_samples: Annotated[NonNegativeInt, MAY_CHANGE] = 100
    """Unreadable samples that a run replaces, counts and logs; one more stops the run."""

    def check(self) -> None:
        if self.crop_scale[1] > 1:
            raise refusal("data.crop_scale", list(self.crop_scale), "the largest crop is the whole frame, 1.0")
