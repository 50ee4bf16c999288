"""Training configuration: optimiser, engine, checkpoints, logs and watchdog."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from motionmae.config.section import MAY_CHANGE_RESULT, Fraction, Section, refusal


class OptimConfig(Section):
    """Optimiser and its learning-rate schedule (Table 6a)."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw: AdamW (Table 6a). muon: Muon for the weight matrices of blocks, scaled to AdamW's learning rate, and AdamW
    for all other parameters. Muon is not in the paper; it gathers the updates over the ranks in every step."""
    global_batch_size: PositiveInt = 1024
    """Videos per optimiser step, over all ranks and accumulation steps, however many clips are sampled of a video."""
    epochs: PositiveInt = 1600
    """Passes over the training set; the schedule ends with the last pass."""
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
    muon_momentum: Fraction = 0.95
    """Muon's momentum, for name=muon."""
    ema_decay: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which evaluation uses; 0 disables it."""
    clip_grad: NonNegativeFloat = 0.0
    """Maximum global gradient norm; 0 disables clipping (VideoMAEv2 and mae_st use 0.02)."""

    def check(self) -> None:
        if self.warmup_epochs >= self.epochs:
            allowed = f"it must be less than optim.epochs={self.epochs}"
            raise refusal("optim.warmup_epochs", self.warmup_epochs, allowed)

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up, by the linear scaling rule (note of Table 6)."""
        return self.base_lr * self.global_batch_size / 256


BUCKET = 50_000_000
"""Elements in one message of DeepSpeed; its default of 500 million takes 2 GB of every GPU."""


class EngineConfig(Section):
    """DeepSpeed and the device."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """ZeRO stage: 1 partitions optimiser state, 2 also gradients, 3 also parameters. A single rank always uses 0."""
    micro_batch_size: PositiveInt = 32
    """Videos per forward pass of one rank; global_batch_size = micro_batch_size x ranks x accumulation steps."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], MAY_CHANGE_RESULT] = "auto"
    """Autocast type over fp32 parameters. auto: bf16 where the device supports it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the accelerator that torch finds."""
    overlap_comm: bool = True
    """Reduce gradients during the backward pass, at ZeRO 1 to 3, with a second message buffer per number format."""
    reduce_dtype: Annotated[Literal["fp32", "bf16"], MAY_CHANGE_RESULT] = "fp32"
    """Number format in which gradients are summed over the ranks, and in which ZeRO 3 gathers parameters. bf16 halves
    the messages and rounds every sum; under bf16 autocast, ZeRO 1 to 3 then use it for linear layers only."""
    compile: bool = False
    """Compile the model with torch.compile."""
    deterministic: bool = False
    """Use only deterministic kernels of torch: the same ranks give the same bits, and GPUs are slower. Operators
    without such a kernel raise an error (docs/operate/survival.md)."""

    def check(self) -> None:
        if self.reduce_dtype == "bf16" and self.precision == "fp16":
            raise refusal("engine.reduce_dtype", self.reduce_dtype, "with engine.precision=fp16, choose fp32")

    def stage(self, ranks: int) -> int:
        """Return the ZeRO stage of a run. On one rank, stages 1 to 3 would only cost copies."""
        return self.zero_stage if ranks > 1 else 0

    @property
    def environment(self) -> dict[str, str]:
        """Variables that CUDA's libraries must find in the environment of a rank before its first operation."""
        return {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if self.deterministic else {}


class CheckpointConfig(Section):
    """Frequency and retention of checkpoints."""

    every_steps: PositiveInt | Literal["auto"] = 500
    """Steps between checkpoints. auto: the interval that wastes the least time, from the measured times of a save and a
    step and from the rate of failures; at first 100 steps, then between a minute and an hour
    (docs/operate/checkpoints.md)."""
    memory_every_steps: NonNegativeInt = 100
    """Steps between copies of the state in the memory of its own and of one other node, from which a resume loses fewer
    steps; 0 disables them, and so does an interval that is not below `every_steps` (docs/operate/checkpoints.md)."""
    keep_last: Annotated[int, Field(ge=2)] = 3
    """Number of newest checkpoints to keep."""
    keep_every: NonNegativeInt = 0
    """Checkpoints at multiples of this many steps are never deleted; 0 disables this."""

    @property
    def memory_steps(self) -> int:
        """Steps between memory copies; 0 if checkpoints are as frequent."""
        every = self.every_steps
        return self.memory_every_steps if every == "auto" or self.memory_every_steps < every else 0


class LogConfig(Section):
    """Metrics, loggers and reconstructions."""

    every_steps: PositiveInt = 10
    """Steps between rows of metrics.jsonl. Only these steps copy values from the device."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases. offline: files in the run folder, for `wandb sync`; online: sent at once."""
    wandb_project: str = "motionmae"
    """Project in Weights & Biases."""
    mlflow: bool = False
    """MLflow, on the server of the variable MLFLOW_TRACKING_URI, or without one in the file OUTPUT_DIR/mlflow.db."""
    mlflow_experiment: str = "motionmae"
    """Experiment in MLflow."""
    trackio: bool = False
    """Trackio, on this machine, or on the server of the variable TRACKIO_SERVER_URL."""
    trackio_project: str = "motionmae"
    """Project in Trackio."""
    stalled_head_clips: NonNegativeInt = 20_000
    """Clips after which a run warns if a head explains less than 1 % of its target, but not before the end of the
    warm-up. 0 disables the check. Pre-training only."""
    reconstruction_every_steps: NonNegativeInt = 0
    """Steps between pictures of reconstructions in TensorBoard, for pre-training; 0 disables them."""


class WatchdogConfig(Section):
    """Time limits after which a hung rank dumps its stacks and exits; 0 disables a limit.

    A false alarm costs a restart, so the limits far exceed normal durations, also on slow disks.
    """

    startup_seconds: NonNegativeFloat = 1800.0
    """Limit from process-group setup to the first step, with loading of a checkpoint."""
    step_seconds: NonNegativeFloat = 600.0
    """Minimum limit of a step, limit for copying the state of a checkpoint to host memory, and limit for a rank
    without a sign of life on Slurm. The first step of a compiled model, in which all ranks compile, has the limit
    `startup_seconds` if that is longer."""
    step_factor: Annotated[float, Field(ge=1)] = 20.0
    """Limit of a step as a multiple of the median of the last steps, if that is longer than `step_seconds`."""
    save_seconds: NonNegativeFloat = 3600.0
    """Limit for writing a checkpoint."""
