"""Stored losses of 50 steps. A refactoring or a faster implementation must not change them.

After an intended change (other initial weights, other masks), write them again with
``python -m tests.models.test_golden`` and give the reason in the commit.
"""

import json
from pathlib import Path

import pytest
import torch

from motionmae.config import Config
from motionmae.models.motionmae import build_motionmae, no_decay
from tests.models.tiny import moving_clips, needs_pinned_torch, tiny

STORED = Path(__file__).with_name("golden_losses.json")
STEPS = 50
CONFIGS = {
    "motionmae_random": tiny(mask={"kind": "random"}, target={"normalize": False}),  # Table 6a, SSv2
    "motionmae_tube": tiny(mask={"kind": "tube"}),  # Table 6a, K400
    "videomae": tiny(mask={"kind": "tube"}, target={"kind": "frame"}),
}


def losses(config: Config) -> dict[str, list[float]]:
    """Train on two clips for :data:`STEPS` steps, with new masks in every step and AdamW grouped as in Table 6a."""
    model = build_motionmae(config)
    without_decay = no_decay(model)
    groups = [
        {"params": [w for n, w in model.named_parameters() if n not in without_decay], "weight_decay": 0.05},
        {"params": [w for n, w in model.named_parameters() if n in without_decay], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    clips = moving_clips(config, 2)
    rows = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 20)
        found = model(clips, torch.arange(2 * step, 2 * step + 2))
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        rows.append([loss.item() for loss in found])
    return {name: [row[i] for row in rows] for i, name in enumerate(("total", "space", "time"))}


@needs_pinned_torch
@pytest.mark.parametrize("name", CONFIGS)
def test_losses_are_the_stored_ones(name: str):
    found, stored = losses(CONFIGS[name]), json.loads(STORED.read_text())[name]
    for part in ("total", "space", "time"):
        # rounding errors grow with the steps; a change of the method exceeds 1e-5 in the first steps by far
        assert found[part][:5] == pytest.approx(stored[part][:5], rel=1e-5, abs=1e-8)
        assert found[part] == pytest.approx(stored[part], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_stored_losses_fall(name: str):
    stored = json.loads(STORED.read_text())[name]
    for part in ("space", "time"):
        assert sum(stored[part][-5:]) <= 0.9 * 5 * stored[part][0]


if __name__ == "__main__":
    rows = {
        name: {part: [float(f"{value:.8g}") for value in values] for part, values in losses(config).items()}
        for name, config in CONFIGS.items()
    }
    STORED.write_text(json.dumps(rows) + "\n")
