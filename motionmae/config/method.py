"""What is trained, the method of the paper: clip, model, mask and target."""

from dataclasses import dataclass

from motionmae.config.checks import at_least, check, one_of
from motionmae.config.sizes import SIZES, Size


@dataclass(frozen=True)
class ClipConfig:
    """What the model sees: a clip of ``frames`` x ``size`` x ``size`` pixels, cut into space-time cubes."""

    frames: int = 16
    """Frames of a clip (paper section 4: 16; one SSv2 row: 32)."""
    size: int = 224
    """Height and width of a clip, in pixels."""
    stride: int = 4
    """Distance of neighbouring clip frames in the video (section 4: SSv2 2, K400 4, UCF101 4)."""
    cube_frames: int = 2
    """Frames of a cube (the temporal size of a space-time patch)."""
    cube_size: int = 16
    """Height and width of a cube, in pixels."""

    def __post_init__(self) -> None:
        for key in ("frames", "size", "stride", "cube_frames", "cube_size"):
            at_least(f"clip.{key}", getattr(self, key), 1)
        check(
            self.frames % self.cube_frames == 0,
            "clip.frames",
            self.frames,
            f"it must be a multiple of clip.cube_frames={self.cube_frames}",
        )
        check(
            self.size % self.cube_size == 0,
            "clip.size",
            self.size,
            f"it must be a multiple of clip.cube_size={self.cube_size}",
        )

    @property
    def temporal_patches(self) -> int:
        """Number of cubes along time: 8 for the paper's 16 frames."""
        return self.frames // self.cube_frames

    @property
    def grid_size(self) -> int:
        """Number of cubes along height, and along width: 14 at 224 pixels."""
        return self.size // self.cube_size

    @property
    def spatial_patches(self) -> int:
        """Number of cubes that cover one frame: 196 at 224 pixels."""
        return self.grid_size**2

    @property
    def cubes(self) -> int:
        """Number of cubes in a clip, that is of tokens: 1568 for the paper's clip."""
        return self.temporal_patches * self.spatial_patches

    @property
    def cube_pixels(self) -> int:
        """Number of values in a flattened RGB cube: 2 * 16 * 16 * 3 = 1536."""
        return self.cube_frames * self.cube_size**2 * 3


