"""A run that really trained, once for all tests that look at runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from motionmae.config import save_config
from tests.training.shards import make_shards, tiny_run


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of nine steps, pre-trained by the command a user would type."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_run(make_shards(folder / "shards"), folder / "runs")
    save_config(config, folder / "config.yaml")
    subprocess.run([sys.executable, "-m", "motionmae", "pretrain", "--config", str(folder / "config.yaml")], check=True)
    return folder / "runs" / "tiny"
