"""One answer of a model, for a person to look at."""

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def generate_answer(
    causal_lm: Any, tokenizer: Any, prompt_ids: Sequence[int], *, end_token_id: int, max_new_tokens: int
) -> str:
    """The greedy continuation of a prompt as text, up to the end token."""
    was_training = causal_lm.training
    causal_lm.eval()
    ids = torch.tensor([list(prompt_ids)], device=causal_lm.device)
    out = causal_lm.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=end_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    causal_lm.train(was_training)
    return tokenizer.decode(out[0, len(prompt_ids) :], skip_special_tokens=True).strip()
