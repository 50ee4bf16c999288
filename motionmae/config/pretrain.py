"""Configuration that only pre-training has beside the method: its initial weights."""

from typing import Annotated

from pydantic import AfterValidator

from motionmae.config.downstream import not_empty
from motionmae.config.section import MAY_CHANGE_RESULT, Section, WeightsPath


class PretrainConfig(Section):
    """Initial weights of pre-training (continued pre-training, docs/train/continued_pretraining.md)."""

    init: Annotated[WeightsPath, AfterValidator(not_empty), MAY_CHANGE_RESULT] = "scratch"
    """Initial weights: a run folder, a checkpoint folder, an exported or released file (docs/use/weights.md), or
    scratch. They are read once: a resume continues from the run's own checkpoint."""
    init_decoders: Annotated[bool, MAY_CHANGE_RESULT] = True
    """Also load the decoders of `init` whose tensors all fit. False: only the encoder."""
