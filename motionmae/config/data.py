"""Data configuration: location, sampling, augmentation and decoding of clips."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from motionmae.config.refusals import describe_refusal
from motionmae.config.section import MAY_CHANGE, MAY_CHANGE_RESULT, NodePath, PathOrUrl, Probability, Section, refusal
from motionmae.config.text_types import OneLine

REMOTE_SCHEMES = ("http", "https", "s3", "gs", "az")
"""URL schemes of remote shards. None of them can run a program."""


def known_scheme(location: str) -> str:
    scheme, is_url, _ = location.partition("://")
    if is_url and scheme not in REMOTE_SCHEMES:
        raise ValueError(f"set a folder, or a URL of {', '.join(REMOTE_SCHEMES)}")
    return location


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 < limits[0] <= limits[1]:
        raise ValueError("it must be two positive numbers, the smaller first")
    return limits


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


class SourceConfig(Section):
    """Folder of shards that a run mixes with others (docs/data/mixtures.md)."""

    path: Annotated[PathOrUrl, AfterValidator(known_scheme)]
    """Folder or URL of the shards."""
    weight: NonNegativeFloat = 0.0
    """Share of the samples, relative to the other weights. 0: none given."""
    passes: NonNegativeFloat = 0.0
    """Passes through the folder in an epoch. 0: none given."""
    name: OneLine = ""
    """Name in metrics and reports. Empty: the end of the path."""


Shards = str | tuple[SourceConfig, ...]
"""Folder or URL of shards, or the sources of a mixture."""


def _parse_shards(value: Any) -> Any:
    """Return the sources of a list. A list of one folder is that folder, whose order of samples is then as alone."""
    if isinstance(value, str):
        return known_scheme(value)
    if not isinstance(value, list | tuple):
        raise ValueError("write a folder, a URL, or a list of folders: [{path: FOLDER, weight: 3}, ...]")
    sources = tuple(map(_parse_source, value))
    if not sources:
        raise ValueError("the list is empty; name a folder of shards, or several")
    return sources[0].path if len(sources) == 1 else sources


def _parse_source(value: Any) -> SourceConfig:
    if isinstance(value, SourceConfig):
        return value
    tree = {"path": value} if isinstance(value, str) else value
    if not isinstance(tree, dict) or not tree.get("path"):
        raise ValueError("each entry must be a folder, or {path: FOLDER, weight: NUMBER}")
    try:
        return SourceConfig.model_validate(tree)
    except ValidationError as error:
        raise ValueError(describe_refusal(error, SourceConfig, tree)) from None


class DataConfig(Section):
    """Shards and the loader that reads clips from them."""

    shards: Annotated[
        Shards,
        BeforeValidator(_parse_shards),
        Field(json_schema_extra={"path": "url", "on_resume": "may_change_result"}),
    ] = ""
    """Folder of the shards, which holds manifest.json: a path, or an http, https or s3 URL. A list of folders is a
    mixture: `[{path: FOLDER, weight: 3}, ...]`, with `passes` in place of `weight`, or with neither
    (docs/data/mixtures.md)."""
    mixture_temperature: PositiveFloat = 1.0
    """Mixture without weights and passes: folders of n samples have shares in proportion to n^(1/temperature). 1: by
    their sizes; larger values: more alike."""
    cache: Annotated[NodePath, MAY_CHANGE] = ""
    """Folder on the node's local disk for copies of remote shards, shared by all runs of a user. The node expands
    variables of folders, user and job: `$TMPDIR`, `$USER` (docs/operate/security.md). Empty: motionmae-cache-UID in
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
    """FFCV file with the clips of the shards, written by `motionmae shards beton` (docs/data/ffcv.md). Of ``shards``
    only manifest.json is then needed. The node expands variables as in `cache`. Empty: clips are read from shards."""
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
        if self.is_mixture:
            self._check_mixture()
        elif self.mixture_temperature != 1:
            raise refusal("data.mixture_temperature", self.mixture_temperature, "data.shards is not a list of folders")

    def _check_mixture(self) -> None:
        paths = [source.path.rstrip("/") for source in self.sources]
        if twice := next((path for path in paths if paths.count(path) > 1), ""):
            raise refusal("data.shards", self.location, f"{twice} is listed twice; list it once, with a larger weight")
        weighted, passing = ([bool(getattr(one, key)) for one in self.sources] for key in ("weight", "passes"))
        if (any(weighted) and any(passing)) or any(any(given) and not all(given) for given in (weighted, passing)):
            allowed = "give every folder a positive weight, or every folder positive passes, or neither to any"
            raise refusal("data.shards", self.location, allowed)
        if self.mixture_temperature != 1 and (any(weighted) or any(passing)):
            allowed = "weights and passes say the shares already; leave the temperature at 1"
            raise refusal("data.mixture_temperature", self.mixture_temperature, allowed)
        if self.beton:
            raise refusal("data.beton", self.beton, "it holds the clips of one folder, and data.shards lists several")
        names = self.source_names
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise refusal("data.shards", self.location, f"two folders have the name {twice}; give each its own name")

    @property
    def is_mixture(self) -> bool:
        return not isinstance(self.shards, str)

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """Folders of the shards: one, or those of the mixture."""
        return (SourceConfig(path=self.shards),) if isinstance(self.shards, str) else self.shards

    @property
    def location(self) -> str:
        """All folders of the shards, for messages."""
        return " + ".join(source.path for source in self.sources)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources. By default the shortest end of each path that no other path has."""
        parts = [PurePosixPath(source.path).parts for source in self.sources]
        length = next(
            (n for n in range(1, 20) if len({p[-n:] for p in parts}) == len(parts)),
            1,
        )
        return tuple(
            source.name or "/".join(part.strip("/") for part in p[-length:])
            for source, p in zip(self.sources, parts, strict=True)
        )
