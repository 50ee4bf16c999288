"""Training code on a GPU that FakeTensor simulates: no tensor of the CPU, no wait of the host, one compiled graph.

torch cannot run a backward pass on a simulated GPU. It reads only tensors that the forward pass has saved.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from motionmae.config import Config, load_config
from motionmae.config.load import known_configs
from motionmae.models.classifier import build_classifier
from motionmae.models.motionmae import MotionMAE
from motionmae.training.finetune import ClipMixup

pytestmark = pytest.mark.slow
SHIPPED = [name for name in known_configs() if not name.startswith("base/")]
OPTIONS = [
    "mask.kind=time mask.ratio=0.75",
    "mask.kind=tube mask.decoder_ratio=0.5",
    "model.pos_embed=learnable target.loss=smooth_l1",
    "model.pos_embed=separate target.motion_sign=signed",
    "model.decoder=shared target.kind=frame",
    "model.activation_checkpointing=full target.motion_norm=clip",
    "target.motion_source=flow",
]
MODES = ("full", "linear", "attentive")


class Watch(TorchDispatchMode):
    """Dispatch mode that notes operators with a tensor of the CPU.

    FakeTensorMode itself refuses operators whose result the host must read, such as ``item`` and ``nonzero``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: set[str] = set()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        name = str(func)
        result = func(*args, **(kwargs or {}))
        for words, tensors in (("reads", (args, kwargs)), ("makes", result)):
            if any(isinstance(leaf, Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves(tensors)):
                self.faults.add(f"{name} {words} a tensor of the CPU")
        return result


def _on_cuda(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                there = torch.empty(weight.shape, device="cuda")
                module._parameters[name] = nn.Parameter(there, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return model


def _faults(step: Callable[[], Tensor]) -> set[str]:
    """Run a step in bfloat16, as the engine does on a GPU."""
    enabled = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)  # torch.autocast turns itself off on a machine without a GPU
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with Watch() as watch:
            loss = step()
    finally:
        torch.set_autocast_enabled("cuda", enabled)
    assert (loss.device.type, loss.dtype, loss.shape) == ("cuda", torch.float32, ())
    assert watch.operators > 50
    return watch.faults


def _clips(config: Config, device: str) -> Tensor:
    clip = config.clip
    return torch.empty(4, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8, device=device)


def _flow(config: Config, device: str) -> Tensor | None:
    if config.target.motion_source != "flow" or config.target.kind == "frame":
        return None
    clip = config.clip
    return torch.empty(4, clip.frames, clip.size, clip.size, 2, dtype=torch.float16, device=device)


def _pretraining_faults(config: Config) -> set[str]:
    with torch.device("meta"):
        model = MotionMAE(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_cuda(model)
        clips, flow = _clips(config, "cuda"), _flow(config, "cuda")
        seeds = torch.empty(4, dtype=torch.int64, device="cuda")
        return _faults(lambda: model(clips, seeds, flow).total)


def _finetuning_faults(config: Config) -> set[str]:
    with torch.device("meta"):
        model = build_classifier(config, 10).train()
    finetune = config.finetune
    mixup = ClipMixup(finetune.mixup, finetune.cutmix, label_smoothing=0.1, num_classes=10) if finetune.mixes else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_cuda(model)
        clips, labels = _clips(config, "cuda"), torch.empty(4, dtype=torch.int64, device="cuda")

        def step() -> Tensor:
            if mixup is None:
                return nn.functional.cross_entropy(model(clips).float(), labels)
            mixed, targets = mixup(clips.float(), labels)
            return SoftTargetCrossEntropy()(model(mixed).float(), targets)

        return _faults(step)


def _shallow(name: str, *changes: str) -> Config:
    config = load_config(name, ["model.depth=2", *changes])
    return config if config.task == "finetune" else config.updated({"model.decoder_depth": 2})


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_stay_on_the_gpu(name: str) -> None:
    config = _shallow(name)
    assert (_pretraining_faults if config.task == "pretrain" else _finetuning_faults)(config) == set()


@pytest.mark.parametrize("changes", OPTIONS)
def test_options_stay_on_the_gpu(changes: str) -> None:
    assert _pretraining_faults(_shallow("vitb_k400", *changes.split())) == set()


@pytest.mark.parametrize("mode", MODES)
def test_fine_tuning_stays_on_the_gpu(mode: str) -> None:
    assert _finetuning_faults(_shallow("finetune_vitb_k400", f"finetune.mode={mode}")) == set()


def test_faults_are_seen() -> None:
    with FakeTensorMode():
        there, here = torch.ones((), device="cuda"), torch.ones(())
        assert _seen(lambda: there + here) == {"aten.add.Tensor reads a tensor of the CPU"}
        assert _seen(lambda: there.cpu()) == {"aten._to_copy.default makes a tensor of the CPU"}
        with pytest.raises(DataDependentOutputException):
            there.item()
        with pytest.raises(DynamicOutputShapeException):
            there.nonzero()


def _seen(step: Callable[[], Any]) -> set[str]:
    with Watch() as watch:
        step()
    return watch.faults


TINY = ["clip.size=32", "clip.frames=4", "model.width=48", "model.depth=1", "model.heads=3"]
TINY_DECODER = ["model.decoder_width=48", "model.decoder_depth=1", "model.decoder_heads=3"]


@pytest.mark.parametrize("changes", OPTIONS)
def test_pretraining_is_one_graph(changes: str) -> None:
    config = load_config("vitb_k400", [*TINY, *TINY_DECODER, *changes.split()])
    _assert_one_graph(MotionMAE(config), _clips(config, "cpu"), torch.arange(4), _flow(config, "cpu"))


@pytest.mark.parametrize("mode", MODES)
def test_fine_tuning_is_one_graph(mode: str) -> None:
    config = load_config("finetune_vitb_k400", [*TINY, f"finetune.mode={mode}", "finetune.drop_path=0.1"])
    _assert_one_graph(build_classifier(config, 10).train(), _clips(config, "cpu"))


def _assert_one_graph(model: nn.Module, *inputs: Any) -> None:
    torch._dynamo.reset()
    found = torch._dynamo.explain(model)(*inputs)
    torch._dynamo.reset()
    assert (found.graph_count, [str(reason.reason) for reason in found.break_reasons]) == (1, [])
