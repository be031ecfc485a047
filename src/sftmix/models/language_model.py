"""A causal language model taken apart where SFTMix needs it: last hidden states, and the head on response rows."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sftmix.errors import InputError
from sftmix.functional.head import LMHead, logits
from sftmix.functional.objective import MixedPairs, mixup_sum, ntp_sum
from sftmix.functional.perplexity import sum_by_example, token_nll


class LossSums(NamedTuple):
    """The two sums of a micro-batch, in nats.

    Attributes:
        ntp: S_ntp, over response tokens, each times its example's weight.
        mixup: S_mix, over mixed positions.
    """

    ntp: Tensor
    mixup: Tensor


class SFTMixLM(nn.Module):
    """A Hugging Face causal language model whose forward gives the sums that the loss is made of.

    The body runs on all positions; the head runs on the rows that predict response tokens alone. A training step reads
    the head's weight inside this module's forward alone.

    Args:
        causal_lm: any decoder-only model of transformers with a linear head.

    Raises:
        InputError: the family's head is not the linear map (with scale and soft cap) that it is taken for.
    """

    def __init__(self, causal_lm: Any) -> None:
        """Find the head and check it against the model's own logits."""
        super().__init__()
        self.causal_lm = causal_lm
        self._scale, self._softcap = _scale_and_softcap(causal_lm.config.get_text_config())
        self._check_head()

    @property
    def head(self) -> LMHead:
        """The language-model head as it is now."""
        layer = self.causal_lm.get_output_embeddings()
        return LMHead(layer.weight, getattr(layer, "bias", None), self._scale, self._softcap)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> Tensor:
        """Last hidden states of the given rows `[row dim]`."""
        body = self.causal_lm.base_model
        states = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return states.flatten(0, 1)[rows]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        labels: Tensor,
        weights: Tensor,
        pairs: MixedPairs | None,
    ) -> LossSums:
        """The sums of a micro-batch; without pairs (or with None) the Mixup sum is zero and no head runs for it."""
        hidden, head = self.hidden(input_ids, attention_mask, rows), self.head
        ntp = ntp_sum(hidden, head, labels, weights.to(head.weight.dtype))
        if pairs is None or not len(pairs.lam):
            return LossSums(ntp, ntp.new_zeros(()))
        return LossSums(ntp, mixup_sum(hidden, head, labels, pairs))

    @torch.no_grad()
    def response_nll(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, labels: Tensor, examples: Tensor
    ) -> Tensor:
        """Nats of each response of a batch, float64 `[batch]`."""
        nll = token_nll(self.hidden(input_ids, attention_mask, rows), self.head, labels)
        return sum_by_example(nll, examples, len(input_ids))

    @torch.no_grad()
    def _check_head(self) -> None:
        device = self.head.weight.device
        ids = torch.arange(4, device=device).unsqueeze(0)
        was_training = self.causal_lm.training
        self.causal_lm.eval()
        expected = self.causal_lm(input_ids=ids, use_cache=False).logits[0].float()
        got = logits(self.hidden(ids, torch.ones_like(ids), torch.arange(4, device=device)), self.head).float()
        self.causal_lm.train(was_training)
        error = (got - expected).abs().max().item()
        if error > 1e-2 * max(1.0, expected.abs().max().item()):
            family = self.causal_lm.config.model_type
            raise InputError(
                f"model family {family}: its logits are not head(last hidden state): off by {error:.3g}, so its head "
                f"has a part that is not known here"
            )


def _scale_and_softcap(config: Any) -> tuple[float, float | None]:
    """What the families of transformers do to the product with the head's weight."""
    scale = 1.0
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        scale *= config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        scale /= config.logits_scaling
    return scale, getattr(config, "final_logit_softcapping", None)  # Gemma-2
