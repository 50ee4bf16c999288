import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from slurm.job_state import JobRecord
from tests.slurm.fakes.jobs import Starter, start_job


@pytest.fixture
def start() -> Iterator[Starter]:
    """:func:`start_job`. The processes of its jobs are killed at the end of the test."""
    records: list[JobRecord] = []

    def start_and_record(*arguments: Any, **values: int) -> JobRecord:
        records.append(start_job(*arguments, **values))
        return records[-1]

    yield start_and_record
    for record in records:
        with suppress(ProcessLookupError):
            os.killpg(int(record.job_id), signal.SIGKILL)
