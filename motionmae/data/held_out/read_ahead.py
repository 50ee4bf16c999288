"""Read inputs ahead in threads, in their order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from motionmae.data.shards.errors import CorruptSample
from motionmae.data.video.read_video import UnreadableVideo

Name = TypeVar("Name")
Value = TypeVar("Value")

UNREADABLE = (CorruptSample, UnreadableVideo)
"""Exceptions that unreadable videos raise."""


def read_ahead(
    names: Iterable[Name],
    read: Callable[[Name], Value],
    threads: int,
    caught: tuple[type[Exception], ...] = UNREADABLE,
) -> Iterator[tuple[Name, Value | Exception]]:
    """Yield each name with its input, or with the exception of ``read``. Read at most two inputs per thread ahead."""

    def attempt(name: Name) -> Value | Exception:
        try:
            return read(name)
        except caught as error:
            return error

    left = iter(names)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[Name, Future[Value | Exception]]] = deque()
        try:
            for name in left:
                ahead.append((name, pool.submit(attempt, name)))
                if len(ahead) > 2 * threads:
                    name, future = ahead.popleft()
                    yield name, future.result()
            for name, future in ahead:
                yield name, future.result()
        finally:
            for _, future in ahead:
                future.cancel()
