"""Model of the duration of a training step on many GPUs (alpha-beta model: S bytes take alpha + S / beta seconds).

A ring of n ranks all-reduces S bytes in 2 (n - 1) rounds of S / n bytes. A reduce-scatter or an all-gather takes half
as long (Patarasuk and Yuan, 2009). Over several nodes an all-reduce has three parts, as in NCCL: a reduce-scatter in
each node, an all-reduce of the shards between nodes, and an all-gather in each node. Between nodes NCCL uses a ring or
a double binary tree (2 log2 m rounds, full bandwidth), whichever is faster.
"""

from dataclasses import dataclass
from math import ceil, log2

FP32 = 4


@dataclass(frozen=True)
class Link:
    """Connection between two ranks."""

    alpha: float  # latency in seconds
    beta: float  # bandwidth in bytes per second and direction

    def seconds(self, size: float) -> float:
        """Return the seconds of one message of ``size`` bytes."""
        return self.alpha + size / self.beta

    def shared(self, factor: float) -> "Link":
        """Return a link that is ``factor`` times slower, because processes share a core."""
        return Link(self.alpha * factor, self.beta / factor)


@dataclass(frozen=True)
class Network:
    """Links of a cluster with ``per_node`` ranks per node."""

    inside: Link  # between ranks of a node
    outside: Link  # of one rank to other nodes: its network card, or its share of one
    per_node: int
    reducing: Link | None = None  # for reductions in a node if adding is slower than copying (gloo); None: ``inside``

    def all_gather(self, size: float, ranks: int) -> float:
        """Return the seconds of an all-gather whose result has ``size`` bytes."""
        local, nodes = self._shape(ranks)
        return _ring_half(self.inside, size, local) + _between_half(self.outside, size / local, nodes)

    def all_reduce(self, size: float, ranks: int) -> float:
        """Return the seconds of an all-reduce of ``size`` bytes."""
        local, nodes = self._shape(ranks)
        tree = 2 * ceil(log2(nodes)) * self.outside.alpha + 2 * size / local / self.outside.beta if nodes > 1 else 0.0
        between = min(2 * _ring_half(self.outside, size / local, nodes), tree)
        return 2 * _ring_half(self.reducing or self.inside, size, local) + between

    def reduce_scatter(self, size: float, ranks: int) -> float:
        """Return the seconds of a reduce-scatter of ``size`` bytes."""
        return self.all_reduce(size, ranks) / 2

    def _shape(self, ranks: int) -> tuple[int, int]:
        local = min(ranks, self.per_node)
        return local, ceil(ranks / local)


def _ring_half(link: Link, size: float, ranks: int) -> float:
    return (ranks - 1) * link.seconds(size / ranks)


def _between_half(link: Link, size: float, nodes: int) -> float:
    """Return half the seconds of an all-reduce between nodes: a ring, or recursive doubling for small messages."""
    moved = size * (nodes - 1) / nodes / link.beta  # by both algorithms
    return min(nodes - 1, ceil(log2(nodes)) if nodes > 1 else 0) * link.alpha + moved


@dataclass(frozen=True)
class Work:
    """Computation of one rank per micro-batch in seconds, and the size of its messages."""

    forward: float
    backward: float
    optimizer: float  # seconds per step without ZeRO; from stage 1 on, ZeRO divides them by the ranks
    parameters: int
    matrices: int  # number of parameter tensors that ZeRO-3 partitions; each is a message
    sends_16_bits: bool = False  # engine.reduce_dtype=bf16: gradients, and the matrices of stage 3


@dataclass(frozen=True)
class Parts:
    """Seconds of one step."""

    compute: float
    hidden: float  # communication that overlaps with the backward pass
    exposed: float  # communication that the step waits for

    @property
    def step(self) -> float:
        return self.compute + self.exposed


def step_parts(
    work: Work, network: Network, ranks: int, stage: int, *, bucket: int, overlap: float = 0.0, micro_batches: float = 1
) -> Parts:
    """Return the seconds of a step on ``ranks`` ranks.

    DeepSpeed 0.19 communicates as follows:

    - stage 0: one all-reduce of all gradients;
    - stages 1, 2: an all-reduce of the gradients in buckets after the last micro-batch (1) or every micro-batch (2),
      and an all-gather of the updated parameters after the step;
    - stage 3: an all-gather of every matrix before its use, and a reduce-scatter of the gradients in buckets.

    All values are float32 unless ``work.sends_16_bits``; updated parameters always are.

    Args:
        stage: ZeRO stage.
        bucket: number of values in a message.
        overlap: fraction of the backward pass that overlaps with gradients, at stages 1 to 3 (``engine.overlap_comm``).
        micro_batches: micro-batches per step; a fraction stands for a smaller micro-batch.
    """
    size = float(FP32 * work.parameters)
    sent = size / 2 if work.sends_16_bits else size
    messages = ceil(work.parameters / bucket)
    passes = max(micro_batches, 1) if stage >= 2 else 1
    compute = micro_batches * (work.forward + work.backward) + work.optimizer / (ranks if stage else 1)
    if ranks == 1:
        return Parts(compute, 0.0, 0.0)
    if stage == 0:
        reducing, gathering = network.all_reduce(sent, ranks), 0.0
    elif stage < 3:
        reducing = passes * messages * network.all_reduce(sent / messages, ranks)
        gathering = messages * network.all_gather(size / messages, ranks)
    else:
        reducing = passes * messages * network.reduce_scatter(sent / messages, ranks)
        gathering = passes * work.matrices * network.all_gather(sent / work.matrices, ranks)
    hidden = min(reducing, overlap * work.backward * micro_batches) if stage else 0.0
    return Parts(compute, hidden, reducing - hidden + gathering)
