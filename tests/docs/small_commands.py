"""The commands of README.md and docs/ in small, so that each takes seconds and needs neither a GPU nor Slurm.

A test runs what a page prints, with smaller numbers at the end of a line, and small configs in place of large ones.
"""

import re

_ONE_EPOCH = "optim.epochs=1 optim.warmup_epochs=0.5"
_TINY_CLIPS = "clip.frames=4 clip.stride=1 clip.size=24 model.depth=1 model.decoder_depth=1"
_SMALL_BATCH = "optim.global_batch_size=4 engine.micro_batch_size=4"
_EVIDENCE = "--arm frame motion both --seed 0 --use finetune10 --train 40 --val 20"
FURTHER = {
    "motionmae shards toy": "--train 42 --val 14",
    "motionmae pretrain": _ONE_EPOCH,
    "motionmae finetune": _ONE_EPOCH,
    # toy has 42 videos
    "motionmae submit": "--dry-run name=submitted optim.global_batch_size=32 engine.micro_batch_size=1",
    "python -m benchmarks.experiments.evidence": f"{_EVIDENCE} -- {_ONE_EPOCH} {_TINY_CLIPS} {_SMALL_BATCH}",
    "python -m benchmarks.experiments.scaling --check": (
        "--processes 2 model.size=vit_s model.depth=1 clip.frames=4 clip.size=32 engine.precision=fp32 "
        "engine.micro_batch_size=1"
    ),
    "python -m benchmarks.memory_copies": "--steps 1 --rounds 1",
    "python -m benchmarks.restart": "--rounds 1",
    "python -m benchmarks.step": "--batch 1 --rounds 1 clip.size=32 clip.frames=4 engine.device=cpu",
}
"""What a test appends to a command that begins so."""
SMALL = {
    "vitb_k400": ("tiny_toy", "model.pos_embed=sinusoidal"),  # which `export --format hf` needs
    "finetune_vitb_k400": ("finetune_tiny_videomae", "finetune.init=runs/vitb_k400"),
    "evidence/pretrain": ("evidence/pretrain", f"{_TINY_CLIPS} {_SMALL_BATCH}"),
    "evidence/finetune10": ("evidence/finetune10", f"{_TINY_CLIPS} {_SMALL_BATCH}"),
}
"""Small configs in place of those that take hours or need a GPU. Their runs keep the names."""
LEFT_OUT = (
    " --follow",  # a dry run submits nothing
    " --official DIR",  # another project's code
)


def small(line: str) -> str:
    """Return a command of a page in small."""
    line = re.sub(r"^(torchrun --nproc-per-node) \d+", r"\1 2", line)
    command = next((command for command in FURTHER if line.startswith(command)), None)
    if command is None:
        return line
    line = re.sub(r"\s+#.*", "", line)
    for words in LEFT_OUT:
        line = line.replace(words, "")
    keeps_name = command in ("motionmae pretrain", "motionmae finetune")
    for name, (config, changes) in SMALL.items():
        named = "" if config == name else f" name={name}"
        line = re.sub(rf"--config {name}\b", f"--config {config}" + (f" {changes}{named}" if keeps_name else ""), line)
    return f"{line} {FURTHER[command]}"
