"""The forward loop of the figures that need no judge: response tokens of examples, and of pairs of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from sftmix.data.collate import MicroBatch, collate_dialogues
from sftmix.data.encoding import EncodedExample
from sftmix.data.layout import cut_by_tokens
from sftmix.evaluation.offline.calibration import Prediction, joined, predict
from sftmix.evaluation.offline.linearity import label_entropy, linearity_gap
from sftmix.functional.confidence import sum_by_example
from sftmix.functional.equations import LMHead, num_mixed_tokens
from sftmix.models.language_model import SFTMixLM
from sftmix.training.progress import progress_bar


class TokenStatistics(NamedTuple):
    """Examples as a model predicts them.

    Attributes:
        nll: nats of each response, by example id.
        num_tokens: of each response, its end token included.
        prediction: of every response token of all of them, in the order of `num_tokens`, on the CPU.
    """

    nll: dict[str, float]
    num_tokens: dict[str, int]
    prediction: Prediction

    def loss(self, ids: Sequence[str]) -> float:
        """Nats per response token over some examples: a ratio of two sums, as a run's held-out loss."""
        return sum(self.nll[i] for i in ids) / sum(self.num_tokens[i] for i in ids)

    def by_example(self, figure: Shaped[Tensor, " row"]) -> dict[str, float]:
        """The mean over each example's response tokens of a figure of the prediction; its tokens are its weight."""
        parts = figure.double().split(list(self.num_tokens.values()))
        return {i: float(part.mean()) for i, part in zip(self.num_tokens, parts, strict=True)}


class Linearity(NamedTuple):
    """Pairs of examples between their hidden states, by lambda, each figure a mean over mixed positions.

    Attributes:
        gap: nats that mixing costs beside its two ends.
        label_entropy: nats below which the Mixup loss cannot come.
        of_pairs: the gap of each pair by the ids of its two examples, a mean over lambdas.
        positions: of each pair, those that were mixed.
    """

    gap: dict[float, float]
    label_entropy: dict[float, float]
    of_pairs: dict[tuple[str, str], float]
    positions: dict[tuple[str, str], int]

    @property
    def num_positions(self) -> int:
        """That were mixed in all of them."""
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
    """Losses and predictions of responses.

    Args:
        lm: the model, on its device, in evaluation mode.
        encoded: examples.
        batch_tokens: of a forward, padding included.
        pad_token_id: fills up shorter sequences.
        title: of the progress bar.
        show_progress: with a bar.
        chunk_bytes: of a chunk's logits; None: as in training on this device.
    """
    batches = cut_by_tokens([len(e.input_ids) for e in encoded], batch_tokens)
    head, nll, counts = _exact(lm.head), dict[str, float](), dict[str, int]()
    predictions = []
    with progress_bar(len(encoded), title, "example", hide=not show_progress) as bar:
        for members in batches:
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
    """The linearity gap over pairs (confident, unconfident), at the N' positions that both responses have.

    Args:
        lm: the model, on its device, in evaluation mode.
        pairs: at least one, each once.
        lams: shares of the confident end.
        batch_tokens: of a forward, padding included.
        pad_token_id: fills up shorter sequences.
        title: of the progress bar.
        show_progress: with a bar.
        chunk_bytes: of a chunk's logits; None: as in training on this device.
    """
    lengths = [2 * max(len(c.input_ids), len(u.input_ids)) for c, u in pairs]
    head, of_pairs, positions = _exact(lm.head), dict[tuple[str, str], float](), dict[tuple[str, str], int]()
    gaps, entropies = torch.zeros(len(lams), dtype=torch.float64), torch.zeros(len(lams), dtype=torch.float64)
    with progress_bar(len(pairs), title, "pair", hide=not show_progress) as bar:
        for members in cut_by_tokens(lengths, batch_tokens):
            chosen = [pairs[k] for k in members]
            confident, unconfident = zip(*chosen, strict=True)
            batch, hidden = _run(lm, (*confident, *unconfident), pad_token_id)
            counts = [num_mixed_tokens(*(e.num_response_tokens for e in pair)) for pair in chosen]
            c, u = (rows.to(hidden.device) for rows in _mixed_rows(confident, unconfident, counts))
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
    """A padded batch, and the last hidden state of each of its rows in at least single precision."""
    batch = collate_dialogues([[e] for e in examples], "padded", pad_token_id)
    device = lm.head.weight.device
    hidden = lm.hidden([(ids.to(device), None) for ids, _ in batch.inputs], batch.positions.to(device))
    return batch, _at_least_single(hidden)


def _mixed_rows(
    confident: Sequence[EncodedExample], unconfident: Sequence[EncodedExample], num_mixed: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The rows of a batch, confident examples first, at the first N' positions of each response, side by side."""
    counts = [e.num_response_tokens for e in (*confident, *unconfident)]
    starts = [sum(counts[:k]) for k in range(len(counts))]

    def rows(first: int) -> Tensor:
        return torch.cat([torch.arange(starts[first + k], starts[first + k] + n) for k, n in enumerate(num_mixed)])

    return rows(0), rows(len(num_mixed))


def _exact(head: LMHead) -> LMHead:
    """The head in at least single precision: logits that are rounded to bfloat16 are off by a tenth."""
    return head._replace(
        weight=_at_least_single(head.weight), bias=None if head.bias is None else _at_least_single(head.bias)
    )


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()
