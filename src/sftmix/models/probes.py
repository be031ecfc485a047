"""Checks of a model with short probe inputs: its head, packed sequences, and equality with another model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sftmix.errors import InputError, first_line
from sftmix.functional.equations import logits

if TYPE_CHECKING:
    from sftmix.models.language_model import InputTensors, SFTMixLM

NUM_PROBE_TOKENS = 32
LARGE_LOGIT = 30.0  # a soft cap of 500 changes this logit by a factor of 1e-3
SINGLE, HALF = 1e-3, 5e-2  # the largest `logits_error` that rounding explains, in single and in half precision


def check_head(lm: "SFTMixLM") -> None:
    """Raise an InputError if the head on the hidden states of the body does not give the model's own logits.

    The hidden states are scaled up before the head, so that a soft cap changes the logits of an untrained model too.
    """
    try:
        error = _head_error(lm)
    except torch.OutOfMemoryError as refusal:
        raise InputError(
            f"model family {lm.family}: {NUM_PROBE_TOKENS} tokens do not fit ({first_line(refusal)})"
        ) from None
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as refusal:
        raise InputError(f"model family {lm.family}: it cannot be tuned here ({first_line(refusal)})") from None
    if not error <= SINGLE:
        raise InputError(
            f"model family {lm.family}: its logits are not head(last hidden state): they differ by {error:.2g} "
            f"of their norm, expected at most {SINGLE:g}, so its head has a part that is not known here"
        )


@torch.no_grad()
def _head_error(lm: "SFTMixLM") -> float:
    """Return the difference of our logits from the model's own, as `logits_error` measures it."""
    causal_lm, head = lm.causal_lm, lm.head
    ids, was_training = probe_ids(causal_lm), causal_lm.training
    hidden = _hidden_of_all_positions(lm, [(ids[None], None)])
    largest = logits(hidden, head).float().abs().max().item()
    factor = max(1.0, LARGE_LOGIT / max(largest, 1e-6))
    is_scaled = False

    def scale(_layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal is_scaled
        is_scaled = True
        return arguments[0] * factor, *arguments[1:]

    handle = causal_lm.get_output_embeddings().register_forward_pre_hook(scale)
    causal_lm.eval()
    try:
        own = causal_lm(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        handle.remove()
        causal_lm.train(was_training)
    return logits_error(logits(hidden * factor if is_scaled else hidden, head), own)


def check_packing(lm: "SFTMixLM") -> None:
    """Raise an InputError if packed sequences attend to each other, or if the model family takes no position ids."""
    advice = "choose trainer.layout=grouped"
    sequences = [torch.arange(3, 8), torch.arange(14, 2, -2), torch.arange(5, 2, -1)]
    positions = torch.cat([torch.arange(len(ids)) for ids in sequences])
    try:
        expected = _hidden_of_all_positions(lm, [(ids[None], None) for ids in sequences])
        lengths = [len(ids) for ids in sequences]
        boundaries = torch.tensor([0, *lengths]).cumsum(0).int()
        packed = torch.cat(sequences)[None], positions[None], boundaries, max(lengths)
        got = _hidden_of_all_positions(lm, [packed])
    except (TypeError, ValueError) as refusal:
        cause = first_line(refusal)
        raise InputError(f"trainer.layout=packed: model family {lm.family} cannot ({cause}), {advice}") from None
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    if error > 1e-3:
        raise InputError(
            f"trainer.layout=packed: in model family {lm.family} packed sequences see each other (their hidden states "
            f"differ by {error:.2g} of the largest), {advice}"
        )


@torch.no_grad()
def _hidden_of_all_positions(lm: "SFTMixLM", inputs: "Sequence[InputTensors]") -> Tensor:
    """Return last hidden states `[token, dim]` without dropout."""
    device, was_training = lm.head.weight.device, lm.causal_lm.training
    here: Any = [tuple(x.to(device) if isinstance(x, Tensor) else x for x in parts) for parts in inputs]
    lm.causal_lm.eval()
    try:
        return lm.hidden(here, torch.arange(sum(ids.numel() for ids, *_ in here), device=device))
    finally:
        lm.causal_lm.train(was_training)


def probe_ids(causal_lm: Any) -> Tensor:
    """Return token ids that are spread over the vocabulary of a model, on the device of its head."""
    embedding, head = causal_lm.get_input_embeddings().weight, causal_lm.get_output_embeddings().weight
    return torch.linspace(0, min(len(embedding), len(head)) - 1, NUM_PROBE_TOKENS, device=head.device).long()


@torch.no_grad()
def probe_logits(causal_lm: Any) -> Tensor:
    """Return the logits `[token vocab]` of the probe tokens."""
    return causal_lm.eval()(input_ids=probe_ids(causal_lm)[None], use_cache=False).logits[0].float()


def logits_error(got: Tensor, expected: Tensor) -> float:
    """Return the Euclidean norm of the difference of two logits `[token, vocab]` over the norm of the expected logits.

    Logits are centered at each token, because a constant changes no probability.
    """
    got, expected = (z.double() - z.double().mean(-1, keepdim=True) for z in (got, expected))
    return ((got - expected).norm() / expected.norm().clamp_min(1e-12)).item()


def warn_if_logits_differ(got: Tensor, expected: Tensor, what: str, *, is_rounded: bool) -> float:
    """Return the `logits_error` of the model `what`, and print a warning if it is more than rounding explains.

    Args:
        is_rounded: Whether one of the two models was computed or written in half precision.
    """
    error, tolerance = logits_error(got, expected), HALF if is_rounded else SINGLE
    if not error <= tolerance:
        print(
            f"warning     {what}: its logits differ by {error:.2g} of their norm from those of the model in memory, "
            f"expected at most {tolerance:g}: compare their answers before you use it",
            flush=True,
        )
    return error
