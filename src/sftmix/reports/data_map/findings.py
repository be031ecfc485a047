"""What a data map states in numbers: rank correlation with length, and prompts that have different answers."""

import re
from collections import defaultdict
from typing import Any

import numpy as np

from sftmix.analysis.scored_examples import ScoredExamples
from sftmix.analysis.stability import spearman

MOST_PROMPTS = 500  # Repeated prompts that a page lists


def length_correlations(examples: ScoredExamples) -> dict[str, float | None]:
    """Return Spearman's rho between confidence and the number of response tokens: over all, and in each subset.

    Confidences that are NaN are left out. None if rho is not defined: all values of a side are equal.
    """
    chosen = {"all": ~np.isnan(examples.confidence)}
    for name in () if examples.subset is None else ("confident", "unconfident"):
        chosen[name] = chosen["all"] & (np.array(examples.subset) == name)
    length = examples.num_tokens.astype(np.float64)
    found = {name: spearman(examples.confidence[here], length[here]) for name, here in chosen.items() if here.any()}
    return {name: None if np.isnan(found.get(name, np.nan)) else found[name] for name in chosen}


def repeated_prompts(examples: ScoredExamples) -> dict[str, Any]:
    """Return prompts that several examples share and that have different answers.

    Prompts are equal if they differ only in case, spaces and punctuation at the end. Later turns of dialogues are left
    out, since their history differs, and so are prompts of which only the first characters are known.

    Returns:
        `prompts`, `examples`: How many there are. `groups`: indices of the examples of each prompt; the prompts whose
        mean perplexities differ by the largest factor are first, at most 500 of them.
    """
    by_prompt = defaultdict[str, list[int]](list)
    for k, instruction in enumerate(examples.instruction):
        if instruction is not None and examples.turn[k] <= 1 and not examples.is_cut[k]:
            by_prompt[_normalized(instruction)].append(k)
    by_prompt.pop("", None)
    groups = [
        group
        for group in by_prompt.values()
        if len(group) > 1 and len({_normalized(examples.response[k] or "") for k in group}) > 1
    ]
    with np.errstate(invalid="ignore"):
        values = examples.confidence if examples.has_ranks else np.log(-examples.confidence)
        spread = [np.ptp(values[group]) for group in groups]
    order = np.argsort(-np.nan_to_num(np.array(spread), nan=np.inf), kind="stable")
    return {
        "prompts": len(groups),
        "examples": sum(map(len, groups)),
        "groups": [groups[k] for k in order[:MOST_PROMPTS]],
    }


def _normalized(text: str) -> str:
    return re.sub(r"[\s.?!:;,\"']+$", "", " ".join(text.casefold().split()))
