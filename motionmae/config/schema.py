"""The schema of a run: one dataclass a component, one docstring a field, every impossible value refused.

A check names the key, the value it got and what is allowed. Checks that need only one component live in its
``__post_init__``; those that join two live in :class:`Config`. What depends on the number of ranks is checked where
the ranks are known (:func:`accumulation_steps`).
"""

from dataclasses import dataclass, field

from motionmae.errors import UserError

REMOTE_SCHEMES = ("http", "https", "s3")
"""Where shards may lie besides folders; none of these can run a program."""


def _check(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise UserError(f"{key}={value} is not possible: {allowed}")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    _check(value in allowed, key, value, f"choose one of {', '.join(allowed)}")


def _at_least(key: str, value: float, least: float) -> None:
    _check(value >= least, key, value, f"it must be at least {least}")


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
            _at_least(f"clip.{key}", getattr(self, key), 1)
        _check(
            self.frames % self.cube_frames == 0,
            "clip.frames",
            self.frames,
            f"it must be a multiple of clip.cube_frames={self.cube_frames}",
        )
        _check(
            self.size % self.cube_size == 0,
            "clip.size",
            self.size,
            f"it must be a multiple of clip.cube_size={self.cube_size}",
        )

    @property
    def slots(self) -> int:
        """Cubes along time (8 for the paper's 16 frames)."""
        return self.frames // self.cube_frames

    @property
    def side(self) -> int:
        """Cubes along height, and along width (14 at 224 pixels)."""
        return self.size // self.cube_size

    @property
    def cubes_per_slot(self) -> int:
        """Cubes of one time slot (196 at 224 pixels)."""
        return self.side**2

    @property
    def cubes(self) -> int:
        """Cubes, that is tokens, of a clip (1568 for the paper's clip)."""
        return self.slots * self.cubes_per_slot

    @property
    def cube_pixels(self) -> int:
        """Values of a flattened RGB cube (2 * 16 * 16 * 3 = 1536)."""
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
    position: str = "sinusoidal"
    """sinusoidal: VideoMAE's fixed flat table; learnable: trained tables (section 3)."""
    cube_init: str = "xavier"
    """Initial cube projection: xavier (on the flattened kernel) or pytorch (its own default, as VideoMAE)."""
    activation_checkpointing: str = "none"
    """none, full (every block recomputed in the backward pass) or every_n (each n-th block)."""
    checkpoint_every: int = 2
    """The n of activation_checkpointing=every_n."""

    def __post_init__(self) -> None:
        _one_of("model.size", self.size, ("vit_ti", "vit_s", "vit_b", "vit_l", "vit_h"))
        _one_of("model.decoder", self.decoder, ("divided", "shared"))
        _one_of("model.position", self.position, ("sinusoidal", "learnable"))
        _one_of("model.cube_init", self.cube_init, ("xavier", "pytorch"))
        _one_of("model.activation_checkpointing", self.activation_checkpointing, ("none", "full", "every_n"))
        for key in ("width", "depth", "heads", "decoder_width", "decoder_heads"):
            _at_least(f"model.{key}", getattr(self, key), 0)
        _at_least("model.decoder_depth", self.decoder_depth, 1)
        _at_least("model.checkpoint_every", self.checkpoint_every, 1)


@dataclass(frozen=True)
class MaskConfig:
    """Which cubes are hidden (paper section 3, Tables 8 and 9)."""

    kind: str = "tube"
    """random: a fixed count in every time slot; tube: the same places in every slot (the paper's space-only);
    time: whole slots; global: a fixed count drawn over all cubes of the clip at once (MAE-ST)."""
    ratio: float = 0.9
    """Share of the cubes that are hidden, strictly between 0 and 1."""

    def __post_init__(self) -> None:
        _one_of("mask.kind", self.kind, ("random", "tube", "time", "global"))
        _check(0 < self.ratio < 1, "mask.ratio", self.ratio, "it must lie strictly between 0 and 1")


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

    def __post_init__(self) -> None:
        _one_of("target.kind", self.kind, ("frame", "motion", "both"))
        _one_of("target.motion_source", self.motion_source, ("difference", "flow"))
        _one_of("target.motion_sign", self.motion_sign, ("abs", "signed"))
        _one_of("target.loss", self.loss, ("mse", "l1", "smooth_l1"))
        for key in ("frame_weight", "motion_weight"):
            _check(getattr(self, key) > 0, f"target.{key}", getattr(self, key), "it must be positive")
        for key in ("frame_eps", "motion_eps"):
            _check(getattr(self, key) > 0, f"target.{key}", getattr(self, key), "it must be positive")
        _at_least("target.motion_granularity", self.motion_granularity, 1)

    @property
    def has_frame(self) -> bool:
        """Whether a space head is trained."""
        return self.kind in ("frame", "both")

    @property
    def has_motion(self) -> bool:
        """Whether a time head is trained."""
        return self.kind in ("motion", "both")


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
    ``shards`` only manifest.json is then needed (docs/ffcv.md says when it pays)."""
    crop: str = "random_resized"
    """random_resized (section 4) or multi_scale (Table 6a's MultiScaleCrop)."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the frame's area that random_resized keeps."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Range of the aspect ratio of random_resized."""
    flip: bool = True
    """Mirror half of the clips left to right (not on SSv2: its classes name sides)."""
    repeats: int = 1
    """Clips drawn from each video that is read (repeated sampling)."""
    threads: int = 2
    """Decoding threads of a rank."""
    prefetch: int = 4
    """Micro-batches held ready per rank."""
    window_shards: int = 64
    """Shards whose samples are mixed with each other."""
    corrupt_budget: int = 100
    """Samples of a run that may be unreadable (each replaced, counted and logged) before it stops."""

    def __post_init__(self) -> None:
        _one_of("data.crop", self.crop, ("random_resized", "multi_scale"))
        for key, low, high in (("crop_scale", *self.crop_scale), ("crop_ratio", *self.crop_ratio)):
            _check(0 < low <= high, f"data.{key}", (low, high), "it takes two positive numbers, the smaller first")
        _check(self.crop_scale[1] <= 1, "data.crop_scale", self.crop_scale, "a crop keeps at most the whole, 1.0")
        for key in ("repeats", "threads", "prefetch", "window_shards"):
            _at_least(f"data.{key}", getattr(self, key), 1)
        _at_least("data.corrupt_budget", self.corrupt_budget, 0)
        _at_least("data.remote_retries", self.remote_retries, 0)
        for key in ("cache_gb", "remote_timeout"):
            _check(getattr(self, key) > 0, f"data.{key}", getattr(self, key), "it must be positive")
        scheme, is_url, _ = self.shards.partition("://")
        allowed = f"give a folder, or a URL of {', '.join(REMOTE_SCHEMES)}"
        _check(not is_url or scheme in REMOTE_SCHEMES, "data.shards", self.shards, allowed)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule (Table 6a)."""

    batch: int = 1024
    """Videos of a step over all ranks and accumulation steps; repeated clips of a video do not count."""
    epochs: int = 1600
    """Passes over the training set; the schedule ends with the last."""
    warmup_epochs: float = 40
    """Epochs of linear warm-up from 0."""
    base_lr: float = 1.5e-4
    """Learning rate for 256 videos a step; the peak is base_lr * batch / 256."""
    min_lr: float = 1e-6
    """Where the cosine ends."""
    weight_decay: float = 0.05
    """AdamW's decay; never applied to biases, norms, position tables and mask tokens."""
    beta1: float = 0.9
    """AdamW's first momentum."""
    beta2: float = 0.95
    """AdamW's second momentum."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    clip_grad: float = 0.0
    """Largest global gradient norm; 0 switches clipping off (VideoMAEv2 and mae_st: 0.02)."""

    def __post_init__(self) -> None:
        for key in ("batch", "epochs"):
            _at_least(f"optim.{key}", getattr(self, key), 1)
        for key in ("warmup_epochs", "min_lr", "weight_decay", "clip_grad"):
            _at_least(f"optim.{key}", getattr(self, key), 0)
        for key in ("base_lr", "eps"):
            _check(getattr(self, key) > 0, f"optim.{key}", getattr(self, key), "it must be positive")
        for key in ("beta1", "beta2"):
            _check(0 <= getattr(self, key) < 1, f"optim.{key}", getattr(self, key), "it must lie in [0, 1)")
        _check(
            self.warmup_epochs < self.epochs,
            "optim.warmup_epochs",
            self.warmup_epochs,
            f"it must be less than optim.epochs={self.epochs}",
        )

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up, by the linear scaling rule of Table 6's note."""
        return self.base_lr * self.batch / 256


@dataclass(frozen=True)
class EngineConfig:
    """DeepSpeed and the device."""

    zero: int = 1
    """ZeRO stage: 0 nothing is partitioned, 1 optimiser state, 2 and gradients, 3 and parameters."""
    micro_batch: int = 32
    """Videos of one forward pass of one rank; batch = micro_batch x ranks x accumulation steps."""
    precision: str = "auto"
    """fp32, bf16 or fp16 (autocast over fp32 parameters); auto: bf16 where the device has it, else fp32."""
    device: str = "auto"
    """cpu, cuda, or auto: the accelerator that torch finds."""
    compile: bool = False
    """torch.compile the model."""
    deterministic: bool = False
    """Ask torch for deterministic kernels (on a GPU: slower, bitwise repeatable)."""

    def __post_init__(self) -> None:
        _check(self.zero in (0, 1, 2, 3), "engine.zero", self.zero, "choose a ZeRO stage of 0, 1, 2, 3")
        _at_least("engine.micro_batch", self.micro_batch, 1)
        _one_of("engine.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        _one_of("engine.device", self.device, ("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = 500
    """Steps between checkpoints."""
    keep_last: int = 3
    """Newest checkpoints that stay; never fewer than two."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps stay for ever; 0 keeps none but the newest."""

    def __post_init__(self) -> None:
        _at_least("checkpoint.every_steps", self.every_steps, 1)
        _at_least("checkpoint.keep_last", self.keep_last, 2)
        _at_least("checkpoint.keep_every", self.keep_every, 0)


@dataclass(frozen=True)
class LogConfig:
    """What a run writes about itself."""

    every_steps: int = 10
    """Steps between rows of metrics.jsonl; device values are read only then."""
    tensorboard: bool = True
    """Write TensorBoard event files beside the JSONL."""

    def __post_init__(self) -> None:
        _at_least("log.every_steps", self.every_steps, 1)


@dataclass(frozen=True)
class LaunchConfig:
    """What Slurm is asked for; `slurm/submit.py` has a flag for each."""

    nodes: int = 1
    """Nodes of the job."""
    ranks_per_node: int = 8
    """Training processes a node, one a GPU."""
    gpus_per_node: int = 8
    """GPUs asked for a node; 0 on a machine without."""
    cpus_per_rank: int = 12
    """CPU cores a rank, for decoding threads."""
    timeout_minutes: int = 1440
    """Time limit of one incarnation of the job; a longer run requeues itself."""
    signal_seconds: int = 120
    """How long before the limit Slurm signals: a step, a save and a margin must fit."""
    max_timeouts: int = 1000
    """Time-outs after which a run stops requeueing itself."""
    partition: str = ""
    """Slurm partition (empty: the site's default)."""
    account: str = ""
    """Slurm account to charge."""
    qos: str = ""
    """Slurm quality of service."""
    constraint: str = ""
    """Node features asked for, e.g. a100."""
    exclude: str = ""
    """Nodes never to be used, as a Slurm host list."""
    comment: str = ""
    """Free text that squeue shows."""

    def __post_init__(self) -> None:
        for key in ("nodes", "ranks_per_node", "cpus_per_rank", "timeout_minutes", "max_timeouts"):
            _at_least(f"launch.{key}", getattr(self, key), 1)
        _at_least("launch.gpus_per_node", self.gpus_per_node, 0)
        _at_least("launch.signal_seconds", self.signal_seconds, 1)


@dataclass(frozen=True)
class Config:
    """A whole run. Its YAML has the same shape; ``base: other`` takes over another file's values first."""

    name: str = ""
    """Name of the run and of its folder below `runs`; by default the config's name."""
    runs: str = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Seed of initial weights, order, crops and masks: everything random follows from it."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        _check(
            self.name == "" or (all(c.isalnum() or c in "-_." for c in self.name) and self.name[0] not in "-."),
            "name",
            self.name,
            "use letters, digits, '-', '_' and '.', and start with none of '-' and '.'",
        )
        _check(
            self.target.motion_granularity < self.clip.frames,
            "target.motion_granularity",
            self.target.motion_granularity,
            f"it must be less than clip.frames={self.clip.frames}",
        )
        places = {"time": self.clip.slots, "global": self.clip.cubes}.get(self.mask.kind, self.clip.cubes_per_slot)
        masked = int(self.mask.ratio * places)
        _check(
            0 < masked < places,
            "mask.ratio",
            self.mask.ratio,
            f"it hides {masked} of the {places} places of mask.kind={self.mask.kind}; "
            "at least one must be hidden and one seen",
        )
        _check(
            self.optim.batch % self.engine.micro_batch == 0,
            "engine.micro_batch",
            self.engine.micro_batch,
            f"it must divide optim.batch={self.optim.batch}",
        )


def accumulation_steps(config: Config, world: int) -> int:
    """Forward passes of a rank in one step, so that ``batch`` stays the same for every number of ranks.

    Raises:
        UserError: if ``batch`` is not a multiple of ``micro_batch * world``.
    """
    batch, micro = config.optim.batch, config.engine.micro_batch
    if batch % (micro * world):
        fitting = [m for m in range(1, micro + 1) if batch % (m * world) == 0]
        remedy = f"set engine.micro_batch={fitting[-1]}" if fitting else f"set optim.batch to a multiple of {world}"
        raise UserError(f"optim.batch={batch} is not divisible by engine.micro_batch={micro} x {world} ranks: {remedy}")
    return batch // (micro * world)
