"""Coverage and width of the interval over seeds and examples, by simulation with known variances.

Each case draws tables d[s, e] = A_s + B_e + R_se (no difference of recipes) and counts how often the 95% interval of
`hierarchical_difference` excludes 0. "width" is the mean width over that of the ideal interval, +-1.96 sqrt(V) with the
true V = v_A / n + v_B / m + v_R / (n m), as if the variances were known. The last line is JSON.

    python benchmarks/intervals.py --cases 4000
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sftmix.analysis.paired import difference_of_seeds, hierarchical_difference

Draw = Callable[[np.random.Generator, int | tuple[int, ...]], NDArray[np.float64]]  # variance 1


def normal(rng: np.random.Generator, size: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Normal draws."""
    return rng.normal(size=size)


def heavy(rng: np.random.Generator, size: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Student's t with 3 degrees of freedom."""
    return rng.standard_t(3, size=size) / np.sqrt(3)


def skewed(rng: np.random.Generator, size: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Exponential draws."""
    return rng.exponential(size=size) - 1


# name: v_A, v_B and v_R for n seeds and m examples, then how seeds and how examples and the rest are drawn
CASES: dict[str, tuple[Callable[[int, int], tuple[float, float, float]], Draw, Draw]] = {
    "only the rest varies": (lambda n, m: (0, 0, 1), normal, normal),
    "no seed variance": (lambda n, m: (0, 1, 1), normal, normal),
    "only examples vary": (lambda n, m: (0, 1, 0), normal, normal),
    "all three comparable": (lambda n, m: (1 / m, 1 / n, 1), normal, normal),
    "seeds as much as examples": (lambda n, m: (n / m, 1, 0.1), normal, normal),
    "seeds dominate": (lambda n, m: (1, 1, 1), normal, normal),
    "seeds dominate, no example variance": (lambda n, m: (1, 0, 1), normal, normal),
    "no seed variance, heavy tails": (lambda n, m: (0, 1, 1), normal, heavy),
    "no seed variance, skewed": (lambda n, m: (0, 1, 1), normal, skewed),
    "all three comparable, all heavy tails": (lambda n, m: (1 / m, 1 / n, 1), heavy, heavy),
    "seeds dominate, heavy tails": (lambda n, m: (1, 1, 1), heavy, heavy),
}


def simulate(
    name: str, num_seeds: int, num_examples: int, cases: int, *, weighted: bool = False
) -> tuple[float, float]:
    """Return the share of intervals that cover 0 and the mean width over the ideal width.

    Args:
        name: One of `CASES`.
        num_seeds: n.
        num_examples: m.
        cases: Number of simulated tables.
        weighted: Give examples 1 to 40 tokens, and a difference per token.
    """
    variances, of_seeds, of_rest = CASES[name]
    v_a, v_b, v_r = variances(num_seeds, num_examples)
    rng = np.random.default_rng([list(CASES).index(name), num_seeds, num_examples, weighted])
    covered, width, square = 0, 0.0, 0.0
    for _ in range(cases):
        tokens = rng.integers(1, 41, num_examples).astype(float) if weighted else np.ones(num_examples)
        table = (
            np.sqrt(v_a) * of_seeds(rng, (num_seeds, 1))
            + np.sqrt(v_b) * of_rest(rng, (1, num_examples))
            + np.sqrt(v_r) * of_rest(rng, (num_seeds, num_examples))
        )
        found = hierarchical_difference(table * tokens, tokens if weighted else None)
        covered += found.low <= 0 <= found.high
        width += found.high - found.low
        effective = tokens.sum() ** 2 / (tokens**2).sum()
        square += v_a / num_seeds + v_b / effective + v_r / (num_seeds * effective)
    return covered / cases, width / cases / (2 * 1.96 * np.sqrt(square / cases))


def simulate_runs(num_runs: int, v_a: float, num_examples: int, cases: int) -> float:
    """Return how often the interval of two runs of one recipe covers 0, by the scatter of its other runs."""
    rng = np.random.default_rng([num_runs, num_examples])
    covered = 0
    for _ in range(cases):
        table = (
            np.sqrt(v_a) * rng.normal(size=(num_runs, 1))
            + rng.normal(size=(1, num_examples))
            + rng.normal(size=(num_runs, num_examples))
        )
        found = difference_of_seeds(table)
        covered += found.low <= 0 <= found.high
    return covered / cases


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=4000, help="simulated tables of each cell")
    parser.add_argument("--examples", type=int, nargs="+", default=[20, 100])
    args = parser.parse_args()
    seeds = (2, 3, 4, 5, 6)
    print("coverage in %, mean width over the ideal\n")
    print("| case | examples |" + "".join(f" {n} seeds |" for n in seeds))
    print("|---|---|" + "---|" * len(seeds))
    rows = [(name, m, False) for m in args.examples for name in CASES]
    rows += [(name, m, True) for m in args.examples for name in ("no seed variance", "all three comparable")]
    least = 1.0
    for name, m, weighted in rows:
        found = [simulate(name, n, m, args.cases, weighted=weighted) for n in seeds]
        label = f"{name}, per token" if weighted else name
        print(f"| {label} | {m} |" + "".join(f" {100 * c:.1f}, {w:.2f} |" for c, w in found), flush=True)
        least = min(least, *(covered for covered, _ in found))
    runs = (4, 5, 8)
    print("\ntwo runs of one recipe, coverage in %\n")
    print("| v_A | examples |" + "".join(f" {n - 2} others |" for n in runs))
    print("|---|---|" + "---|" * len(runs))
    for v_a in (0.0, 0.01, 1.0):
        covered = [simulate_runs(n, v_a, 100, args.cases) for n in runs]
        print(f"| {v_a:g} | 100 |" + "".join(f" {100 * c:.1f} |" for c in covered), flush=True)
    print(json.dumps({"benchmark": "intervals", "cases": args.cases, "least_coverage": least}))


if __name__ == "__main__":
    main()
