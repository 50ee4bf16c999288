"""Table of all commands of `motionmae`, in the order in which a newcomer needs them."""

from typing import NamedTuple


class Entry(NamedTuple):
    """Definition of a command, and its line in `motionmae --help`."""

    target: str
    """Module, or `module:name` if its :class:`~motionmae.commands.app.Command` is not called COMMAND."""
    summary: str
    group: str = ""
    """Line of the group, for a name of two words."""


_SHARDS = "make shards of videos, and check, inspect and merge them"
_CONFIG = "list, show and compare configs"
_DOCTOR = "check a machine, and measure what may slow training down"
COMMANDS = {
    "shards make": Entry("data_tools.make_shards.cli", "decode videos into shards", _SHARDS),
    "shards submit": Entry("slurm.shard", "make shards as a Slurm array", _SHARDS),
    "shards verify": Entry("data_tools.verify", "check shards against their checksums", _SHARDS),
    "shards stats": Entry("data_tools.stats", "print figures of shards: frames, durations, classes", _SHARDS),
    "shards preview": Entry("data_tools.preview", "draw a contact sheet of shards", _SHARDS),
    "shards merge": Entry("data_tools.merge", "merge folders of shards into one", _SHARDS),
    "shards motion-labels": Entry(
        "data_tools.motion_labels", "make labelled samples that only motion tells apart", _SHARDS
    ),
    "shards beton": Entry("data_tools.make_beton", "write shards as one FFCV file", _SHARDS),
    "shards toy": Entry("data_tools.make_toy_dataset.cli", "render labelled videos to try MotionMAE on", _SHARDS),
    "init": Entry("data_tools.init.cli", "look at a folder of videos, and write a config that fits it"),
    "config list": Entry("motionmae.commands.config:LIST", "list the configs that come with the code", _CONFIG),
    "config show": Entry("motionmae.commands.config:SHOW", "print a config with all its values", _CONFIG),
    "config diff": Entry("motionmae.commands.config:DIFF", "print the differences of two configs", _CONFIG),
    "config schema": Entry("motionmae.commands.config:SCHEMA", "print the JSON schema of a config file", _CONFIG),
    "plan": Entry("motionmae.commands.plan", "estimate parameters, memory and time of a run"),
    "pretrain": Entry("motionmae.commands.train:PRETRAIN", "pre-train a model, or resume its run"),
    "finetune": Entry("motionmae.commands.train:FINETUNE", "fine-tune a pre-trained encoder, or resume its run"),
    "test": Entry("motionmae.commands.test", "measure the multi-view accuracy of a classifier"),
    "predict": Entry("motionmae.commands.predict", "name the classes of video files"),
    "submit": Entry("slurm.submission", "submit a run to Slurm, or start it on this machine"),
    "runs": Entry("slurm.run_table", "list all runs of a folder: state, step, loss, remaining time, last fault"),
    "watch": Entry("motionmae.commands.watch", "follow a run in the terminal: losses, speed, goodput, faults"),
    "report": Entry("motionmae.commands.report", "write a run's report as one HTML file, and print its losses"),
    "checkpoints": Entry("motionmae.commands.checkpoints", "list, verify and repair the checkpoints of a run"),
    "reconstruct": Entry("motionmae.commands.reconstruct", "draw what a model's heads reconstruct"),
    "export": Entry("motionmae.commands.export", "write weights for other programs"),
    "knn": Entry("motionmae.commands.knn", "measure the nearest-neighbour accuracy of frozen features"),
    "features": Entry("motionmae.commands.features", "write the clip features of a folder of videos"),
    "davis": Entry("motionmae.commands.davis", "segment video objects on DAVIS-2017"),
    "doctor data": Entry(
        "motionmae.commands.doctor.data",
        "measure a rank's loader: clips a second, and the cores that a GPU needs",
        _DOCTOR,
    ),
    "doctor gpu": Entry(
        "motionmae.commands.doctor.gpu", "check training on this machine's GPUs, and measure its speed", _DOCTOR
    ),
    "demo": Entry("slurm.demo", "run the whole path on two CPU cores: videos, shards, training, pictures"),
}

GUIDE = """self-supervised pre-training of video transformers

From videos to a tested model, here on rendered videos and two CPU cores:

  1. videos      motionmae shards toy --out data/toy_videos
  2. shards      motionmae shards make folder --videos data/toy_videos --split train --out data/toy/train
                 motionmae shards make folder --videos data/toy_videos --split val --out data/toy/val
  3. pre-train   motionmae pretrain --config tiny_toy
  4. fine-tune   motionmae finetune --config finetune_tiny_toy
  5. test        motionmae test finetune_tiny_toy
  6. predict     motionmae predict finetune_tiny_toy data/toy_videos/val

With your own videos, begin with `motionmae init VIDEOS`: it writes a config that fits, and prints these commands.

Look at a run, also while it trains:

  motionmae runs                          all runs: state, step, loss, remaining time, last fault
  motionmae watch runs/tiny_toy           losses, speed and faults in the terminal
  motionmae report runs/tiny_toy          one HTML file, and the losses beside predicting the mean
  motionmae reconstruct runs/tiny_toy     what the model reconstructs

On a cluster:

  motionmae plan --config vitl_k400 --nodes 4               memory and time
  motionmae submit --config vitl_k400 --nodes 4 --dry-run   the sbatch script; without --dry-run the job

`motionmae --help` lists all commands, `motionmae COMMAND --help` explains one.
"""
