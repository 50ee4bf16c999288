"""Settings in which two configurations differ, as data and as lines for people."""

import json
from collections.abc import Iterator
from typing import Any

from motionmae.config.schema import Config, absolute_paths
from motionmae.config.trees import flat

_OF_THE_RUN = ("name", "task")
"""What a run is, rather than how it runs: no new run prints it as different from a default."""


def differences(config: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Return the values in ``config`` and in ``other``, as JSON types, of each key whose values differ."""
    now, before = (flat(each.model_dump(mode="json")) for each in (config, other))
    return {key: (now[key], before[key]) for key in now if now[key] != before[key]}


def describe_differences(config: Config, last: Config | None = None) -> Iterator[str]:
    """Yield the settings that differ from the defaults or, with ``last``, from the last attempt of the run."""
    other = last or Config().updated({key: getattr(config, key) for key in _OF_THE_RUN})
    # a relative path and the same as an absolute one are one setting; it is printed as it was given
    places = differences(absolute_paths(config), absolute_paths(other))
    changed = {key: values for key, values in differences(config, other).items() if key in places}
    title, word = ("the last attempt of this run", "was") if last else ("the defaults", "default")
    differ = "1 setting differs" if len(changed) == 1 else f"{len(changed) or 'no'} settings differ"
    yield f"{differ} from {title}{':' if changed else ''}"
    width = max(map(len, changed), default=0)
    for key, values in changed.items():
        now, before = map(json.dumps, values)
        yield f"  {key:{width}}  {now}  ({word} {before})"
