"""Downstream configuration: fine-tuning (Table 6b) and the multi-view test of section 4."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, model_validator

from motionmae.config.section import MAY_CHANGE_RESULT, Fraction, PathOrUrl, Probability, Section, WeightsPath, check


def _not_empty(weights: str) -> str:
    if not weights:
        raise ValueError("give the path of weights, or scratch")
    return weights


class FinetuneConfig(Section):
    """Classifier on the encoder, for ``task=finetune`` (Table 6b)."""

    mode: Literal["full", "linear", "attentive"] = "full"
    """full: all weights are trained. linear, attentive: a probe is trained on the frozen encoder, whose tokens are
    pooled by their mean or by trained attention."""
    init: Annotated[WeightsPath, AfterValidator(_not_empty), MAY_CHANGE_RESULT] = "scratch"
    """Initial weights of the encoder: a run folder, a checkpoint folder, an exported or released file
    (docs/weights.md), or scratch."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Factor on the learning rate from each layer to the layer below it."""
    drop_path: Fraction = 0.1
    """Probability of dropping the residual paths of the last block. It grows linearly from 0 in the first block."""
    mixup: NonNegativeFloat = 0.8
    """Alpha of mixup; 0 disables it."""
    cutmix: NonNegativeFloat = 1.0
    """Alpha of cutmix; 0 disables it."""
    mixup_switch_prob: Probability = 0.5
    """Probability of cutmix rather than mixup where both are enabled."""
    label_smoothing: Fraction = 0.1
    """Share of a label's weight that is spread over all classes."""

    @model_validator(mode="after")
    def _check(self) -> "FinetuneConfig":
        check(
            self.mode == "full" or self.init != "scratch",
            "finetune.mode",
            self.mode,
            "a probe needs trained weights; set finetune.init=RUN",
        )
        return self

    @property
    def frozen(self) -> bool:
        return self.mode != "full"

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


class MultiviewTestConfig(Section):
    """Views of a video whose predictions a test averages (section 4). `data.sampling` chooses their frames."""

    shards: PathOrUrl = ""
    """Folder or URL of the shards with the test videos."""
    clips: PositiveInt = 5
    """Clips per video (section 4: SSv2 2, K400 5, UCF101 10)."""
    crops: PositiveInt = 3
    """Square crops of a clip along its longer side; 1 takes the centre."""
    batch_size: PositiveInt = 16
    """Views per forward pass."""
