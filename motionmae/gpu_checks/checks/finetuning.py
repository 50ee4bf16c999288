"""Check of fine-tuning, of the multi-view test, and of an export, against the CPU in fp32."""

from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import load_file

from motionmae.config import Config
from motionmae.data.held_out.views import read_views
from motionmae.data.open_shards import open_reader
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.process_group import init_distributed
from motionmae.evaluation.export import export
from motionmae.evaluation.inference import FrozenModel
from motionmae.evaluation.load_model import Finetuned, load_finetuned
from motionmae.gpu_checks.check import Figures, Setting, require
from motionmae.gpu_checks.fixtures import all_cores, decoders, load, make_shards
from motionmae.runs.end_reason import EndReason
from motionmae.training.setup import run_training

_VIDEOS = 4  # of the test
_LIMITS = {"fp32": 0.002, "auto": 0.05}
"""Largest differences of a probability from the CPU's in fp32, by precision. auto is bf16 on most GPUs."""


def check_finetuning(setting: Setting) -> Figures:
    """Fine-tune for a few steps, test some videos on both devices, and read the exported weights."""
    config = _config(setting)
    rank = init_distributed(config.engine)
    reason = run_training(config)
    figures: Figures = {"end": str(reason)}
    require(reason is EndReason.FINISHED, f"fine-tuning ended as {reason}", figures)
    with all_cores():
        right = probabilities(config.updated({"engine.precision": "fp32"}), replace(rank, device=torch.device("cpu")))
    for precision, limit in _LIMITS.items():
        values = probabilities(config.updated({"engine.precision": precision}), rank)
        off = float(np.abs(values - right).max())
        figures[f"probability_error_{precision}"] = off
        require(off < limit, f"a probability in {precision} differs from the CPU's by {off:.2g}", figures)
    out = setting.folder / "finetuning" / "export"
    export(config.run_folder, None, "safetensors", out)
    exported, model = load_file(out / "model.safetensors"), load_finetuned(config.run_folder).model.state_dict()
    unequal = sorted(name for name in model if not torch.equal(model[name], exported[name]))
    figures["exported_tensors"] = len(exported)
    require(not unequal, f"the export holds other values of {', '.join(unequal[:3])}", figures)
    if not setting.on_gpu:
        figures["not_run"] = ["the comparison of a GPU with the CPU"]
    return figures


def _config(setting: Setting) -> Config:
    folder = setting.folder / "finetuning"
    fixed = ["name=run", f"output_dir={folder}", "log.tensorboard=false", "finetune.init=scratch", "optim.epochs=2"]
    fixed += ["optim.warmup_epochs=1", f"data.shards={folder / 'shards'}", f"test.shards={folder / 'shards'}"]
    if setting.quick or not setting.on_gpu:
        config = load("finetune_tiny_toy", setting, *fixed)
    else:
        small = ["engine.micro_batch_size=8", f"data.workers={decoders()}", "test.clips=1", "test.crops=1"]
        config = load("finetune_vitb_k400", setting, *fixed, *small)
    make_shards(folder / "shards", config, samples=2 * config.engine.micro_batch_size)
    return config


def probabilities(config: Config, rank: DistributedContext) -> np.ndarray:
    """Return the class probabilities of some videos by the run's newest checkpoint: (videos, classes)."""
    trained: Finetuned = load_finetuned(config.run_folder)
    reader = open_reader(config.test.shards, data=config.data)
    model = FrozenModel(trained.model, config, rank.device, config.test.batch_size)
    found = [model(read_views(reader, video, config)).softmax(1).mean(0).numpy() for video in range(_VIDEOS)]
    reader.close()
    return np.stack(found)
