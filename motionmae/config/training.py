"""Training configuration: optimiser, engine, checkpoints, logs and watchdog."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from motionmae.config.section import MAY_CHANGE_RESULT, Fraction, Section, check


class OptimConfig(Section):
    """AdamW and its learning-rate schedule (Table 6a)."""

    global_batch_size: PositiveInt = 1024
    """Videos per optimiser step, over all ranks and accumulation steps. Repeated clips of a video do not count."""
    epochs: PositiveInt = 1600
    """Passes over the training set; the schedule ends with the last one."""
    warmup_epochs: NonNegativeFloat = 40.0
    """Epochs of linear warm-up from 0."""
    base_lr: PositiveFloat = 1.5e-4
    """Learning rate for a batch of 256; the peak is base_lr * global_batch_size / 256."""
    min_lr: NonNegativeFloat = 1e-6
    """Final learning rate of the cosine schedule."""
    weight_decay: NonNegativeFloat = 0.05
    """AdamW's weight decay. It does not apply to biases, norms, position tables and mask tokens."""
    beta1: Fraction = 0.9
    """AdamW's first momentum."""
    beta2: Fraction = 0.95
    """AdamW's second momentum."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    ema_decay: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which evaluation uses; 0 disables it."""
    clip_grad: NonNegativeFloat = 0.0
    """Maximum global gradient norm; 0 disables clipping (VideoMAEv2 and mae_st use 0.02)."""

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        check(
            self.warmup_epochs < self.epochs,
            "optim.warmup_epochs",
            self.warmup_epochs,
            f"it must be less than optim.epochs={self.epochs}",
        )
        return self

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up, by the linear scaling rule (note of Table 6)."""
        return self.base_lr * self.global_batch_size / 256


BUCKET = 50_000_000
"""Elements in one message of DeepSpeed; its default of 500 million takes 2 GB of every GPU."""


class EngineConfig(Section):
    """DeepSpeed and the device."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """ZeRO stage. 0: nothing is partitioned; 1: optimiser state; 2: also gradients; 3: also parameters. A single rank
    always uses 0."""
    micro_batch_size: PositiveInt = 32
    """Videos per forward pass of one rank; global_batch_size = micro_batch_size x ranks x accumulation steps."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], MAY_CHANGE_RESULT] = "auto"
    """Autocast type over fp32 parameters. auto: bf16 where the device supports it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the accelerator that torch finds."""
    compile: bool = False
    """Compile the model with torch.compile."""
    deterministic: bool = False
    """Use deterministic kernels of torch: bitwise repeatable, and slower on GPUs."""

    def stage(self, ranks: int) -> int:
        """Return the ZeRO stage of a run. On one rank, stages 1 to 3 would only cost copies."""
        return self.zero_stage if ranks > 1 else 0


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every_steps: PositiveInt = 500
    """Steps between checkpoints."""
    keep_last: Annotated[int, Field(ge=2)] = 3
    """Number of newest checkpoints to keep."""
    keep_every: NonNegativeInt = 0
    """Checkpoints at multiples of this many steps are kept for ever; 0 disables this."""


class LogConfig(Section):
    """Metrics, loggers and reconstructions."""

    every_steps: PositiveInt = 10
    """Steps between rows of metrics.jsonl. Values are copied from the device only at these steps."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases. offline: files in the run folder, for `wandb sync`; online: sent at once."""
    wandb_project: str = "motionmae"
    """Project in Weights & Biases."""
    reconstruction_every_steps: NonNegativeInt = 0
    """Steps between pictures of reconstructions for TensorBoard, which a separate process draws from checkpoints.
    0 disables them. Pre-training only."""


class WatchdogConfig(Section):
    """Time limits after which a rank counts as hung, dumps its stacks and exits; 0 disables a limit.

    The limits far exceed normal durations, also on slow disks: a false alarm costs a restart.
    """

    startup_seconds: NonNegativeFloat = 1800.0
    """Limit from process-group setup to the first step: data is opened, a checkpoint verified and loaded."""
    step_seconds: NonNegativeFloat = 600.0
    """Limit of a step. If `step_factor` times the median of the last steps is longer, that is the limit."""
    step_factor: Annotated[float, Field(ge=1)] = 20.0
    """See `step_seconds`."""
    save_seconds: NonNegativeFloat = 3600.0
    """Limit for copying and writing a checkpoint."""
