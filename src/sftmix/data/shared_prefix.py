"""Turns of one dialogue whose ids are prefixes of one another: one forward scores them all."""

from collections.abc import Sequence

from sftmix.data.shards import EncodedExamples


def turns_in_one(encoded: EncodedExamples) -> list[list[int]]:
    """The examples as runs in which each one's ids are the beginning of the next one's.

    Causal attention sees the same before a token in the whole dialogue as in the turn alone, so that the last of a run
    holds the scores of all. An example whose ids the next turn does not repeat (its template drops or alters the
    history, its oldest turns found no room) ends its run.

    Args:
        encoded: the turns of a dialogue one after the other.
    """
    dialogues = encoded.column("dialogue").to_pylist()
    runs: list[list[int]] = []
    for i, dialogue in enumerate(dialogues):
        if i and dialogue == dialogues[i - 1] and _begins(encoded[i].input_ids, encoded[i - 1].input_ids):
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _begins(ids: Sequence[int], beginning: Sequence[int]) -> bool:
    return len(ids) > len(beginning) and ids[: len(beginning)] == beginning
