import pytest

from slurm import scontrol
from tests.slurm.fakes.controller import Controller


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    found = Controller()
    monkeypatch.setattr(scontrol, "_run", found.run)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return found
