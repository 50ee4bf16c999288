"""The commands of `motionmae` as functions of their arguments."""

from collections.abc import Sequence
from functools import partial

from motionmae.commands import app


def run(name: str, argv: Sequence[str]) -> int:
    """Run the command called ``name`` in this process and return its exit status."""
    return app.main([*name.split(), *argv])


make_shards = partial(run, "shards make")
make_toy_dataset = partial(run, "shards toy")
make_beton = partial(run, "shards beton")
verify = partial(run, "shards verify")
stats = partial(run, "shards stats")
preview = partial(run, "shards preview")
merge = partial(run, "shards merge")
motion_labels = partial(run, "shards motion-labels")
submit = partial(run, "submit")
submit_shards = partial(run, "shards submit")
