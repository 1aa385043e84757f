"""Keys of branches, and the words that a hash makes of them: all that a draw's noise depends on.

Knows integers; nothing of logits, devices or branches. A root's key is hash(seed, prompt), a child's
hash(parent, index), never arrival order. The noise of a token is mixed, on the device, from its own
word and the two words of its draw's key and position: see sampling.py.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MASK64 = (1 << 64) - 1

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A, _MIX_B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64 (Steele, Lea and Flood 2014)
_DRAW = 0x5851F42D4C957F2D  # keeps a key's draws apart from its children
_TEST, _GUESS = 0xD1342543DE82EF95, 0xA0761D6478BD642F  # and these, tests and guesses from both


def root_key(seed: int, tokens: Sequence[int]) -> int:
    """The 64-bit key of a root: hash(seed, prompt), for any integer seed."""
    digest = hashlib.blake2b(f"{seed}:".encode(), digest_size=8)
    digest.update(np.asarray(tokens, dtype="<i8").tobytes())
    return int.from_bytes(digest.digest(), "little")


def child_key(parent: int, index: int) -> int:
    """The 64-bit key of a branch's child number `index` (one step of splitmix64)."""
    z = (parent + _GOLDEN * (index + 1)) & MASK64
    z = ((z ^ (z >> 30)) * _MIX_A) & MASK64
    z = ((z ^ (z >> 27)) * _MIX_B) & MASK64
    return z ^ (z >> 31)


def guess_key(key: int, length: int) -> int:
    """The 64-bit key of the guesses of a branch after its first `length` tokens: independent of its own draws and of all other guesses."""
    return child_key(key ^ _GUESS, length)


def draw_words(keys: Sequence[int], positions: Sequence[int]) -> NDArray[np.int32]:
    """Two mixed 32-bit words of each draw's key and position: (draws, 2)."""
    words = _mixed(keys, positions, _DRAW).astype("<u8").view("<i4")
    return words.astype(np.int32).reshape(-1, 2)


def uniforms(keys: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """A number in (0, 1) for each key and position, independent of what is drawn there: (draws,)."""
    high = _mixed(keys, positions, _TEST) >> np.uint64(11)
    return (high.astype(np.float64) + 0.5) * 2.0**-53


def token_words(n: int) -> NDArray[np.int32]:
    """Mixed words of the ids below `n`, all different since the mixer is a bijection: (n,)."""
    x = np.arange(n, dtype=np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)  # murmur3's finalizer
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return (x ^ (x >> np.uint32(16)) ^ np.uint32(0x9E3779B9)).view(np.int32)


def _mixed(keys: Sequence[int], positions: Sequence[int], salt: int) -> NDArray[np.uint64]:
    k = np.array([key & MASK64 for key in keys], dtype=np.uint64)
    p = np.array([position & MASK64 for position in positions], dtype=np.uint64)
    return _splitmix(_splitmix(k ^ np.uint64(salt)) + p * np.uint64(_GOLDEN))


def _splitmix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_A)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_B)
    return z ^ (z >> np.uint64(31))
