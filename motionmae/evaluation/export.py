"""Export weights: safetensors with this project's names, or a folder for Hugging Face transformers.

::

    OUT/model.safetensors    weights (the exponential moving average, if the run keeps one)
    OUT/motionmae.json       step, config, classes, commit, hashes of the other files
    OUT/README.md            model card
    OUT/config.json, OUT/preprocessor_config.json    configuration for transformers, only in the format ``hf``
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from motionmae.config import Config
from motionmae.evaluation.export_folder import write_export
from motionmae.evaluation.load_model import EncoderOnly, Finetuned, load_model
from motionmae.evaluation.model_card import Exported, find_figures, model_card
from motionmae.evaluation.weights_source import WeightsSource, find_weights
from motionmae.models.convert import ENCODER, huggingface_config, to_huggingface
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD
from motionmae.runs.git_revision import git_revision
from motionmae.runs.history import RunHistory


def export(
    source: WeightsSource | str | Path, step: int | str | None, kind: str, out: Path, license_: str | None = None
) -> list[Path]:
    """Export weights and return the files.

    Args:
        source: any weights (docs/use/weights.md); of a run, the checkpoint of ``step``, or the newest one.
        kind: safetensors or hf.
        license_: SPDX identifier for the model card; by default that of this project for a run, and `other` for
            weights of another origin.

    Raises:
        UserError: there are no weights, VideoMAE cannot represent the model, or ``out`` cannot be written or holds
            files of another origin.
    """
    found = source if isinstance(source, WeightsSource) else find_weights(source, step)
    loaded = load_model(found)
    state = {name: value.contiguous() for name, value in loaded.model.state_dict().items()}
    if isinstance(loaded, EncoderOnly):
        state = {f"encoder.{name}": value for name, value in state.items()}
    exported = Exported(
        state,
        loaded.config,
        loaded.step,
        loaded.class_names if isinstance(loaded, Finetuned) else (),
        recorded_commit(found.run) if found.run else loaded.commit,
        license=license_ or ("apache-2.0" if found.run else "other"),
        figures=find_figures(found.results, loaded.step),
    )
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
        "license": exported.license,
        "config": exported.config.model_dump(mode="json"),
    }
    contents = {
        "model.safetensors": save(exported.state, {"format": "pt"}),
        **{name: (json.dumps(content, indent=1) + "\n").encode() for name, content in files.items()},
        "README.md": model_card(exported, kind, out.resolve().name).encode(),
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
    model = exported.videomae
    if model == ENCODER:
        state = {name.removeprefix("encoder."): value for name, value in state.items()}
    return replace(exported, state=to_huggingface(state, model, config.clip), config=config, note=note)


def transformers_config(exported: Exported) -> dict[str, Any]:
    """Return the content of config.json."""
    classes = dict(enumerate(exported.class_names))
    labels = {"id2label": classes, "label2id": {name: number for number, name in classes.items()}} if classes else {}
    has_norm = any(name.endswith("layernorm.weight") and "layer." not in name for name in exported.state)
    settings = {**huggingface_config(exported.config), "use_mean_pooling": not has_norm}
    return {"model_type": "videomae", "architectures": [exported.videomae], **settings, **labels}


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
