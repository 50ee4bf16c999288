"""Method configuration: clip, model, mask and target of the paper."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from motionmae.config.section import MAY_CHANGE, Section, refusal


class ClipConfig(Section):
    """Input clip of ``frames`` x ``size`` x ``size`` pixels, cut into space-time cubes.

    A cube (the tubelet of VideoMAE and Hugging Face) becomes one token.
    """

    frames: PositiveInt = 16
    """Frames of a clip (section 4: 16; one row of SSv2: 32)."""
    size: PositiveInt = 224
    """Height and width of a clip, in pixels."""
    stride: PositiveInt = 4
    """Distance of neighbouring clip frames in the video, in frames (section 4: SSv2 2, K400 4, UCF101 4)."""
    cube_frames: PositiveInt = 2
    """Frames of a cube."""
    cube_size: PositiveInt = 16
    """Height and width of a cube, in pixels."""

    def check(self) -> None:
        for key, unit in (("frames", "cube_frames"), ("size", "cube_size")):
            value, divisor = getattr(self, key), getattr(self, unit)
            if value % divisor:
                raise refusal(f"clip.{key}", value, f"it must be a multiple of clip.{unit}={divisor}")

    @property
    def temporal_patches(self) -> int:
        """Cubes along time (8 for the paper's 16 frames)."""
        return self.frames // self.cube_frames

    @property
    def grid_size(self) -> int:
        """Cubes along height, and along width (14 at 224 pixels)."""
        return self.size // self.cube_size

    @property
    def spatial_patches(self) -> int:
        """Cubes at one time (196 at 224 pixels)."""
        return self.grid_size**2

    @property
    def cubes(self) -> int:
        """Cubes of a clip, which are its tokens (1568 for the paper's clip)."""
        return self.temporal_patches * self.spatial_patches

    @property
    def cube_pixels(self) -> int:
        """Values of a flattened RGB cube (2 * 16 * 16 * 3 = 1536)."""
        return self.cube_frames * self.cube_size**2 * 3


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of an encoder; width and heads of its decoders."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int


SIZES = {
    "vit_ti": Size(192, 12, 3, 96, 3),
    "vit_s": Size(384, 12, 6, 192, 3),
    "vit_b": Size(768, 12, 12, 384, 6),
    "vit_l": Size(1024, 24, 16, 512, 8),
    "vit_h": Size(1280, 32, 16, 512, 8),
}
"""Encoders by timm's names. Decoders are 384 wide for B and 512 for L as in the paper, half as wide as the encoder for
smaller sizes, and 512 wide for H (VideoMAE: 640)."""


class ModelConfig(Section):
    """Encoder and decoders (sections 3 and 4)."""

    size: Literal["vit_ti", "vit_s", "vit_b", "vit_l", "vit_h"] = "vit_b"
    """Preset of the encoder's width, depth and heads, and of the decoders' width and heads."""
    width: NonNegativeInt = 0
    """Overrides the preset's embedding width; 0 keeps it."""
    depth: NonNegativeInt = 0
    """Overrides the preset's number of blocks; 0 keeps it."""
    heads: NonNegativeInt = 0
    """Overrides the preset's number of attention heads; 0 keeps it."""
    decoder: Literal["divided", "shared"] = "divided"
    """divided: two independent decoders (default of Table 10). shared: one trunk with two output layers."""
    decoder_width: NonNegativeInt = 0
    """Overrides the preset's width of each decoder (paper: 384 for B, 512 for L); 0 keeps it."""
    decoder_depth: PositiveInt = 4
    """Blocks of each decoder (Table 5e)."""
    decoder_heads: NonNegativeInt = 0
    """Overrides the preset's number of heads of each decoder; 0 keeps it."""
    decoder_init: Literal["xavier", "local"] = "xavier"
    """Initial weights of the decoders. xavier: random (VideoMAE). local: masked cubes attend to visible cubes nearby,
    and predictions are near zero (docs/measurements/notes/time_head.md). It needs pos_embed=separate."""
    pos_embed: Literal["sinusoidal", "separate", "learnable"] = "sinusoidal"
    """sinusoidal: fixed, over flattened positions (VideoMAE). separate: fixed, with channels for time, row and column
    (V-JEPA); small models learn much sooner with it (docs/measurements/results.md). learnable: trained (section 3)."""
    patch_embed_init: Literal["xavier", "pytorch", "whitened"] = "xavier"
    """Initial projection of cubes. xavier: on the flattened kernel. pytorch: torch's default, as in VideoMAE. whitened:
    random weights that amplify motion and detail against brightness (docs/measurements/notes/time_head.md)."""
    activation_checkpointing: Annotated[Literal["none", "full", "every_n"], MAY_CHANGE] = "none"
    """Blocks that the backward pass recomputes. full: every block. every_n: every ``checkpoint_every``-th block."""
    checkpoint_every: Annotated[PositiveInt, MAY_CHANGE] = 2
    """Distance of recomputed blocks, for activation_checkpointing=every_n."""

    def check(self) -> None:
        size = self.dimensions
        decoder = ("decoder_heads", size.decoder_width, size.decoder_heads)
        for key, width, heads in (("heads", size.width, size.heads), decoder):
            if width % heads:
                fitting = next(n for n in range(1, width + 1) if width % n == 0 and width // n <= 64)
                allowed = f"the width {width} must be a multiple of it; set model.{key}={fitting}"
                raise refusal(f"model.{key}", heads, allowed)
        if self.decoder_init == "local":
            channels = size.decoder_width // size.decoder_heads
            if self.pos_embed != "separate":
                allowed = "the position table must separate row and column; set model.pos_embed=separate"
                raise refusal("model.decoder_init", "local", allowed)
            if channels < 8:
                allowed = f"a head has {channels} channels and needs at least 8; set fewer model.decoder_heads"
                raise refusal("model.decoder_init", "local", allowed)

    @property
    def recompute_every(self) -> int:
        """Number n such that the backward pass recomputes every n-th block; 0 if it recomputes no block."""
        return {"none": 0, "full": 1, "every_n": self.checkpoint_every}[self.activation_checkpointing]

    @property
    def dimensions(self) -> Size:
        """Sizes of the preset, with the overrides."""
        overrides = {key: getattr(self, key) for key in Size.__annotations__}
        return replace(SIZES[self.size], **{key: value for key, value in overrides.items() if value})


def _running_cells(ratio: float) -> float:
    if ratio not in (0, 0.25, 0.5, 0.75):
        raise ValueError("of 2 x 2 cubes, decoders skip 0, 1, 2 or 3; choose 0, 0.25, 0.5 or 0.75")
    return ratio


def masked_count(kind: str, ratio: float, positions: int) -> int:
    """Return how many of the positions that a mask of ``kind`` draws from are masked.

    MAE-ST rounds the visible cubes down, VideoMAE and the paper the masked ones.
    """
    return positions - int(positions * (1 - ratio)) if kind == "global" else int(ratio * positions)


class MaskConfig(Section):
    """Masking (section 3, Tables 8 and 9)."""

    kind: Literal["random", "tube", "time", "global"] = "tube"
    """random: a fixed number of cubes at every time. tube: the same positions at every time (the paper's space-only).
    time: all cubes at some times. global: a fixed number of all cubes of the clip (MAE-ST)."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the cubes that are masked."""
    decoder_ratio: Annotated[float, AfterValidator(_running_cells)] = 0.0
    """Share of the cubes that decoders skip in training by the running cells of VideoMAEv2: 0, 0.25, 0.5 or 0.75. It
    saves time and departs from the paper (docs/measurements/performance.md). Pictures reconstruct all masked cubes."""


class TargetConfig(Section):
    """Reconstruction targets and loss (section 3, Tables 5a-c, 5f and 7)."""

    kind: Literal["frame", "motion", "both"] = "both"
    """frame (VideoMAE's target), motion, or both (MotionMAE)."""
    frame_weight: PositiveFloat = 1.0
    """Weight of the loss of the frame head (the paper's space head, Table 5b)."""
    motion_weight: PositiveFloat = 1.0
    """Weight of the loss of the motion head (the paper's time head, Table 5b)."""
    motion_source: Literal["difference", "flow"] = "difference"
    """difference: of nearby frames. flow: optical flow stored in the shards (Table 7)."""
    motion_sign: Literal["abs", "signed"] = "abs"
    """abs: absolute difference ("L1 difference", section 3). signed: previous minus current frame."""
    motion_granularity: PositiveInt = 1
    """Distance of the two frames of a difference, in clip frames (Table 5c: 1, 2, 3)."""
    loss: Literal["mse", "l1", "smooth_l1"] = "mse"
    """Loss of a cube (Table 5f)."""
    normalize: bool = True
    """Normalise each target cube per channel to zero mean and unit variance (Table 6a, "patch norm")."""
    motion_norm: Literal["cube", "clip"] = "cube"
    """Pixels whose mean and deviation normalise motion where ``normalize`` is on. cube: those of each cube, as for
    frames. clip: those of all masked cubes of the clip; the target then tells where in the clip how much moves."""
    frame_eps: PositiveFloat = 1e-6
    """Added to the standard deviation of a frame cube (VideoMAE's value)."""
    motion_eps: PositiveFloat = 6e-3
    """Added to the standard deviation of a motion cube, so that the noise of a static cube does not become a target."""
    frame_std: PositiveFloat = 1.0
    """Divisor of frames if ``normalize`` is off. A head learns a target of unit variance in fewer steps; pixels in
    [0, 1] have a standard deviation of 0.2, and their differences 0.07."""
    motion_std: PositiveFloat = 1.0
    """Divisor of motion if ``normalize`` is off."""

    def check(self) -> None:
        if self.motion_source == "flow":
            for key, default in (("motion_sign", "abs"), ("motion_granularity", 1)):
                if (value := getattr(self, key)) != default:
                    allowed = f"it does not apply to stored flow (target.motion_source=flow); set it to {default}"
                    raise refusal(f"target.{key}", value, allowed)

    @property
    def has_frame(self) -> bool:
        return self.kind in ("frame", "both")

    @property
    def has_motion(self) -> bool:
        return self.kind in ("motion", "both")

    @property
    def needs_flow(self) -> bool:
        """Whether a time head is trained on optical flow."""
        return self.has_motion and self.motion_source == "flow"
