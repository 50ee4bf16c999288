"""Where clips come from and how they are cut out of videos."""

from dataclasses import dataclass

from motionmae.config.checks import at_least, check, one_of

REMOTE_SCHEMES = ("http", "https", "s3")
"""Where shards may lie besides folders; none of these can run a program."""


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from and how they are cut out."""

    shards: str = ""
    """Folder of shards, the one that holds manifest.json: a path, or a URL of http, https or s3 (docs/data.md)."""
    cache: str = ""
    """Folder on the node's own disk that keeps remote shards, shared by all runs of a user; `$TMPDIR` and the like are
    filled in on the node. Empty: motionmae-cache-UID below the system's folder for temporary files."""
    cache_gb: float = 100.0
    """Most that the cache may hold, in units of 10^9 bytes; the least recently used shards make way. Two windows of
    shards must fit (the one in use and the next)."""
    remote_retries: int = 5
    """Repetitions of a remote read that fails without progress, after 1, 2, 4, ... seconds."""
    remote_timeout: float = 30.0
    """Seconds of silence after which a connection counts as failed."""
    beton: str = ""
    """FFCV file that `data_tools/make_beton` wrote from these shards, read in their place (empty: the shards); of
    ``shards`` only manifest.json is then needed (docs/ffcv.md says when it pays). `$TMPDIR` and the like are filled in
    on the node."""
    sampling: str = "dense"
    """dense: frames at the distance clip.stride; segments: a frame from each of clip.frames equal parts of the video
    (fine-tuning on SSv2)."""
    crop: str = "random_resized"
    """random_resized (section 4) or multi_scale (Table 6a's MultiScaleCrop)."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the frame's area that random_resized keeps."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Range of the aspect ratio of random_resized."""
    flip: bool = True
    """Mirror half of the clips left to right (not on SSv2: its classes name sides)."""
    rand_augment: str = ""
    """RandAugment in timm's notation, e.g. rand-m9-mstd0.5-inc1, one policy for all frames of a clip; empty: none."""
    random_erasing: float = 0.0
    """Chance that a rectangle of the clip, the same in all frames, is replaced by noise (random erasing)."""
    repeated_sampling: int = 1
    """Clips drawn from each video that is read (repeated sampling)."""
    workers: int = 0
    """Processes of a rank that decode; 0: ``threads`` of the training process, enough for a core or two. A .beton takes
    ``threads`` either way."""
    threads: int = 2
    """Decoding threads of a rank without ``workers``."""
    prefetch: int = 4
    """Micro-batches held ready per rank."""
    shuffle_window_shards: int = 64
    """Shards whose samples are mixed with each other."""
    max_corrupt_samples: int = 100
    """Samples of a run that may be unreadable (each replaced, counted and logged) before it stops."""

    def __post_init__(self) -> None:
        one_of("data.sampling", self.sampling, ("dense", "segments"))
        check(0 <= self.random_erasing <= 1, "data.random_erasing", self.random_erasing, "it must lie in [0, 1]")
        one_of("data.crop", self.crop, ("random_resized", "multi_scale"))
        for key, low, high in (("crop_scale", *self.crop_scale), ("crop_ratio", *self.crop_ratio)):
            check(0 < low <= high, f"data.{key}", (low, high), "it takes two positive numbers, the smaller first")
        check(self.crop_scale[1] <= 1, "data.crop_scale", self.crop_scale, "a crop keeps at most the whole, 1.0")
        for key in ("repeated_sampling", "threads", "prefetch", "shuffle_window_shards"):
            at_least(f"data.{key}", getattr(self, key), 1)
        at_least("data.workers", self.workers, 0)
        at_least("data.max_corrupt_samples", self.max_corrupt_samples, 0)
        at_least("data.remote_retries", self.remote_retries, 0)
        for key in ("cache_gb", "remote_timeout"):
            check(getattr(self, key) > 0, f"data.{key}", getattr(self, key), "it must be positive")
        scheme, is_url, _ = self.shards.partition("://")
        allowed = f"give a folder, or a URL of {', '.join(REMOTE_SCHEMES)}"
        check(not is_url or scheme in REMOTE_SCHEMES, "data.shards", self.shards, allowed)
