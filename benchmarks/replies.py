"""Seconds to read long texts of servers: ratings, reasoning, secrets and error messages. The time must be linear.

Each text repeats what a pattern could match in many ways. The benchmark reads it at a size and at twice the size: a
ratio near 2 is linear, a ratio near 4 quadratic. The last line is JSON.

    python benchmarks/replies.py
"""

import argparse
import json
import time
from collections.abc import Callable

from side_by_side import table

from sftmix.evaluation.judge.reasoning import answer_of, verdict_of
from sftmix.evaluation.judge.scrubbing import Scrubber
from sftmix.evaluation.mt_bench.ratings import holds_verdict, read_rating

KEY = "sk-never-to-be-printed-0123456789"
REPLIES = (
    "1", "[[1", "[", "[ ", "[[ .", "[[10]] ", "rating", "Rating: ", "Rating: [[10]] ", "<think", "<think>", "</think>",
    "<|channel|>final ", "\u25c1think\u25b7 ", "<|return|>", "\n<think>x", "x</think>",
)  # fmt: skip
SECRETS = (KEY[:-2], "%", "\\u0073", "&#")


def main() -> None:
    """Measure all texts and print how their time grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--characters", type=int, default=2**16, help="length of the smaller text")
    characters = parser.parse_args().characters
    scrubber = Scrubber([KEY])
    rows, ratios = [], []
    for what, parts, read in (("reply", REPLIES, _read_reply), ("secret", SECRETS, scrubber.text)):
        for part in parts:
            once, twice = (_seconds(read, part * (size // len(part))) for size in (characters, 2 * characters))
            ratios.append(twice / once)
            rows.append((what, repr(part), f"{once:.4f} s", f"{twice:.4f} s", f"{ratios[-1]:.1f}"))
    table(("read as", "repeated", f"{characters:,} characters", f"{2 * characters:,}", "ratio"), rows)
    print(json.dumps({"benchmark": "replies", "characters": characters, "largest_ratio": round(max(ratios), 2)}))


def _read_reply(text: str) -> None:
    read_rating("[[" + text, "stop", [text, "[[10]]"])
    read_rating(text, "length", [text])
    holds_verdict(text)
    verdict_of(text)
    answer_of(text)


def _seconds(read: Callable[[str], object], text: str) -> float:
    begin = time.process_time()
    read(text)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
