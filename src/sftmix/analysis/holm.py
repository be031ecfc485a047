"""Holm's correction of the p-values of a table (Holm 1979, Scandinavian Journal of Statistics 6, 65)."""

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: those of at most 0.05 are, all together, wrong in at most 5% of tables.

    The k-th smallest of m is multiplied by m - k + 1 and is no less than those before it. A nan is no test: it stays,
    and does not count.
    """
    order = sorted((k for k, p in enumerate(p_values) if not math.isnan(p)), key=lambda k: p_values[k])
    adjusted, least = list(p_values), 0.0
    for rank, k in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[k]))
        adjusted[k] = least
    return adjusted
