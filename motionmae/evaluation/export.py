"""Export weights: safetensors with this project's names, or a folder for Hugging Face transformers.

::

    OUT/model.safetensors    weights (the exponential moving average, if the run keeps one)
    OUT/motionmae.json       step, config, classes, commit, hashes of the other files
    OUT/README.md            model card
    OUT/config.json, OUT/preprocessor_config.json    configuration for transformers, only in the format ``hf``
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from motionmae.config import Config, config_yaml
from motionmae.evaluation.export_folder import write_export
from motionmae.evaluation.load_run import load_run
from motionmae.models.convert import CLASSIFIER, PRETRAINING, huggingface_config, to_huggingface
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD
from motionmae.runs.git_revision import git_revision
from motionmae.runs.history import RunHistory
from motionmae.text import printable


@dataclass(frozen=True)
class Exported:
    """Weights and metadata of an exported model."""

    state: dict[str, Tensor]
    config: Config
    step: int
    class_names: tuple[str, ...]
    commit: str
    note: str = ""  # note for the model card about omitted weights


def export(run: Path, step: int | str | None, kind: str, out: Path) -> list[Path]:
    """Export the checkpoint of ``step``, or the newest one, and return the files; ``kind`` is safetensors or hf.

    Raises:
        UserError: the checkpoint does not exist, VideoMAE cannot represent the model, or ``out`` cannot be written or
            holds files of another origin.
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
    facts = {
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
    return write_export(out, facts, contents)


def as_videomae(exported: Exported) -> Exported:
    """Convert to transformers' VideoMAE. A pre-training model loses its motion decoder head (the paper's time head)."""
    config, state, note = exported.config, exported.state, ""
    pretraining = config.task == "pretrain"
    if pretraining and config.target.kind == "both" and config.model.decoder == "divided":
        state = {name: value for name, value in state.items() if not name.startswith("decoders.time.")}
        config = config.updated({"target.kind": "frame"})
        note = "The time head is omitted, because VideoMAE has none. Encoder and space head are as trained."
    huggingface_config(config)  # raises UserError if VideoMAE cannot represent the model
    state = to_huggingface(state, PRETRAINING if pretraining else CLASSIFIER, config.clip)
    return replace(exported, state=state, config=config, note=note)


def transformers_config(exported: Exported) -> dict[str, Any]:
    """Return the content of config.json."""
    classes = dict(enumerate(exported.class_names))
    labels = {"id2label": classes, "label2id": {name: number for number, name in classes.items()}} if classes else {}
    kind = CLASSIFIER if classes else PRETRAINING
    return {"model_type": "videomae", "architectures": [kind], **huggingface_config(exported.config), **labels}


def preprocessor_config(config: Config) -> dict[str, Any]:
    """Return settings that make transformers' VideoMAEImageProcessor preprocess clips as `motionmae test` does."""
    size = config.clip.size
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": PIXEL_MEAN,
        "image_std": PIXEL_STD,
    }


def recorded_commit(run: Path) -> str:
    """Return the commit that last trained the run. If it is unknown, say so and name the commit of this code."""
    return RunHistory(run).git_revision or f"not recorded by the run, exported by {git_revision()}"


def model_card(exported: Exported, kind: str) -> str:
    config = exported.config
    model = f"classifier of {len(exported.class_names)} classes" if exported.class_names else "pre-trained encoder"
    if kind == "hf":
        name = CLASSIFIER if config.task == "finetune" else PRETRAINING
        loading = f'```python\nfrom transformers import {name}\n\nmodel = {name}.from_pretrained("FOLDER")\n```'
    else:
        loading = "```sh\nmotionmae finetune --config NAME finetune.init=FOLDER\n```"
    shards = config.data.location.replace("`", "'")
    lines = [
        "---\nlicense: other\ntags: [video, masked-autoencoder, motionmae]\n---",
        f"# {config.name}: {model} (MotionMAE, {config.model.size})",
        exported.note,
        f"- step {exported.step} of the run `{config.name}` (task {config.task}, seed {config.seed})",
        f"- data: `{shards}`",
        f"- code: {_plain(exported.commit)}",
        f"- input: {config.clip.frames} frames of {config.clip.size} x {config.clip.size} pixels with a stride of "
        f"{config.clip.stride} video frames, normalised by ImageNet's mean and standard deviation",
        loading,
        f"## Settings\n```yaml\n{config_yaml(config)}```",
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def _plain(text: str) -> str:
    """Return a text that may come from a stranger's run as one line of Markdown without links and tags."""
    return re.sub(r"[][`<>\\]", lambda found: f"\\{found[0]}", printable(text))
