"""Imports of a rank, made once by the fork server of :mod:`tests.training.launch`."""

import pytest  # noqa: F401
import torch

torch.set_num_threads(1)

from motionmae.engine.deepspeed_engine import import_deepspeed  # noqa: E402

import_deepspeed(torch.device("cpu"))

import deepspeed.module_inject.auto_ep_layer  # noqa: E402
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402
import deepspeed.runtime.zero.stage3  # noqa: E402, F401
