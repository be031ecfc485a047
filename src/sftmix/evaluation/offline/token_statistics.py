"""The forward passes of suite=offline: response tokens of examples, and of pairs of examples."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from sftmix.data.collate import MicroBatch, collate_dialogues
from sftmix.data.encoding import EncodedExample
from sftmix.data.layout import cut_by_tokens
from sftmix.evaluation.model_pool import LoadedModel, ModelPool
from sftmix.evaluation.offline.metrics import Prediction, joined, label_entropy, linearity_gap, predict
from sftmix.functional.equations import LMHead, num_mixed_tokens
from sftmix.models.language_model import SFTMixLM
from sftmix.training.progress import progress_bar

T = TypeVar("T")
R = TypeVar("R")
Pair = tuple[EncodedExample, EncodedExample]


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
    """Pairs of examples between their hidden states; each value is a mean over mixed tokens."""

    gap: dict[float, float]  # By lambda, the cost of mixing beside its two ends, in nats
    label_entropy: dict[float, float]  # By lambda, the minimum of the Mixup loss, in nats
    of_pairs: dict[tuple[str, str], float]  # The gap of each pair by the ids of its two examples, a mean over lambdas
    num_mixed_tokens: dict[tuple[str, str], int]  # Number of mixed tokens of each pair

    @property
    def total(self) -> int:
        """Number of mixed tokens of all pairs."""
        return sum(self.num_mixed_tokens.values())


class Forward(NamedTuple):
    """How the forward passes of an evaluation are computed."""

    pool: ModelPool
    batch_tokens: int  # Tokens of a forward pass, padding included
    show_progress: bool
    chunk_bytes: int | None = None  # Size of a chunk's logits; None as in training on the device

    def results(
        self, function: Callable[[LoadedModel, Sequence[T]], R], batches: Sequence[Sequence[T]], title: str, unit: str
    ) -> list[R]:
        """Return the result of a function for each batch, with a progress bar over the elements of all batches."""
        found = dict[int, R]()
        total = sum(map(len, batches))
        with progress_bar(total, title, unit, hide=not self.show_progress) as bar:
            for k, result in self.pool.map(function, batches):
                found[k] = result
                bar.update(len(batches[k]))
        return [found[k] for k in range(len(batches))]


def token_statistics(forward: Forward, encoded: Sequence[EncodedExample], title: str) -> TokenStatistics:
    """Return losses and predictions of the responses of examples."""
    batches = [
        [encoded[k] for k in members]
        for members in cut_by_tokens([len(e.input_ids) for e in encoded], forward.batch_tokens)
    ]
    function = partial(_predict_batch, chunk_bytes=forward.chunk_bytes)
    prediction = joined(forward.results(function, batches, title, "example"))
    counts = {e.example_id: e.num_response_tokens for batch in batches for e in batch}
    sums = [float(part.sum()) for part in prediction.nll.double().split(list(counts.values()))]
    return TokenStatistics(dict(zip(counts, sums, strict=True)), counts, prediction)


def linearity(forward: Forward, pairs: Sequence[Pair], lams: Sequence[float], title: str) -> Linearity:
    """Return the linearity gap over pairs (confident, unconfident), at the N' tokens that both responses have."""
    lengths = [2 * max(len(c.input_ids), len(u.input_ids)) for c, u in pairs]
    batches = [[pairs[k] for k in members] for members in cut_by_tokens(lengths, forward.batch_tokens)]
    function = partial(_mix_batch, lams=tuple(lams), chunk_bytes=forward.chunk_bytes)
    found = forward.results(function, batches, title, "pair")
    gaps, is_same = torch.cat([gap for gap, _ in found], dim=1).double(), torch.cat([same for _, same in found])
    counts = {(c.example_id, u.example_id): num_mixed(c, u) for batch in batches for c, u in batch}
    parts = gaps.split(list(counts.values()), dim=1)
    return Linearity(
        {lam: float(gap.mean()) for lam, gap in zip(lams, gaps, strict=True)},
        {lam: float(label_entropy(is_same, lam).double().mean()) for lam in lams},
        {ids: float(part.mean()) for ids, part in zip(counts, parts, strict=True)},
        counts,
    )


def num_mixed(confident: EncodedExample, unconfident: EncodedExample) -> int:
    """Return N', the number of mixed tokens of a pair."""
    return num_mixed_tokens(confident.num_response_tokens, unconfident.num_response_tokens)


@torch.no_grad()
def _predict_batch(model: LoadedModel, examples: Sequence[EncodedExample], chunk_bytes: int | None) -> Prediction:
    """Return the predictions of all response tokens of a batch, example by example, on the CPU."""
    lm = _language_model(model.causal_lm)
    batch, hidden = _run(lm, examples, model.tokenizer.pad_token_id)
    found = predict(hidden, _exact(lm.head), batch.labels.to(hidden.device), chunk_bytes=chunk_bytes)
    return Prediction(*(column.cpu() for column in found))


@torch.no_grad()
def _mix_batch(
    model: LoadedModel, pairs: Sequence[Pair], lams: Sequence[float], chunk_bytes: int | None
) -> tuple[Float[Tensor, "lam mixed"], Bool[Tensor, " mixed"]]:
    """Return the linearity gap of all mixed tokens of a batch of pairs, and whether both labels are the same token."""
    lm = _language_model(model.causal_lm)
    confident, unconfident = zip(*pairs, strict=True)
    batch, hidden = _run(lm, (*confident, *unconfident), model.tokenizer.pad_token_id)
    counts = [num_mixed(c, u) for c, u in pairs]
    c, u = (tokens.to(hidden.device) for tokens in _mixed_tokens(confident, unconfident, counts))
    labels = batch.labels.to(hidden.device)
    gap = linearity_gap(hidden[c], hidden[u], _exact(lm.head), labels[c], labels[u], lams, chunk_bytes=chunk_bytes)
    return gap.cpu(), (labels[c] == labels[u]).cpu()


@lru_cache(maxsize=1)
def _language_model(causal_lm: Any) -> SFTMixLM:
    """Return a model as body and head. Its head is checked by a forward pass, so this is done once, not each batch."""
    return SFTMixLM(causal_lm)


def _run(lm: SFTMixLM, examples: Sequence[EncodedExample], pad_token_id: int) -> tuple[MicroBatch, Tensor]:
    """Return a padded batch, and the last hidden state of each predicting position in at least single precision."""
    batch = collate_dialogues([[e] for e in examples], "padded", pad_token_id)
    device = lm.head.weight.device
    hidden = lm.hidden([(ids.to(device), None) for ids, *_ in batch.inputs], batch.positions.to(device))
    return batch, _at_least_single(hidden)


def _mixed_tokens(
    confident: Sequence[EncodedExample], unconfident: Sequence[EncodedExample], num_mixed: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the indices in a batch, confident examples first, of the first N' tokens of each response."""
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
