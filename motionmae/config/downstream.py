"""Downstream configuration: fine-tuning (Table 6b) and the multi-view test of section 4."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt

from motionmae.config.section import MAY_CHANGE_RESULT, Fraction, PathOrUrl, Probability, Section, WeightsPath, refusal


def not_empty(weights: str) -> str:
    if not weights:
        raise ValueError("set the path of weights, or scratch")
    return weights


class FinetuneConfig(Section):
    """Classifier on the encoder, for ``task=finetune`` (Table 6b)."""

    mode: Literal["full", "linear", "attentive"] = "full"
    """full: all weights are trained. linear, attentive: a probe is trained on the frozen encoder, on the mean of its
    tokens or on tokens pooled by trained attention."""
    init: Annotated[WeightsPath, AfterValidator(not_empty), MAY_CHANGE_RESULT] = "scratch"
    """Initial weights of the encoder: a run folder, a checkpoint folder, an exported or released file
    (docs/use/weights.md), or scratch."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Factor on the learning rate from each layer to the layer below it."""
    drop_path: Fraction = 0.1
    """Probability of dropping residual paths; it grows linearly from 0 in the first block to this in the last."""
    mixup: NonNegativeFloat = 0.8
    """Alpha of mixup; 0 disables it."""
    cutmix: NonNegativeFloat = 1.0
    """Alpha of cutmix; 0 disables it."""
    mixup_switch_prob: Probability = 0.5
    """Probability of cutmix rather than mixup if both are enabled."""
    label_smoothing: Fraction = 0.1
    """Share of a label's weight that is spread over all classes."""

    def check(self) -> None:
        if self.frozen and self.init == "scratch":
            raise refusal("finetune.mode", self.mode, "a probe needs trained weights; set finetune.init=RUN")

    @property
    def frozen(self) -> bool:
        return self.mode != "full"

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


class MultiviewTestConfig(Section):
    """Views of a video whose predictions the test averages (section 4). `data.sampling` chooses their frames."""

    shards: PathOrUrl = ""
    """Folder or URL of the shards with the test videos."""
    clips: PositiveInt = 5
    """Clips per video (section 4: SSv2 2, K400 5, UCF101 10)."""
    crops: PositiveInt = 3
    """Square crops of a clip along its longer side; 1 takes the centre."""
    batch_size: PositiveInt = 16
    """Views per forward pass."""
