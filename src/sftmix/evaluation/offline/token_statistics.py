"""The forward loops of suite=offline: response tokens of examples, and of pairs of examples."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from sftmix.data.collate import MicroBatch, collate_dialogues
from sftmix.data.encoding import EncodedExample
from sftmix.data.layout import cut_by_tokens
from sftmix.evaluation.offline.metrics import Prediction, joined, label_entropy, linearity_gap, predict
from sftmix.functional.confidence import sum_by_example
from sftmix.functional.equations import LMHead, num_mixed_tokens
from sftmix.models.language_model import SFTMixLM
from sftmix.training.progress import progress_bar


class TokenStatistics(NamedTuple):
    """Examples as a model predicts them."""

    nll: dict[str, float]  # Negative log-likelihood of each response in nats, by example id
    num_tokens: dict[str, int]  # Number of tokens of each response, its end token included
    prediction: Prediction  # Of every response token of all examples, in the order of `num_tokens`, on the CPU

    def loss(self, ids: Sequence[str]) -> float:
        """Return nats per response token over some examples: a ratio of two sums, as a run's held-out loss."""
        return sum(self.nll[i] for i in ids) / sum(self.num_tokens[i] for i in ids)

    def by_example(self, values: Shaped[Tensor, " token"]) -> dict[str, float]:
        """Return the mean over each example's response tokens."""
        parts = values.double().split(list(self.num_tokens.values()))
        return {i: float(part.mean()) for i, part in zip(self.num_tokens, parts, strict=True)}


class Linearity(NamedTuple):
    """Pairs of examples between their hidden states; each value is a mean over mixed positions."""

    gap: dict[float, float]  # By lambda, the cost of mixing beside its two ends, in nats
    label_entropy: dict[float, float]  # By lambda, the minimum of the Mixup loss, in nats
    of_pairs: dict[tuple[str, str], float]  # The gap of each pair by the ids of its two examples, a mean over lambdas
    positions: dict[tuple[str, str], int]  # Number of mixed positions of each pair

    @property
    def num_positions(self) -> int:
        """Number of mixed positions of all pairs."""
        return sum(self.positions.values())


@torch.no_grad()
def token_statistics(
    lm: SFTMixLM,
    encoded: Sequence[EncodedExample],
    *,
    batch_tokens: int,
    pad_token_id: int,
    title: str,
    show_progress: bool,
    chunk_bytes: int | None = None,
) -> TokenStatistics:
    """Return losses and predictions of responses.

    Args:
        lm: Model on its device, in evaluation mode.
        batch_tokens: Tokens of a forward, padding included.
        chunk_bytes: Size of a chunk's logits; None as in training on this device.
    """
    head, nll, counts = _exact(lm.head), dict[str, float](), dict[str, int]()
    predictions = []
    with progress_bar(len(encoded), title, "example", hide=not show_progress) as bar:
        for members in cut_by_tokens([len(e.input_ids) for e in encoded], batch_tokens):
            examples = [encoded[k] for k in members]
            batch, hidden = _run(lm, examples, pad_token_id)
            found = predict(hidden, head, batch.labels.to(hidden.device), chunk_bytes=chunk_bytes)
            predictions.append(Prediction(*(column.cpu() for column in found)))
            sums = sum_by_example(predictions[-1].nll, batch.example_of_position, len(examples))
            nll |= dict(zip((e.example_id for e in examples), sums.tolist(), strict=True))
            counts |= {e.example_id: e.num_response_tokens for e in examples}
            bar.update(len(examples))
    return TokenStatistics(nll, counts, joined(predictions))


@torch.no_grad()
def linearity(
    lm: SFTMixLM,
    pairs: Sequence[tuple[EncodedExample, EncodedExample]],
    lams: Sequence[float],
    *,
    batch_tokens: int,
    pad_token_id: int,
    title: str,
    show_progress: bool,
    chunk_bytes: int | None = None,
) -> Linearity:
    """Return the linearity gap over pairs (confident, unconfident), at the N' positions that both responses have."""
    lengths = [2 * max(len(c.input_ids), len(u.input_ids)) for c, u in pairs]
    head, of_pairs, positions = _exact(lm.head), dict[tuple[str, str], float](), dict[tuple[str, str], int]()
    gaps, entropies = torch.zeros(len(lams), dtype=torch.float64), torch.zeros(len(lams), dtype=torch.float64)
    with progress_bar(len(pairs), title, "pair", hide=not show_progress) as bar:
        for members in cut_by_tokens(lengths, batch_tokens):
            chosen = [pairs[k] for k in members]
            confident, unconfident = zip(*chosen, strict=True)
            batch, hidden = _run(lm, (*confident, *unconfident), pad_token_id)
            counts = [num_mixed_tokens(*(e.num_response_tokens for e in pair)) for pair in chosen]
            c, u = (positions_of.to(hidden.device) for positions_of in _mixed_positions(confident, unconfident, counts))
            labels = batch.labels.to(hidden.device)
            ends = hidden[c], hidden[u], head, labels[c], labels[u]
            found = linearity_gap(*ends, lams, chunk_bytes=chunk_bytes).double().cpu()
            gaps += found.sum(dim=1)
            is_same = labels[c] == labels[u]
            entropies += torch.stack([label_entropy(is_same, lam).double().sum() for lam in lams]).cpu()
            ids = [(one.example_id, other.example_id) for one, other in chosen]
            positions |= dict(zip(ids, counts, strict=True))
            of_pairs |= {i: float(part.mean()) for i, part in zip(ids, found.split(counts, dim=1), strict=True)}
            bar.update(len(members))
    number = sum(positions.values())
    gap, entropy = (dict(zip(lams, (sums / number).tolist(), strict=True)) for sums in (gaps, entropies))
    return Linearity(gap, entropy, of_pairs, positions)


def _run(lm: SFTMixLM, examples: Sequence[EncodedExample], pad_token_id: int) -> tuple[MicroBatch, Tensor]:
    """Return a padded batch, and the last hidden state of each predicting position in at least single precision."""
    batch = collate_dialogues([[e] for e in examples], "padded", pad_token_id)
    device = lm.head.weight.device
    hidden = lm.hidden([(ids.to(device), None) for ids, _ in batch.inputs], batch.positions.to(device))
    return batch, _at_least_single(hidden)


def _mixed_positions(
    confident: Sequence[EncodedExample], unconfident: Sequence[EncodedExample], num_mixed: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the indices in a batch, confident examples first, of the first N' positions of each response."""
    counts = [e.num_response_tokens for e in (*confident, *unconfident)]
    starts = [sum(counts[:k]) for k in range(len(counts))]

    def indices(first: int) -> Tensor:
        return torch.cat([torch.arange(starts[first + k], starts[first + k] + n) for k, n in enumerate(num_mixed)])

    return indices(0), indices(len(num_mixed))


def _exact(head: LMHead) -> LMHead:
    """Return the head in at least single precision: logits that are rounded to bfloat16 are off by a tenth."""
    return head._replace(
        weight=_at_least_single(head.weight), bias=None if head.bias is None else _at_least_single(head.bias)
    )


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()
