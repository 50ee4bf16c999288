"""Training does not pay for the imports of optional packages that timm and DeepSpeed make."""

import subprocess
import sys

import pytest

from motionmae.slow_imports import without_package


def test_a_package_is_missing_meanwhile_and_there_afterwards() -> None:
    with without_package("zipapp"), pytest.raises(ImportError):
        import zipapp
    import zipapp

    with without_package("zipapp"):  # imported already
        import zipapp as again
    assert again is zipapp


def test_a_failing_import_leaves_no_mark() -> None:
    with pytest.raises(ZeroDivisionError), without_package("no_such_package"):
        1 / 0  # noqa: B018
    assert "no_such_package" not in sys.modules


def test_a_rank_imports_no_tracker() -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    text = """
import sys
import torch
from motionmae.training import setup
setup.import_deepspeed(torch.device("cpu"))
print([name for name in ("wandb", "mlflow") if name in sys.modules])
import mlflow, wandb
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
