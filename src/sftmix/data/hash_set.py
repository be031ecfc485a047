"""A set of hashes that takes few bytes. It has its own module, since a config error is reported without numpy."""

import numpy as np

MOST_UNSORTED = 2**12  # hashes that a small HashSet keeps in a Python set before it sorts them in


class HashSet:
    """A set of 64-bit hashes in about 10 bytes each, where a Python set takes about 75. Hashes are never removed."""

    def __init__(self) -> None:
        """Create an empty set."""
        self._sorted = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def __contains__(self, key: int) -> bool:
        """Return whether a hash was added. Only the lowest 64 bits of a longer or negative hash count."""
        key %= 2**64
        if key in self._recent:
            return True
        at = int(self._sorted.searchsorted(np.uint64(key)))
        return at < len(self._sorted) and int(self._sorted[at]) == key

    def add(self, key: int) -> bool:
        """Add a hash; return whether it is new."""
        if key in self:
            return False
        self._recent.add(key % 2**64)
        if len(self._recent) >= max(MOST_UNSORTED, len(self._sorted) // 16):
            recent = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._sorted = np.insert(self._sorted, self._sorted.searchsorted(recent), recent)
            self._recent = set()
        return True

    def __len__(self) -> int:
        """Return the number of hashes."""
        return len(self._sorted) + len(self._recent)
