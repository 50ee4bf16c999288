"""Weights that others can use: safetensors under our names, or a folder that Hugging Face transformers loads.

::

    OUT/model.safetensors    the weights (of the average, where the run keeps one)
    OUT/motionmae.json       step, config, classes, code: all that reading them back takes
    OUT/README.md            the model card
    OUT/config.json, OUT/preprocessor_config.json    with ``hf``: what transformers asks for
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from motionmae.config import Config, config_yaml
from motionmae.errors import UserError
from motionmae.evaluation.load_run import load_run
from motionmae.files import write_atomically
from motionmae.models.convert.huggingface import CLASSIFIER, PRETRAINING, huggingface_config, to_huggingface
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD
from motionmae.runs.git_revision import git_revision
from motionmae.runs.history import RunHistory

FORMATS = ("safetensors", "hf")


@dataclass(frozen=True)
class Exported:
    """What is written."""

    state: dict[str, Tensor]
    config: Config
    step: int
    class_names: tuple[str, ...]
    commit: str
    note: str = ""
    """What a reader of the card must know of what was left out."""


def export(run: Path, step: int | None, kind: str, out: Path) -> list[Path]:
    """Write a run's checkpoint of ``step``, or its newest, as one of FORMATS; returns the files.

    Raises:
        UserError: no such checkpoint, Hugging Face's VideoMAE has no such model, or ``out`` cannot be written.
    """
    loaded = load_run(run, step)
    names = getattr(loaded, "class_names", ())
    state = {name: value.contiguous() for name, value in loaded.model.state_dict().items()}
    exported = Exported(state, loaded.config, loaded.step, names, recorded_commit(run))
    files: dict[str, Any] = {}
    if kind == "hf":
        exported = as_videomae(exported)
        files["config.json"] = transformers_config(exported)
        files["preprocessor_config.json"] = preprocessor_config(exported.config)
    files["motionmae.json"] = {
        "step": exported.step,
        "task": exported.config.task,
        "class_names": exported.class_names,
        "commit": exported.commit,
        "config": exported.config.model_dump(mode="json"),
    }
    contents = {
        "model.safetensors": save(exported.state, {"format": "pt"}),
        **{name: (json.dumps(content, indent=1) + "\n").encode() for name, content in files.items()},
        "README.md": model_card(exported, kind).encode(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(out / name, content)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error}): name a folder that takes files from you") from error
    return [out / name for name in contents]


def as_videomae(exported: Exported) -> Exported:
    """The same under the names of transformers' VideoMAE; of a pre-training model without its time head.

    Raises:
        UserError: it has no such model.
    """
    config, state, note = exported.config, exported.state, ""
    if config.task == "pretrain":
        if config.target.kind == "both" and config.model.decoder == "divided":
            state = {name: value for name, value in state.items() if not name.startswith("decoders.time.")}
            config = config.updated({"target.kind": "frame"})
            note = "The time head has no place in VideoMAE and is left out; encoder and space head are as trained."
        huggingface_config(config)  # refuses what is none, before names are looked at
        return replace(exported, state=to_huggingface(state, PRETRAINING, config.clip), config=config, note=note)
    huggingface_config(config)
    return replace(exported, state=to_huggingface(state, CLASSIFIER, config.clip))


def transformers_config(exported: Exported) -> dict[str, Any]:
    """The ``config.json`` of a transformers folder."""
    classes = {str(number): name for number, name in enumerate(exported.class_names)}
    kind = CLASSIFIER if classes else PRETRAINING
    labels = {"id2label": classes, "label2id": {name: int(number) for number, name in classes.items()}}
    return {
        "model_type": "videomae",
        "architectures": [kind],
        **huggingface_config(exported.config),
        **(labels if classes else {}),
    }


def preprocessor_config(config: Config) -> dict[str, Any]:
    """What transformers' VideoMAEImageProcessor does to frames: what our test does."""
    size = config.clip.size
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": PIXEL_MEAN,
        "image_std": PIXEL_STD,
    }


def recorded_commit(run: Path) -> str:
    """The commit of the code that trained the run last; where it did not record one, that of this code, and so said."""
    return RunHistory(run).git_revision or f"not recorded by the run, exported by {git_revision()}"


_LOADING = {
    ("hf", "finetune"): "from transformers import VideoMAEForVideoClassification\n\n"
    'model = VideoMAEForVideoClassification.from_pretrained("FOLDER")',
    ("hf", "pretrain"): "from transformers import VideoMAEForPreTraining\n\n"
    'model = VideoMAEForPreTraining.from_pretrained("FOLDER")',
    ("safetensors", "finetune"): "python -m motionmae finetune --config NAME finetune.init=FOLDER",
    ("safetensors", "pretrain"): "python -m motionmae finetune --config NAME finetune.init=FOLDER",
}


def model_card(exported: Exported, kind: str) -> str:
    """The README of an exported folder: what it is, what it was trained on, how it is loaded."""
    config = exported.config
    what = f"classifier of {len(exported.class_names)} classes" if exported.class_names else "pre-trained encoder"
    settings = config_yaml(config)
    language = "python" if kind == "hf" else "sh"
    lines = [
        "---\nlicense: other\ntags: [video, masked-autoencoder, motionmae]\n---",
        f"# {config.name}: {what} (MotionMAE, {config.model.size})",
        exported.note,
        f"- step {exported.step} of the run `{config.name}` (task {config.task}, seed {config.seed})",
        f"- data: `{config.data.shards}`",
        f"- code: {exported.commit}",
        f"- input: {config.clip.frames} frames of {config.clip.size} x {config.clip.size} pixels, {config.clip.stride} "
        "frames of the video apart, centred by ImageNet's mean and deviation",
        f"```{language}\n{_LOADING[kind, config.task]}\n```",
        f"## Settings\n```yaml\n{settings}```",
    ]
    return "\n\n".join(filter(None, lines)) + "\n"
