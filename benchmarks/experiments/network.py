"""How long a training step takes on many GPUs, by the alpha-beta model: a message of S bytes takes alpha + S / beta.

A ring of n ranks all-reduces S bytes in 2 (n - 1) rounds of S / n bytes; a reduce-scatter or an all-gather takes half
of that (Patarasuk and Yuan, 2009). Over several nodes it is done in three parts, as NCCL does: reduce-scatter in each
node, all-reduce between nodes of what each local rank holds, all-gather in each node. Between nodes NCCL takes a ring
or a double binary tree (2 log2 m rounds, full bandwidth), whichever is faster.
"""

from dataclasses import dataclass
from math import ceil, log2

FP32 = 4


@dataclass(frozen=True)
class Link:
    """One rank's way to another."""

    alpha: float
    """Seconds before a message's first byte arrives."""
    beta: float
    """Bytes a second in one direction."""

    def seconds(self, size: float) -> float:
        """Time of one message."""
        return self.alpha + size / self.beta

    def shared(self, factor: float) -> "Link":
        """The link where everything takes ``factor`` times as long, since what drives it is shared."""
        return Link(self.alpha * factor, self.beta / factor)


@dataclass(frozen=True)
class Network:
    """Nodes of ``per_node`` ranks."""

    inside: Link
    outside: Link
    """Of one rank between nodes: each has a network card of its own, or its share of one."""
    per_node: int
    reducing: Link | None = None
    """``inside`` for sums, where adding up is slower than copying (gloo)."""

    def all_gather(self, size: float, ranks: int) -> float:
        """Seconds until every rank has all ``size`` bytes, of which each brought its share."""
        local, nodes = self._shape(ranks)
        return _ring_half(self.inside, size, local) + _between_half(self.outside, size / local, nodes)

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds until every rank has the sum of all ranks' ``size`` bytes."""
        local, nodes = self._shape(ranks)
        tree = 2 * ceil(log2(nodes)) * self.outside.alpha + 2 * size / local / self.outside.beta if nodes > 1 else 0.0
        between = min(2 * _ring_half(self.outside, size / local, nodes), tree)
        return 2 * _ring_half(self.reducing or self.inside, size, local) + between

    def reduce_scatter(self, size: float, ranks: int) -> float:
        """Seconds until every rank has its share of that sum."""
        return self.all_reduce(size, ranks) / 2

    def _shape(self, ranks: int) -> tuple[int, int]:
        local = min(ranks, self.per_node)
        return local, ceil(ranks / local)


def _ring_half(link: Link, size: float, ranks: int) -> float:
    return (ranks - 1) * link.seconds(size / ranks)


def _between_half(link: Link, size: float, nodes: int) -> float:
    """A ring, or recursive doubling where latency is what counts; both move (m - 1) / m of the bytes."""
    moved = size * (nodes - 1) / nodes / link.beta
    return min(nodes - 1, ceil(log2(nodes)) if nodes > 1 else 0) * link.alpha + moved


@dataclass(frozen=True)
class Work:
    """What one rank does by itself in a micro-batch, in seconds, and what it then has to send."""

    forward: float
    backward: float
    optimizer: float
    """Of a step, alone; ZeRO shares it from stage 1 on."""
    parameters: int
    matrices: int
    """Parameters so large that ZeRO-3 partitions them; each is a message."""
    autocast: bool = False
    """Whether linear layers compute in 16 bits; from stage 1 on DeepSpeed then sends their gradients so."""


@dataclass(frozen=True)
class Parts:
    """Seconds of one step."""

    compute: float
    hidden: float
    """Communication behind the backward pass."""
    exposed: float
    """Communication that is waited for."""

    @property
    def step(self) -> float:
        """All of it but what is hidden."""
        return self.compute + self.exposed


def step_parts(
    work: Work, network: Network, ranks: int, stage: int, *, bucket: int, overlap: float = 0.0, micro_batches: float = 1
) -> Parts:
    """Seconds of a step on ``ranks`` ranks.

    What DeepSpeed 0.19 sends:

    - stage 0: all gradients in one all-reduce, in float32;
    - stages 1, 2: gradients all-reduced in buckets (it copies out each rank's share afterwards), after the last
      micro-batch (1) or every one (2), and an all-gather of the updated parameters after the step, in float32;
    - stage 3: an all-gather of every matrix before its use, and a reduce-scatter of gradients in buckets.

    Under autocast gradients of stages 1 to 3, and the matrices of stage 3, take 16 bits of each value.

    Args:
        work: of a rank.
        network: between ranks.
        ranks: how many.
        stage: of ZeRO.
        bucket: values of a message.
        overlap: share of the backward pass behind which gradients may travel (0: DeepSpeed's ``overlap_comm`` off).
        micro_batches: of a step; a part of one stands for a smaller one.
    """
    size = float(FP32 * work.parameters)
    sent = size / 2 if work.autocast else size
    messages = ceil(work.parameters / bucket)
    passes = max(micro_batches, 1) if stage >= 2 else 1
    compute = micro_batches * (work.forward + work.backward) + work.optimizer / (ranks if stage else 1)
    if ranks == 1:
        return Parts(compute, 0.0, 0.0)
    if stage == 0:
        reducing, gathering = network.all_reduce(size, ranks), 0.0
    elif stage < 3:
        reducing = passes * messages * network.all_reduce(sent / messages, ranks)
        gathering = messages * network.all_gather(size / messages, ranks)
    else:
        reducing = passes * messages * network.reduce_scatter(sent / messages, ranks)
        gathering = passes * work.matrices * network.all_gather(sent / work.matrices, ranks)
    hidden = min(reducing, overlap * work.backward * micro_batches)
    return Parts(compute, hidden, reducing - hidden + gathering)
