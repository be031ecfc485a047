"""Hashes of what was seen, in some 10 bytes each: in a set of Python's they take some 75."""

import numpy as np

FEWEST, SHARE = 2**12, 16  # so many, or so large a part, stand in a set of Python's before they are sorted in


class Hashes:
    """A set of 64-bit hashes that only grows."""

    def __init__(self) -> None:
        """An empty set."""
        self._sorted = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def __contains__(self, key: int) -> bool:
        """Whether a hash was added; of one that is longer or negative, its lowest 64 bits count."""
        key %= 2**64
        if key in self._recent:
            return True
        at = int(self._sorted.searchsorted(np.uint64(key)))
        return at < len(self._sorted) and int(self._sorted[at]) == key

    def add(self, key: int) -> bool:
        """Add a hash; whether it is new."""
        if key in self:
            return False
        self._recent.add(key % 2**64)
        if len(self._recent) >= max(FEWEST, len(self._sorted) // SHARE):
            recent = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._sorted = np.insert(self._sorted, self._sorted.searchsorted(recent), recent)
            self._recent = set()
        return True

    def __len__(self) -> int:
        """Hashes in it."""
        return len(self._sorted) + len(self._recent)
