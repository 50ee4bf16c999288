"""Write features to files: npz for numpy, parquet for data frames."""

import io
from collections.abc import Callable

import numpy as np

from motionmae.errors import UserError
from motionmae.evaluation.inference import Results


def as_npz(results: Results) -> bytes:
    """Pack results as npz: ``names``, ``features`` (float32, one row per name), ``unreadable`` and ``reasons``."""
    content = io.BytesIO()
    np.savez(
        content,
        names=np.array(list(results.values)),
        features=np.stack(list(results.values.values())) if results.values else np.empty((0, 0), np.float32),
        unreadable=np.array(list(results.unreadable)),
        reasons=np.array(list(results.unreadable.values())),
    )
    return content.getvalue()


def as_parquet(results: Results) -> bytes:
    """Pack results as parquet, one row per video: ``name``, ``feature`` (list of float32) and ``reason``.

    ``feature`` is null for an unreadable video, ``reason`` is null for all other videos.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("writing .parquet needs pyarrow: pip install 'motionmae[parquet]', or choose .npz") from error
    names = [*results.values, *results.unreadable]
    features = [*results.values.values(), *(None for _ in results.unreadable)]
    table = pyarrow.table(
        {
            "name": pyarrow.array(names, pyarrow.string()),
            "feature": pyarrow.array(features, pyarrow.list_(pyarrow.float32())),
            "reason": pyarrow.array([results.unreadable.get(name) for name in names], pyarrow.string()),
        }
    )
    content = io.BytesIO()
    parquet.write_table(table, content)
    return content.getvalue()


WRITERS: dict[str, Callable[[Results], bytes]] = {".npz": as_npz, ".parquet": as_parquet}
"""Maps the extension of a file to its writer."""
