"""How it is trained: optimiser, engine, checkpoints, log."""

from dataclasses import dataclass

from motionmae.config.checks import at_least, check, one_of


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule (Table 6a)."""

    global_batch_size: int = 1024
    """Videos of a step over all ranks and accumulation steps; repeated clips of a video do not count."""
    epochs: int = 1600
    """Passes over the training set; the schedule ends with the last."""
    warmup_epochs: float = 40
    """Epochs of linear warm-up from 0."""
    base_lr: float = 1.5e-4
    """Learning rate for 256 videos a step; the peak is base_lr * global_batch_size / 256."""
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
    ema_decay: float = 0.0
    """Decay of an average of the weights, kept beside them and used by evaluation; 0 keeps none."""
    clip_grad: float = 0.0
    """Largest global gradient norm; 0 switches clipping off (VideoMAEv2 and mae_st: 0.02)."""

    def __post_init__(self) -> None:
        for key in ("global_batch_size", "epochs"):
            at_least(f"optim.{key}", getattr(self, key), 1)
        for key in ("warmup_epochs", "min_lr", "weight_decay", "clip_grad"):
            at_least(f"optim.{key}", getattr(self, key), 0)
        for key in ("base_lr", "eps"):
            check(getattr(self, key) > 0, f"optim.{key}", getattr(self, key), "it must be positive")
        for key in ("beta1", "beta2", "ema_decay"):
            check(0 <= getattr(self, key) < 1, f"optim.{key}", getattr(self, key), "it must lie in [0, 1)")
        check(
            self.warmup_epochs < self.epochs,
            "optim.warmup_epochs",
            self.warmup_epochs,
            f"it must be less than optim.epochs={self.epochs}",
        )

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up, by the linear scaling rule of Table 6's note."""
        return self.base_lr * self.global_batch_size / 256


@dataclass(frozen=True)
class EngineConfig:
    """DeepSpeed and the device."""

    zero_stage: int = 1
    """ZeRO stage: 0 nothing is partitioned, 1 optimiser state, 2 and gradients, 3 and parameters; of one rank: 0."""
    micro_batch_size: int = 32
    """Videos of one forward pass of one rank; batch = micro_batch_size x ranks x accumulation steps."""
    precision: str = "auto"
    """fp32, bf16 or fp16 (autocast over fp32 parameters); auto: bf16 where the device has it, else fp32."""
    device: str = "auto"
    """cpu, cuda, or auto: the accelerator that torch finds."""
    compile: bool = False
    """torch.compile the model."""
    deterministic: bool = False
    """Ask torch for deterministic kernels (on a GPU: slower, bitwise repeatable)."""

    def __post_init__(self) -> None:
        check(
            self.zero_stage in (0, 1, 2, 3), "engine.zero_stage", self.zero_stage, "choose a ZeRO stage of 0, 1, 2, 3"
        )
        at_least("engine.micro_batch_size", self.micro_batch_size, 1)
        one_of("engine.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        one_of("engine.device", self.device, ("auto", "cpu", "cuda"))


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
        at_least("checkpoint.every_steps", self.every_steps, 1)
        at_least("checkpoint.keep_last", self.keep_last, 2)
        at_least("checkpoint.keep_every", self.keep_every, 0)


@dataclass(frozen=True)
class LogConfig:
    """What a run writes about itself."""

    every_steps: int = 10
    """Steps between rows of metrics.jsonl; device values are read only then."""
    tensorboard: bool = True
    """Write TensorBoard event files beside the JSONL."""
    wandb: str = "off"
    """Weights & Biases: off, offline (files below the run folder, for `wandb sync`), or online (sent at once)."""
    wandb_project: str = "motionmae"
    """Its project."""
    reconstruction_every_steps: int = 0
    """Steps between pictures of what the heads rebuild, drawn from checkpoints by a process beside training and shown
    in TensorBoard; 0 draws none. Pre-training only."""

    def __post_init__(self) -> None:
        at_least("log.every_steps", self.every_steps, 1)
        at_least("log.reconstruction_every_steps", self.reconstruction_every_steps, 0)
        one_of("log.wandb", self.wandb, ("off", "offline", "online"))


@dataclass(frozen=True)
class WatchdogConfig:
    """How long things may take before a rank counts as hung, writes its stacks down and ends; 0 for any time.

    Far beyond what work takes, also on a slow disk: a hang costs this long, a false alarm costs a restart.
    """

    startup_seconds: float = 1800
    """From joining the run to the first step: opening the data, verifying and loading the checkpoint."""
    step_seconds: float = 600
    """A step takes at most this, or `step_factor` times the median of the last steps if that is more."""
    step_factor: float = 20
    """See `step_seconds`."""
    save_seconds: float = 3600
    """Copying and writing a checkpoint."""

    def __post_init__(self) -> None:
        for key in ("startup_seconds", "step_seconds", "save_seconds"):
            at_least(f"watchdog.{key}", getattr(self, key), 0)
        at_least("watchdog.step_factor", self.step_factor, 1)
