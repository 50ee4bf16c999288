"""Configuration of validation while training: held-out shards, how often, what is kept, when to stop early."""

from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from motionmae.config.data import known_scheme
from motionmae.config.section import MAY_CHANGE_RESULT, PathOrUrl, Section, refusal


class ValidationConfig(Section):
    """Validation while training (docs/train/validation.md). It never changes the weights that a step gives."""

    shards: Annotated[PathOrUrl, AfterValidator(known_scheme)] = ""
    """Folder or URL of held-out shards. Empty: no validation."""
    every_epochs: PositiveFloat = 1.0
    """Epochs between validations; the last step of a run is always validated."""
    every_steps: NonNegativeInt = 0
    """Steps between validations, in place of `every_epochs`; 0 disables this."""
    clips: PositiveInt = 1
    """Clips per video in fine-tuning, chosen as `motionmae test` does."""
    crops: PositiveInt = 1
    """Square crops of a clip in fine-tuning; 1 takes the centre."""
    batch_size: PositiveInt = 16
    """Views per forward pass in fine-tuning."""
    heldout_clips: PositiveInt = 256
    """Clips on which pre-training measures the loss of its heads."""
    knn_train: Annotated[PathOrUrl, AfterValidator(known_scheme)] = ""
    """Labelled shards whose videos are the neighbours of a k-NN on frozen features in pre-training. Empty: no k-NN."""
    knn_test: Annotated[PathOrUrl, AfterValidator(known_scheme)] = ""
    """Labelled shards that the k-NN classifies. Empty: `validation.shards`."""
    knn_k: PositiveInt = 20
    """Nearest training videos that vote in the k-NN."""
    knn_temperature: PositiveFloat = 0.07
    """Temperature of the votes of the k-NN."""
    metric: Literal["auto", "top1", "loss", "knn", "off"] = "auto"
    """Figure that decides which checkpoint is the best, which is kept beside the last ones. auto: top1 in fine-tuning,
    off in pre-training."""
    patience: Annotated[NonNegativeInt, MAY_CHANGE_RESULT] = 0
    """Validations in a row without a new best after which the run ends (early stopping); 0 disables it."""
    min_delta: Annotated[NonNegativeFloat, MAY_CHANGE_RESULT] = 0.0
    """Improvement below which a figure is no new best: points of per cent for top1 and knn."""

    def check(self) -> None:
        if self.knn_test and not self.knn_train:
            raise refusal("validation.knn_test", self.knn_test, "the neighbours are missing; set validation.knn_train")

    def interval(self, steps_per_epoch: int) -> int:
        """Return the steps between validations."""
        return self.every_steps or max(1, round(self.every_epochs * steps_per_epoch))
