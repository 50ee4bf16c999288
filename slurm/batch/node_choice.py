"""Choice of the nodes of an attempt among those that the job holds."""

from collections.abc import Collection, Sequence


def choose_nodes(held: Sequence[str], avoided: Collection[str], counts: Sequence[int]) -> list[str]:
    """Return the first of the ``held`` nodes that are not ``avoided``, as many as ``counts`` allows; empty if too few.

    ``counts`` are the numbers of nodes on which the run can train, the largest first.
    """
    good = [node for node in held if node not in avoided]
    return good[: next((count for count in counts if count <= len(good)), 0)]
