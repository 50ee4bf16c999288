"""A run's model as its checkpoints have it, and the commands that draw with it."""

import shutil
from pathlib import Path

import cv2
import pytest
import torch

from motionmae.__main__ import main
from motionmae.errors import UserError
from motionmae.evaluation.load_model import load_pretrained
from motionmae.models.motionmae import build_motionmae

pytestmark = pytest.mark.long


def test_weights_are_those_of_the_checkpoint(trained_run: Path) -> None:
    newest, older = load_pretrained(trained_run), load_pretrained(trained_run, step=8)
    assert (newest.step, older.step) == (9, 8)
    assert not newest.model.training
    fresh = build_motionmae(newest.config).state_dict()
    for name, weight in newest.model.state_dict().items():
        assert not torch.equal(weight, older.model.state_dict()[name]), name
        assert weight.shape == fresh[name].shape


def test_missing_step_names_those_there(trained_run: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint of step 5: choose from the saved steps \(6, 8, 9\)"):
        load_pretrained(trained_run, step=5)


def test_damaged_checkpoint_is_refused(trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    victim = next((run / "checkpoints" / "step-00000009").glob("model-*"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(UserError, match=r"sha256"):
        load_pretrained(run)
    assert load_pretrained(run, step=8).step == 8


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        load_pretrained(tmp_path)


def test_reconstruct_command(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    assert main(["reconstruct", str(trained_run), "--out", str(out), "--ratio", "0.5", "0.9"]) == 0
    assert cv2.imread(str(out)).std() > 10
    assert main(["reconstruct", str(trained_run), "--samples", "999"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "999" in message
