"""Commands of `motionmae`, which :mod:`motionmae.commands.table` lists. `--help` must not import torch or DeepSpeed.

Each is a :class:`motionmae.commands.app.Command`, and its function `run` imports the slow modules.
"""