@dataclass(frozen=True)
class ModelConfig:
    """Encoder and decoders (paper sections 3 and 4)."""

    size: str = "vit_b"
    """Encoder: vit_ti, vit_s, vit_b, vit_l or vit_h; sets width, depth and heads, and the decoders' width."""
    width: int = 0
    """Encoder width in place of the size's own (0: the size's)."""
    depth: int = 0
    """Encoder depth in place of the size's own (0: the size's)."""
    heads: int = 0
    """Encoder heads in place of the size's own (0: the size's)."""
    decoder: str = "divided"
    """divided: two independent decoders (Table 10, the default); shared: one trunk, two last layers."""
    decoder_width: int = 0
    """Width of each decoder (0: the size's; paper: 384 for B, 512 for L)."""
    decoder_depth: int = 4
    """Blocks of each decoder (Table 5e)."""
    decoder_heads: int = 0
    """Heads of each decoder (0: the size's)."""
    pos_embed: str = "sinusoidal"
    """sinusoidal: VideoMAE's fixed flat table; separate: fixed, with channels of their own for slot, row and column
    (V-JEPA's), which small models learn from many times sooner (docs/results.md); learnable: trained (section 3)."""
    patch_embed_init: str = "xavier"
    """Initial cube projection: xavier (on the flattened kernel) or pytorch (its own default, as VideoMAE)."""
    activation_checkpointing: str = "none"
    """none, full (every block recomputed in the backward pass) or every_n (each n-th block)."""
    checkpoint_every: int = 2
    """The n of activation_checkpointing=every_n."""

    def __post_init__(self) -> None:
        one_of("model.size", self.size, tuple(SIZES))
        one_of("model.decoder", self.decoder, ("divided", "shared"))
        one_of("model.pos_embed", self.pos_embed, ("sinusoidal", "separate", "learnable"))
        one_of("model.patch_embed_init", self.patch_embed_init, ("xavier", "pytorch"))
        one_of("model.activation_checkpointing", self.activation_checkpointing, ("none", "full", "every_n"))
        for key in ("width", "depth", "heads", "decoder_width", "decoder_heads"):
            at_least(f"model.{key}", getattr(self, key), 0)
        at_least("model.decoder_depth", self.decoder_depth, 1)
        at_least("model.checkpoint_every", self.checkpoint_every, 1)
        size = self.dimensions
        for key, width, heads in (
            ("heads", size.width, size.heads),
            ("decoder_heads", size.decoder_width, size.decoder_heads),
        ):
            fitting = [n for n in range(1, width + 1) if width % n == 0 and width // n <= 64]
            check(
                width % heads == 0,
                f"model.{key}",
                heads,
                f"the width {width} must be a multiple of it; set model.{key}={fitting[0]}",
            )

    @property
    def dimensions(self) -> Size:
        """What this model is built with: its own numbers, and its size's where they are 0."""
        named = SIZES[self.size]
        return Size(
            self.width or named.width,
            self.depth or named.depth,
            self.heads or named.heads,
            self.decoder_width or named.decoder_width,
            self.decoder_heads or named.decoder_heads,
        )


@dataclass(frozen=True)
class MaskConfig:
    """Which cubes are hidden (paper section 3, Tables 8 and 9)."""

    kind: str = "tube"
    """random: a fixed count in every time slot; tube: the same places in every slot (the paper's space-only);
    time: whole slots; global: a fixed count drawn over all cubes of the clip at once (MAE-ST)."""
    ratio: float = 0.9
    """Share of the cubes that are hidden, strictly between 0 and 1."""
    decoder_ratio: float = 0.0
    """Share of the cubes that decoders leave out in training: 0, or 0.25, 0.5 or 0.75 by VideoMAEv2's running cells.
    Another method than the paper's, for less computing (docs/performance.md); pictures rebuild all that is hidden."""

    def __post_init__(self) -> None:
        one_of("mask.kind", self.kind, ("random", "tube", "time", "global"))
        check(0 < self.ratio < 1, "mask.ratio", self.ratio, "it must lie strictly between 0 and 1")
        check(
            self.decoder_ratio in (0, 0.25, 0.5, 0.75),
            "mask.decoder_ratio",
            self.decoder_ratio,
            "a cell of 2 x 2 places loses a whole number of them, so choose 0, 0.25, 0.5 or 0.75",
        )


@dataclass(frozen=True)
class TargetConfig:
    """What is rebuilt, and the loss (paper section 3, Tables 5a-c, 5f and 7)."""

    kind: str = "both"
    """frame (VideoMAE's target), motion, or both (MotionMAE)."""
    frame_weight: float = 1.0
    """Weight of the space head's loss (Table 5b)."""
    motion_weight: float = 1.0
    """Weight of the time head's loss (Table 5b)."""
    motion_source: str = "difference"
    """difference of nearby frames, or flow: optical flow stored in the shards (Table 7)."""
    motion_sign: str = "abs"
    """abs: absolute difference ("L1 difference", section 3); signed: previous minus current frame."""
    motion_granularity: int = 1
    """Distance in clip frames of the two frames whose difference is taken (Table 5c: 1, 2, 3)."""
    loss: str = "mse"
    """mse, l1 or smooth_l1 (Table 5f)."""
    normalize: bool = True
    """Normalise each target cube per channel to zero mean, unit variance (Table 6a, "patch norm")."""
    frame_eps: float = 1e-6
    """Added to the standard deviation of a frame cube (VideoMAE's value)."""
    motion_eps: float = 6e-3
    """Added to the standard deviation of a motion cube; keeps a static cube's noise from becoming its target."""

    frame_std: float = 1.0
    """What frames are divided by where ``normalize`` is off. A head of few steps learns a target of unit variance
    sooner, and frames have 0.2, differences 0.07 in [0, 1]."""
    motion_std: float = 1.0
    """The same for motion."""

    def __post_init__(self) -> None:
        one_of("target.kind", self.kind, ("frame", "motion", "both"))
        one_of("target.motion_source", self.motion_source, ("difference", "flow"))
        one_of("target.motion_sign", self.motion_sign, ("abs", "signed"))
        one_of("target.loss", self.loss, ("mse", "l1", "smooth_l1"))
        for key, value, default in (
            ("motion_sign", self.motion_sign, "abs"),
            ("motion_granularity", self.motion_granularity, 1),
        ):
            check(
                self.motion_source == "difference" or value == default,
                f"target.{key}",
                value,
                f"stored flow (target.motion_source=flow) has none of it; leave it at {default}",
            )
        for key in ("frame_weight", "motion_weight", "frame_eps", "motion_eps", "frame_std", "motion_std"):
            check(getattr(self, key) > 0, f"target.{key}", getattr(self, key), "it must be positive")
        at_least("target.motion_granularity", self.motion_granularity, 1)

    @property
    def has_frame(self) -> bool:
        """Whether a space head is trained."""
        return self.kind in ("frame", "both")

    @property
    def has_motion(self) -> bool:
        """Whether a time head is trained."""
        return self.kind in ("motion", "both")
