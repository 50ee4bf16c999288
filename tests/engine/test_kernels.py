"""Choice of attention kernels: the key counts that the model really uses, and the switch for the faulty ones."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from motionmae.config import load_config
from motionmae.config.load import known_configs
from motionmae.engine import kernels
from motionmae.engine.kernels import choose_kernels, cudnn_attention_may_fail, key_counts
from motionmae.models import vit
from motionmae.models.classifier import build_classifier
from motionmae.models.motionmae import build_motionmae

SMALL = ["model.width=24", "model.heads=2", "model.depth=2"]
CASES = ["vitl_ssv2_32f", "vitb_k400", "vitb_ucf101", "maest_vitb_k400", "finetune_vitb_k400"]


@pytest.mark.parametrize("name", CASES)
def test_key_counts_are_those_of_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = [] if name.startswith("finetune") else ["model.decoder_width=24", "model.decoder_heads=2"]
    config = load_config(name, [*SMALL, *decoder])
    seen = set()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.add(k.shape[2])
        return scaled_dot_product_attention(q, k, v)

    monkeypatch.setattr(vit, "attend", attend)
    model = build_classifier(config, 4) if config.task == "finetune" else build_motionmae(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        clips = torch.empty(1, config.clip.frames, config.clip.size, config.clip.size, 3, dtype=torch.uint8)
        model(clips, *([] if config.task == "finetune" else [torch.zeros(1, dtype=torch.int64)]))
    assert seen == set(key_counts(config))


def test_the_faulty_kernel_is_off_for_64_modulo_128_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92400)
    risky = {name for name in known_configs() if "/" not in name and cudnn_attention_may_fail(load_config(name))}
    assert "vitl_ssv2_32f" in risky  # 320 and 3136 keys
    assert risky.isdisjoint({"vitb_k400", "vitl_k400", "finetune_vitb_k400"})  # 160 and 1568 keys
    try:
        choose_kernels(load_config("vitb_k400"), torch.device("cuda"))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        choose_kernels(load_config("vitl_ssv2_32f"), torch.device("cpu"))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        choose_kernels(load_config("vitl_ssv2_32f"), torch.device("cuda"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92600)  # mended
    assert not cudnn_attention_may_fail(load_config("vitl_ssv2_32f"))


@pytest.mark.parametrize(
    ("version", "keys", "fails"),
    [
        (92599, [64], True),
        (92600, [64], False),
        (None, [64], True),
        (90000, [192, 128], True),
        (90000, [128, 192], True),
        (90000, [128, 63, 65, 32, 256], False),
        (90000, [3136], True),
    ],
)
def test_64_modulo_128_keys_fail_before_cudnn_9_26(
    monkeypatch: pytest.MonkeyPatch, version: int | None, keys: list[int], fails: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    monkeypatch.setattr(kernels, "key_counts", lambda config: keys)
    assert cudnn_attention_may_fail(load_config("vitb_k400")) is fails


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_kernels_are_chosen_on_every_device(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    chosen = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    config = load_config("vitb_k400", [f"engine.deterministic={str(deterministic).lower()}"])
    choose_kernels(config, torch.device("cpu"))
    assert chosen == ([True] if deterministic else [])
    assert torch.backends.cudnn.benchmark is not deterministic
