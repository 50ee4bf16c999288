"""Python interface: `motionmae.load(WEIGHTS)` returns a :class:`Model`. See docs/use/python.md.

Names without a leading underscore in this module and in :mod:`motionmae` keep their meaning between releases.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from motionmae.config import Config
from motionmae.data.video.read_video import UnreadableVideo
from motionmae.distributed.devices import choose_device
from motionmae.errors import UserError
from motionmae.evaluation.inference import FrozenModel
from motionmae.evaluation.load_model import Embedding, Finetuned, LoadedModel, Pretrained, load_model
from motionmae.evaluation.predictor import Prediction, Timeline, join, predict_timeline, predict_views, read_views
from motionmae.evaluation.weights_source import find_weights
from motionmae.models.motionmae import Reconstruction

Video = str | Path | NDArray[np.uint8] | torch.Tensor
"""Path of a video file, or its frames in order: uint8 (n, H, W, 3), RGB, as an array or a tensor."""


@dataclass(frozen=True)
class ReconstructedVideo:
    """Reconstruction of the masked central clip of a video, as in Figure 3 of the paper."""

    frames: Reconstruction  # rows of the figure, each float (1, T, H, W, 3)
    title: str
    heading: str

    def save(self, path: str | Path, columns: int = 8) -> None:
        """Draw the rows as a PNG with ``columns`` frames, or as a GIF or mp4 with all frames, by the file's ending."""
        from motionmae.evaluation.reconstructions import make_block, write_png, write_video

        path = Path(path)
        if path.suffix not in (".png", ".gif", ".mp4"):
            raise UserError(f"{path} must end in .png, .gif or .mp4")
        count = columns if path.suffix == ".png" else self.frames.clip.shape[1]
        write = write_png if path.suffix == ".png" else write_video
        write([make_block(self.title, self.frames, 0, count)], path, self.heading)


class Model:
    """Model with its config, for single videos. Made by :func:`load`; it has no gradients."""

    def __init__(self, loaded: LoadedModel, device: torch.device):
        self._loaded, self.device = loaded, device
        self.module = loaded.model.eval().requires_grad_(False).to(device)
        """The torch module: a classifier, a pre-training model or an encoder."""

    def __repr__(self) -> str:
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        kind = type(self._loaded).__name__.lower()
        return f"<motionmae.Model {self._loaded.title}: {kind}, {self.config.model.size}{classes}, on {self.device}>"

    @property
    def config(self) -> Config:
        return self._loaded.config

    @property
    def step(self) -> int | None:
        """Training step of the weights; None if they do not say."""
        return self._loaded.step

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the logits; empty without a classifier."""
        return self._loaded.class_names if isinstance(self._loaded, Finetuned) else ()

    def preprocess(self, video: Video, clips: int = 1, crops: int = 1) -> NDArray[np.uint8]:
        """Return the input of the model: uint8 (clips * crops, T, size, size, 3).

        The frames are those of `motionmae test`; they are resized and cropped as transformers' VideoMAEImageProcessor
        does. With one clip and one crop, this is the central clip.

        Raises:
            UserError: the file cannot be read, or the frames have another type or shape.
        """
        config = self.config.updated({"test.clips": clips, "test.crops": crops})
        if isinstance(video, torch.Tensor):
            video = video.cpu().numpy()
        try:
            return read_views(Path(video) if isinstance(video, str | Path) else np.asarray(video), config)
        except UnreadableVideo as error:
            raise UserError(f"{error}: give another file") from error

    def predict(self, video: Video, clips: int = 1, crops: int = 1) -> Prediction:
        """Return the class scores of a video: the mean of the softmax over clips x crops views.

        Raises:
            UserError: the model is no classifier, or see :meth:`preprocess`.
        """
        views = self.preprocess(video, clips, crops)
        return predict_views(self._classifier, views, self.class_names, _name_of(video))

    def timeline(self, video: str | Path, every: float | None = None) -> Timeline:
        """Return the class scores of windows of one clip along a video file of any length.

        Args:
            every: seconds from window to window; by default they follow each other without a gap.
        """
        classifier, path = self._classifier, Path(video)
        try:
            return join(list(predict_timeline(classifier, path, self.config, self.class_names, every)))
        except UnreadableVideo as error:
            raise UserError(f"{error}: give another file") from error

    def features(self, video: Video) -> NDArray[np.float32]:
        """Return the features of a video, (width,): the mean of the encoder's tokens of the central clip.

        They are those of `motionmae features`.
        """
        return self._embedding(self.preprocess(video)).numpy()[0]

    def reconstruct(self, video: Video, ratio: float | None = None, seed: int = 0) -> ReconstructedVideo:
        """Mask the central clip of a video and reconstruct it.

        Args:
            ratio: share of masked cubes, by default that of the training.
            seed: determines the mask.

        Raises:
            UserError: the model has no decoders, or predicts optical flow, which videos lack.
        """
        if not isinstance(self._loaded, Pretrained):
            raise UserError("only a pre-training model reconstructs: load weights of a pre-training")
        if self.config.target.needs_flow:
            raise UserError("the model was trained on optical flow, which a video lacks: use `motionmae reconstruct`")
        clips = torch.from_numpy(self.preprocess(video)).to(self.device)
        found = self._loaded.model.reconstruct(clips, torch.tensor([seed], device=self.device), ratio)
        rows: dict[str, Any] = {key: row.cpu() for key, row in found._asdict().items() if isinstance(row, torch.Tensor)}
        share = self.config.mask.ratio if ratio is None else ratio
        title = f"{Path(_name_of(video)).name}, {share:.0%} masked ({self.config.mask.kind})"
        return ReconstructedVideo(found._replace(**rows), title, self._loaded.title)

    @cached_property
    def _classifier(self) -> FrozenModel:
        if not isinstance(self._loaded, Finetuned):
            raise UserError("the model has no classes: load weights of a fine-tuning, or use `features`")
        return FrozenModel(self.module, self.config, self.device, self.config.test.batch_size)

    @cached_property
    def _embedding(self) -> FrozenModel:
        embedding = Embedding(self._loaded.encoder, self.config.clip.cube_size)
        return FrozenModel(embedding, self.config, self.device, batch=1)


def load(
    weights: str | Path,
    *,
    step: int | str | None = None,
    device: str = "auto",
    settings: Mapping[str, object] | None = None,
    classes: str | Path | None = None,
) -> Model:
    """Load a model from a run, a checkpoint, an export, a Hugging Face VideoMAE folder or a released file.

    Args:
        weights: path, or name of the config of a run in `runs/` (docs/use/weights.md lists all forms).
        step: step of the checkpoint of a run, or `best`; by default the newest.
        device: auto (a GPU if there is one), cpu or cuda.
        settings: changes of how the model is used, such as ``{"clip.stride": 2, "data.sampling": "segments"}``.
        classes: text file with the names of the classes, for released files, which name none.

    Raises:
        UserError: there are no weights, they are damaged, or they are of another kind of model.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device!r} is not possible: choose auto, cpu or cuda")
    changes = [f"{key}={value}" for key, value in (settings or {}).items()]
    source = find_weights(weights, step, changes, Path(classes) if classes else None)
    return Model(load_model(source), choose_device(device))


def _name_of(video: Video) -> str:
    return str(video) if isinstance(video, str | Path) else "video"
