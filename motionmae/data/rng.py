"""Random numbers keyed by (seed, epoch, sample, repeat), independent of the worker and of the order of decoding.

The numbers come from BLAKE2b in counter mode. They are the same on every machine and in every version of numpy, whose
``Generator`` may change its streams between releases.
"""

import hashlib
import struct

_BLOCK_WORDS = 8  # 64-bit words of one BLAKE2b digest


def keyed_bits(purpose: str, *key: int) -> int:
    """Return the first 64 bits of :class:`KeyedRandom` as an integer."""
    return KeyedRandom(purpose, *key).bits()


def mask_seed(seed: int, epoch: int, sample: int, repeat: int) -> int:
    """Return the seed of a clip's mask, in [0, 2^63). It is equal on every rank and in every attempt."""
    return keyed_bits("mask", seed, epoch, sample, repeat) >> 1


class KeyedRandom:
    """Counter-based generator. Equal keys give equal numbers, different keys give independent numbers.

    Args:
        purpose: at most 16 ASCII letters. Two purposes give independent numbers.
        key: 64-bit integers, signed or unsigned, e.g. seed, epoch, sample, repeat.
    """

    def __init__(self, purpose: str, *key: int):
        packed = struct.pack(f"<{len(key)}Q", *(part & (2**64 - 1) for part in key))
        self._hash = hashlib.blake2b(packed, person=purpose.encode())
        self._block = 0
        self._words: list[int] = []

    def bits(self) -> int:
        """Draw 64 random bits as an integer in [0, 2^64)."""
        if not self._words:
            block = self._hash.copy()
            block.update(struct.pack("<Q", self._block))
            self._block += 1
            self._words = list(struct.unpack(f"<{_BLOCK_WORDS}Q", block.digest()))
        return self._words.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw a float from [low, high)."""
        return low + (high - low) * (self.bits() >> 11) * 2.0**-53

    def below(self, count: int) -> int:
        """Draw an integer from [0, count), without measurable bias for ``count`` up to 2^32."""
        return (self.bits() * count) >> 64
