"""Choice among torch's kernels: deterministic ones, and no attention by cuDNN where its gradients may be NaN."""

import torch

from motionmae.config import Config
from motionmae.models.masking import step_cubes

_MENDED_CUDNN = 92600  # cuDNN 9.26, as torch.backends.cudnn.version() counts
_TILE = 128  # keys that cuDNN's kernel reads at once


def choose_kernels(config: Config, device: torch.device) -> None:
    """Set torch's global switches for a training run on ``device``."""
    if config.engine.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if device.type == "cuda" and cudnn_attention_may_fail(config):
        torch.backends.cuda.enable_cudnn_sdp(False)


def cudnn_attention_may_fail(config: Config) -> bool:
    """Return whether a stack of ``config`` attends to 64 modulo 128 keys, and cuDNN is older than 9.26.

    On Hopper and Blackwell torch prefers cuDNN's attention. With such a number of keys, its gradients can be NaN
    (NVIDIA/cudnn-frontend issue 628, pytorch issue 196678). The reports have a mask, which no stack here has.
    """
    cudnn = torch.backends.cudnn.version()
    return (cudnn is None or cudnn < _MENDED_CUDNN) and any(keys % _TILE == _TILE // 2 for keys in key_counts(config))


def key_counts(config: Config) -> list[int]:
    """Return the number of keys in each attention of the encoder and of the decoders."""
    if config.task == "finetune":
        return [config.clip.cubes]
    cubes = step_cubes(config)
    return [cubes.visible, cubes.decoder]
