"""From a folder of videos to transformers, by the commands that `motionmae init` prints."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import motionmae
from tests.data_tools.videos import draw_frames, write_video

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["optim.epochs=1", "optim.warmup_epochs=0.5", "validation.every_epochs=1"]


def run(here: Path, *argv: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "motionmae", *argv],
        cwd=here, capture_output=True, text=True, timeout=300, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(here), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.long
def test_the_printed_commands_lead_to_the_logits_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, height in (("high", 96), ("wide", 48)):
        for number in range(10):
            write_video(tmp_path / "data/mine" / name / f"{number}.mp4", draw_frames(20, 64, height))
    printed = run(tmp_path, "init", "data/mine")
    for line in filter(lambda line: line.startswith("  motionmae"), printed.splitlines()):
        words = shlex.split(line)[1:]
        run(tmp_path, *words, *(QUICK if words[0] in ("pretrain", "finetune") else ()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes((tmp_path / "data/mine/wide/3.mp4").read_bytes())
    code = re.search(r"```python\n(.*?)```", (tmp_path / "mine_hf/README.md").read_text(), re.DOTALL)
    assert code
    theirs: dict[str, object] = {}
    exec(code[1], theirs)  # the model card's code: PyAV and transformers alone
    logits = theirs["model"](**theirs["inputs"]).logits[0].detach().numpy()  # type: ignore[operator]
    np.testing.assert_allclose(motionmae.load("mine_hf").predict("clip.mp4").logits[0], logits, atol=1e-4)
