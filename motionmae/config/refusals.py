"""Messages for settings that pydantic refuses: key, value, possible values or remedy, and the origin of the value."""

import difflib
import json
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from motionmae.config.section import marks_of
from motionmae.errors import UserError
from motionmae.text import excerpt

_TYPES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple: "a list of two numbers",
    dict: "a section of `key: value` pairs",
}
"""Field types, as messages name them."""
_LIMITS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}


_COMMON: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "learning_rate", "blr"), ("optim.base_lr",)),
    **dict.fromkeys(("batch", "batch_size", "bs", "train_batch_size"), ("optim.global_batch_size",)),
    **dict.fromkeys(
        ("per_gpu_batch", "micro_batch", "device_batch_size", "per_device_train_batch_size"),
        ("engine.micro_batch_size",),
    ),
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "max_epochs", "num_train_epochs"), ("optim.epochs",)),
    **dict.fromkeys(("warmup", "warmup_steps"), ("optim.warmup_epochs",)),
    **dict.fromkeys(("wd", "weight_decay"), ("optim.weight_decay",)),
    **dict.fromkeys(("num_workers", "workers", "dataloader_workers"), ("data.workers",)),
    **dict.fromkeys(("gpus", "num_gpus", "devices"), ("launch.gpus_per_node", "launch.ntasks_per_node")),
    **dict.fromkeys(("nodes", "num_nodes"), ("launch.nodes",)),
    **dict.fromkeys(("frames", "num_frames", "clip_len"), ("clip.frames",)),
    **dict.fromkeys(("size", "img_size", "input_size", "image_size", "crop_size", "resolution"), ("clip.size",)),
    **dict.fromkeys(("sampling_rate", "frame_interval", "stride"), ("clip.stride",)),
    **dict.fromkeys(("patch", "patch_size", "tubelet_size"), ("clip.cube_size", "clip.cube_frames")),
    **dict.fromkeys(("mask_ratio", "masking_ratio"), ("mask.ratio",)),
    **dict.fromkeys(("data_path", "data_dir", "path", "root", "dataset", "shards"), ("data.shards",)),
    **dict.fromkeys(("out", "out_dir", "runs", "log_dir", "save_dir"), ("output_dir",)),
    **dict.fromkeys(("run_name", "exp_name", "experiment"), ("name",)),
    **dict.fromkeys(
        ("accum_iter", "gradient_accumulation_steps", "accumulate_grad_batches"),
        (
            "engine.micro_batch_size",
            "optim.global_batch_size",
        ),
    ),
    **dict.fromkeys(("precision", "dtype", "fp16", "bf16", "amp"), ("engine.precision",)),
    **dict.fromkeys(("zero", "stage", "zero_stage"), ("engine.zero_stage",)),
    **dict.fromkeys(("save_every", "save_freq", "save_steps"), ("checkpoint.every_steps",)),
    **dict.fromkeys(("log_every", "logging_steps", "print_freq"), ("log.every_steps",)),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "clip_grad"), ("optim.clip_grad",)),
    **dict.fromkeys(("init", "pretrained", "checkpoint_path", "resume", "weights"), ("finetune.init", "pretrain.init")),
}
"""Keys for the names of other programs (timm, mae_st, VideoMAE, Hugging Face, Lightning)."""


def describe_refusal(
    error: ValidationError,
    schema: type[BaseModel],
    tree: Mapping[str, Any],
    origins: Mapping[str, str] | None = None,
    source: str = "",
) -> str:
    """Return the sentence for the first error; unknown keys come before impossible values.

    Args:
        error: from the validation of ``tree`` against ``schema``.
        origins: file or override that set each key.
        source: config and overrides, for values that do not fit together.
    """
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    path = [part for part in first["loc"] if isinstance(part, str) and part != "[key]"]
    key = ".".join(path)
    origin = f" (from {excerpt(origins[key])})" if origins and key in origins else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {excerpt(key)}{origin}: {_suggest(path, schema)}"
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):  # from `refusal`: a whole sentence
        return f"{cause} ({excerpt(source)})" if source else str(cause)
    value: Any = tree
    for part in path:
        value = value[part]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str).replace('"', "")
    setting = excerpt(key if first["loc"][-1] == "[key]" else f"{key}={text}")
    return f"{setting} is not possible: {cause or _allowed(first, path, schema)}{origin}"


def _allowed(error: ErrorDetails, path: list[str], schema: type[BaseModel]) -> str:
    field, inside = _field(path, schema)
    kind = get_origin(field.annotation) or field.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"it is a section: write {'.'.join(path)}.{next(iter(kind.model_fields))}=..."
    if error["type"] == "literal_error":
        return f"choose one of {', '.join(map(str, get_args(field.annotation)))}"
    if error["type"] == "finite_number":
        return "it must be a finite number"
    if error["type"].startswith(("greater_than", "less_than")):
        return f"it must be {_limits(field)}"
    return "it must be a single value" if inside else f"it must be {_TYPES[kind]}"


def _field(path: list[str], schema: type[BaseModel]) -> tuple[FieldInfo, bool]:
    """Return the field at ``path``, and whether ``path`` leads further, into a dictionary."""
    field = schema.model_fields[path[0]]
    if len(path) > 1 and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return _field(path[1:], field.annotation)
    return field, len(path) > 1


def _limits(field: FieldInfo) -> str:
    limits = []
    for each in field.metadata:
        for name, words in _LIMITS.items():
            if hasattr(each, name):
                limit = getattr(each, name)
                limits.append(f"{words} {'2^63' if limit == 2**63 else limit}")
    return " and ".join("positive" if limit == "greater than 0" else limit for limit in limits)


def _suggest(path: list[str], schema: type[BaseModel]) -> str:
    """Ask whether a similar key was meant, or list the keys beside the unknown one."""
    keys, last = list(marks_of(schema)), path[-1]
    section = ".".join(path[:-1])
    siblings = [key for key in keys if section and key.rpartition(".")[0] == section] or list(schema.model_fields)
    found = [key for key in _COMMON.get(last.lower().replace("-", "_"), ()) if key in keys]
    if not found:  # optim.base_lr for optim.peak_lr
        found = [key for key in siblings if f"_{last}_" in f"_{_name(key)}_"][:1]
    if not found:  # optim.epochs and optim.warmup_epochs for epochs, an equal name first
        ending = [key for key in keys if f"_{_name(key)}".endswith(f"_{last}")]
        found = sorted(ending, key=lambda key: _name(key) != last)[:2]
    if not found:  # optim.global_batch_size for optim.bach
        names = {part: key for key in reversed(siblings) for part in _name(key).split("_")}
        names |= {_name(key): key for key in siblings}
        found = [names[name] for name in difflib.get_close_matches(last, names, n=1, cutoff=0.75)]
    found = found or difflib.get_close_matches(".".join(path), keys, n=1, cutoff=0.75)
    return f"did you mean {' or '.join(found)}?" if found else f"choose one of {', '.join(siblings)}"


def _name(key: str) -> str:
    return key.rpartition(".")[2]
