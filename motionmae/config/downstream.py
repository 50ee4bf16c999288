"""What a pre-trained encoder is put to: fine-tuning (Table 6b) and the multi-view test of section 4."""

from dataclasses import dataclass

from motionmae.config.checks import at_least, check, one_of


@dataclass(frozen=True)
class FinetuneConfig:
    """A classifier on the encoder, used where ``task=finetune`` (Table 6b)."""

    mode: str = "full"
    """full: everything is trained; linear, attentive: a probe on the frozen encoder, whose cubes are pooled by their
    mean or by trained attention."""
    init: str = "scratch"
    """Where the encoder's weights come from: a run folder, a checkpoint folder, an exported or released file
    (docs/weights.md), or scratch."""
    layer_decay: float = 0.75
    """Factor on the learning rate from each layer to the one below it."""
    drop_path: float = 0.1
    """Chance of dropping the last block's paths; it grows linearly from 0 at the first."""
    mixup: float = 0.8
    """Alpha of mixup; 0 switches it off."""
    cutmix: float = 1.0
    """Alpha of cutmix; 0 switches it off."""
    mixup_switch_prob: float = 0.5
    """Chance of cutmix in place of mixup where both are on."""
    label_smoothing: float = 0.1
    """Share of a label's weight that is spread over all classes."""

    def __post_init__(self) -> None:
        one_of("finetune.mode", self.mode, ("full", "linear", "attentive"))
        check(bool(self.init), "finetune.init", self.init, "name weights, or say scratch")
        check(0 < self.layer_decay <= 1, "finetune.layer_decay", self.layer_decay, "it must lie in (0, 1]")
        for key in ("drop_path", "label_smoothing"):
            check(0 <= getattr(self, key) < 1, f"finetune.{key}", getattr(self, key), "it must lie in [0, 1)")
        for key in ("mixup", "cutmix"):
            at_least(f"finetune.{key}", getattr(self, key), 0)
        check(
            0 <= self.mixup_switch_prob <= 1,
            "finetune.mixup_switch_prob",
            self.mixup_switch_prob,
            "it must lie in [0, 1]",
        )
        check(
            self.mode == "full" or self.init != "scratch",
            "finetune.mode",
            self.mode,
            "a probe needs trained weights, set finetune.init=RUN",
        )

    @property
    def frozen(self) -> bool:
        """Whether the encoder keeps its weights."""
        return self.mode != "full"

    @property
    def mixes(self) -> bool:
        """Whether clips are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class MultiviewTestConfig:
    """Views of a video that a test averages (section 4); `data.sampling` says how frames are chosen."""

    shards: str = ""
    """Folder or URL of shards with the videos to test on."""
    clips: int = 5
    """Clips of a video (section 4: SSv2 2, K400 5, UCF101 10)."""
    crops: int = 3
    """Squares of a clip along its long side; 1 is the middle."""
    batch_size: int = 16
    """Views of one forward pass."""

    def __post_init__(self) -> None:
        for key in ("clips", "crops", "batch_size"):
            at_least(f"test.{key}", getattr(self, key), 1)
