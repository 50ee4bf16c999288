from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any

import pytest

from motionmae.data.remote.download import RemoteFolder


def test_the_delay_before_a_retry_doubles_up_to_a_minute_and_ends_when_the_folder_is_closed():
    waited: list[float] = []
    folder: Any = RemoteFolder.__new__(RemoteFolder)
    folder.closed = SimpleNamespace(wait=waited.append)
    for retry in range(8):
        folder.pause(retry)
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60]
    folder.closed = SimpleNamespace(wait=lambda seconds: True)
    with pytest.raises(CancelledError):
        folder.pause(0)
