"""Fine-tuning (Table 6b): a classifier on a pre-trained encoder, or a probe on a frozen one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as functional
from safetensors.torch import save
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from motionmae.checkpointing.load_weights import fingerprint, load_encoder, resolve_checkpoint
from motionmae.config import Config
from motionmae.data.loader import Batch
from motionmae.data.shards.manifest import Manifest
from motionmae.distributed.context import DistributedContext, run_on_rank_zero
from motionmae.engine.deepspeed_engine import Engine
from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.models.classifier import build_classifier
from motionmae.runs.directory import RunFolder
from motionmae.training.task import Groups


class ClipMixup(Mixup):
    """timm's Mixup for clips (B, T, H, W, 3): CutMix replaces the same box of height and width in every frame."""

    def _mix_batch(self, x: Tensor) -> float:
        height, width = x.shape[2:4]
        lam, use_cutmix = self._params_per_batch()
        if lam == 1.0:
            return lam
        if not use_cutmix:
            partner = x.flip(0).mul_(1.0 - lam)
            x.mul_(lam).add_(partner)
            return lam
        (top, bottom, left, right), lam = cutmix_bbox_and_lam((height, width), lam, correct_lam=self.correct_lam)
        x[:, :, top:bottom, left:right] = x.flip(0)[:, :, top:bottom, left:right]
        return lam


class Finetuning:
    """Fine-tuning :class:`~motionmae.training.task.Task` (Table 6b)."""

    losses: tuple[str, ...] = ("loss",)
    needs_flow = False
    needs_labels = True

    def __init__(self, config: Config) -> None:
        self._config, self._init = config, config.finetune.init
        self._state: dict[str, Any] = {}
        self._mixup: ClipMixup | None = None
        self._soft = SoftTargetCrossEntropy()

    def choose_weights(self, rank: DistributedContext, saved: Mapping[str, Any] | None) -> None:
        """Resolve ``finetune.init`` on rank 0 only: a pre-training in progress may save between the reads of two ranks.

        A probe needs no choice: its ranks read the encoder that rank 0 saves in the run folder.
        """
        finetune = self._config.finetune
        if saved is None and not finetune.frozen and finetune.init != "scratch":
            self._init = str(run_on_rank_zero(rank, lambda: resolve_checkpoint(finetune.init)))

    def build_model(self, manifest: Manifest, saved: Mapping[str, Any] | None) -> nn.Module:
        """Build the classifier. Rank 0 saves a frozen encoder, which checkpoints do not hold, in the run folder."""
        config, finetune = self._config, self._config.finetune
        classes = len(manifest.class_names)
        if classes < 2:
            raise UserError(
                f"{config.data.location} has {classes} classes, but a classifier needs two: use labelled shards"
            )
        if finetune.mixes:
            self._mixup = ClipMixup(
                mixup_alpha=finetune.mixup,
                cutmix_alpha=finetune.cutmix,
                switch_prob=finetune.mixup_switch_prob,
                label_smoothing=finetune.label_smoothing,
                num_classes=classes,
            )
        model = build_classifier(config, classes)
        self._state = {"class_names": list(manifest.class_names)}
        if finetune.frozen:
            folder = RunFolder(config.run_folder)
            self._state["frozen"] = load_frozen(model.encoder, folder, finetune.init, saved)
            if not folder.encoder.is_file():
                save_frozen(model.encoder, folder)
        elif saved is None and finetune.init != "scratch":
            load_encoder(model.encoder, self._init)
        return model

    def parameter_groups(self, model: nn.Module) -> Groups:
        return param_groups_layer_decay(
            model,
            self._config.optim.weight_decay,
            no_weight_decay_list={"encoder.pos_embed.table"},
            layer_decay=self._config.finetune.layer_decay,
        )

    def forward(self, engine: Engine, batch: Batch) -> Sequence[Tensor]:
        if self._mixup is None:
            smoothing = self._config.finetune.label_smoothing
            logits = engine(batch.clips)
            return (functional.cross_entropy(logits.float(), batch.labels, label_smoothing=smoothing),)
        clips, targets = self._mixup(batch.clips.float(), batch.labels)
        return (self._soft(engine(clips).float(), targets),)

    def state(self) -> dict[str, Any]:
        """Return the class names in the order of the logits, and the fingerprint of a frozen encoder."""
        return self._state


def load_frozen(encoder: nn.Module, folder: RunFolder, init: str, saved: Mapping[str, Any] | None) -> str:
    """Load the encoder of a probe, and return its fingerprint; the probe's checkpoints hold only the head.

    The run folder's copy is loaded if there is one: the run at ``init`` may continue and delete its checkpoints. If the
    head in the checkpoint was trained on a different encoder, a UserError is raised.
    """
    source = str(folder.encoder) if folder.encoder.is_file() else init
    load_encoder(encoder, source)
    loaded = fingerprint(encoder)
    if saved is not None and saved.get("frozen") != loaded:
        raise UserError(
            f"{source} holds a different encoder from the one that the head in {folder.path} was trained on: "
            f"restore the run's {folder.encoder.name}, or train a new probe with name=..."
        )
    return loaded


def save_frozen(encoder: nn.Module, folder: RunFolder) -> None:
    """Save the encoder of a probe in its run folder, with a classifier's tensor names, or raise a UserError."""
    state = {f"encoder.{name}": value.contiguous() for name, value in encoder.state_dict().items()}
    try:
        write_atomically(folder.encoder, save(state, {"format": "pt"}))
    except OSError as error:
        raise UserError(
            f"{folder.encoder} cannot be written ({error.strerror}): make room, or set output_dir=FOLDER"
        ) from error
