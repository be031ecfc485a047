"""A causal language model as a body, which computes last hidden states, and a head, which computes logits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sftmix.errors import InputError, first_line
from sftmix.functional.confidence import sum_by_example
from sftmix.functional.equations import LMHead, LossSettings, StepLoss, dense_sftmix_loss, logits
from sftmix.functional.fused import fused_sftmix_loss, fused_token_nll
from sftmix.functional.noise import neftune_noise
from sftmix.models.attention import FLASH, VARLEN, register_varlen
from sftmix.models.probes import check_head

# input_ids, position_ids if sequences are packed, their boundaries, the longest length (`sftmix.data.layout.BodyInput`)
InputTensors = tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor | None, int | None]


class EmbeddingNoise(NamedTuple):
    """NEFTune noise for a micro-batch. Each sequence has its own generator. Padding gets no noise."""

    alpha: float  # size of the noise
    seeds: tuple[int, ...]  # of the generator of each sequence
    spans: tuple[tuple[int, int], ...]  # start of each sequence in the flattened inputs, and its number of tokens


class SFTMixLM(nn.Module):
    """A Hugging Face causal language model whose forward returns the loss of a micro-batch.

    The body runs on all tokens of the layout. The head runs only on the positions that predict tokens that carry loss.
    In a training step the weight of the head is read only inside this module's forward, as FSDP2 requires.

    Args:
        causal_lm: Decoder-only model of transformers with a linear head. It is not checked if it has no weights.

    Raises:
        InputError: If the model has no body between its embeddings and its head, or if its logits are not a linear map
            (with scale and soft cap) of the last hidden states.
    """

    def __init__(self, causal_lm: Any) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self._body_name = _find_body(causal_lm)
        self._scale, self._softcap = _scale_and_softcap(causal_lm.config.get_text_config())
        if not self.head.weight.is_meta:
            check_head(self)

    @property
    def family(self) -> str:
        """The model type of transformers."""
        return str(self.causal_lm.config.model_type)

    @property
    def attention(self) -> str:
        """The implementation of attention as transformers names it."""
        return str(self.causal_lm.config._attn_implementation)

    @property
    def reads_boundaries(self) -> bool:
        """Whether attention reads the boundaries of packed sequences instead of a mask."""
        return self.attention == VARLEN or "flash" in self.attention

    @property
    def body(self) -> nn.Module:
        """The module that maps token ids to last hidden states."""
        return self.causal_lm.get_submodule(self._body_name)

    @property
    def head(self) -> LMHead:
        """The language-model head with its current weight."""
        layer = self.causal_lm.get_output_embeddings()
        return LMHead(layer.weight, getattr(layer, "bias", None), self._scale, self._softcap)

    def hidden(self, inputs: Sequence[InputTensors], positions: Tensor, noise: EmbeddingNoise | None = None) -> Tensor:
        """Return last hidden states `[token, dim]` at positions of the flattened inputs."""
        states, begin = [], 0
        for input_ids, *packing in inputs:
            with nullcontext() if noise is None else self._noisy(noise, begin):
                out = self.body(input_ids=input_ids, use_cache=False, **self._packing(*packing))
            states.append(out.last_hidden_state.flatten(0, 1))
            begin += input_ids.numel()
        return (states[0] if len(states) == 1 else torch.cat(states)).index_select(0, positions)

    def _packing(
        self, position_ids: Tensor | None, boundaries: Tensor | None = None, longest: int | None = None
    ) -> dict[str, Any]:
        """Return the arguments of the body that keep packed sequences apart."""
        found: dict[str, Any] = {} if position_ids is None else {"position_ids": position_ids}
        if self.reads_boundaries and boundaries is not None:
            found |= {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
            found |= {"max_length_q": longest, "max_length_k": longest}
        return found

    @contextmanager
    def _noisy(self, noise: EmbeddingNoise, begin: int) -> Iterator[None]:
        """Add noise to the embeddings of one forward pass, whose input begins at `begin` in the flattened inputs.

        Raises:
            InputError: If the model family does not call its input embeddings exactly once.
        """
        shapes = []

        def add(_layer: nn.Module, _arguments: Any, embedded: Tensor) -> Tensor:
            shapes.append(embedded.shape)
            dim, num_tokens = embedded.shape[-1], embedded.numel() // embedded.shape[-1]
            noises = torch.zeros(num_tokens, dim, dtype=torch.float32, device=embedded.device)
            generator = torch.Generator(embedded.device)
            for seed, (start, length) in zip(noise.seeds, noise.spans, strict=True):
                if begin <= start < begin + num_tokens:
                    generator.manual_seed(seed)
                    here = slice(start - begin, start - begin + length)
                    noises[here] = neftune_noise(length, dim, alpha=noise.alpha, generator=generator)
            return (embedded + noises.view_as(embedded)).to(embedded.dtype)

        layer = self.causal_lm.get_input_embeddings()
        handle = layer.register_forward_hook(add)  # removed after this pass, so no other pass has noise
        try:
            yield
        finally:
            handle.remove()
        if len(shapes) != 1:
            raise InputError(
                f"recipe.neftune_alpha={noise.alpha:g}: model family {self.family} embeds its tokens "
                f"{len(shapes)} times a forward, expected once"
            )

    def forward(
        self,
        batch: Any,
        settings: LossSettings,
        *,
        num_tokens: int,
        num_mixed: int,
        noise: EmbeddingNoise | None = None,
        observe: Callable[[Tensor, LMHead], None] | None = None,
    ) -> StepLoss:
        """Return the loss of a micro-batch.

        Args:
            batch: Micro-batch (`sftmix.data.collate.MicroBatch`).
            num_tokens: N, the number of response tokens of the whole step.
            num_mixed: Number of mixed positions of the whole step.
            observe: Called with the hidden states and the head. Under FSDP2 the head is whole only in this forward.
        """
        hidden, head = self.hidden(batch.inputs, batch.positions, noise), self.head
        if observe is not None:
            observe(hidden, head)
        loss_of = fused_sftmix_loss if settings.implementation == "fused" else dense_sftmix_loss
        counts = {"num_tokens": num_tokens, "num_mixed": num_mixed}
        return loss_of(hidden, head, batch.labels, batch.weights, batch.lam, settings, **counts)

    @torch.no_grad()
    def response_nll(
        self, inputs: Sequence[InputTensors], positions: Tensor, labels: Tensor, examples: Tensor, num_examples: int
    ) -> Tensor:
        """Return the nll of each response of a batch in nats, float64 `[example]`."""
        nll = fused_token_nll(self.hidden(inputs, positions), self.head, labels)
        return sum_by_example(nll, examples, num_examples)

    def use_attention(self, implementation: str) -> None:
        """Set attention to an implementation of transformers or `torch_varlen`.

        transformers replaces flash attention by a kernel of the hub if the package `kernels` is installed and the
        package of flash attention is not.

        Raises:
            InputError: If the model family or this machine does not support the implementation.
        """
        cause = "it has its own"
        if implementation == VARLEN:
            register_varlen()
        try:
            self.causal_lm.set_attn_implementation(implementation)
        except Exception as refusal:  # a kernel that cannot be downloaded raises a dozen types
            cause = first_line(refusal)
        now = self.attention
        if now != implementation and not (implementation in FLASH and "/" in now):
            raise InputError(f"trainer.attention={implementation}: model family {self.family} cannot ({cause})")

    def compile_blocks(self) -> None:
        """Compile each of the `blocks` with torch.compile for varying lengths. The head is not compiled."""
        for block in self.blocks():
            block.compile(dynamic=True)

    def checkpoint_activations(self) -> None:
        """Recompute the activations of each block in the backward pass; raise an InputError if not supported."""
        name = "activation_checkpointing_enable"  # its name since transformers 5.23
        enable = getattr(self.causal_lm, name, None) or self.causal_lm.gradient_checkpointing_enable
        try:
            enable({"use_reentrant": False})
        except ValueError as refusal:
            raise InputError(f"trainer.activation_checkpointing=full: {first_line(refusal)}") from None

    def blocks(self) -> nn.ModuleList:
        """Return the transformer blocks of the body in their order; raise an InputError if there is no list of them."""
        num_blocks = self.causal_lm.config.get_text_config().num_hidden_layers
        for module in self.body.modules():
            if isinstance(module, nn.ModuleList) and len(module) == num_blocks:
                return module
        raise InputError(f"model family {self.family} has no list of {num_blocks} blocks to compile or to shard")

    @torch.no_grad()
    def logits(self, input_ids: Tensor) -> Tensor:
        """Return logits `[token, vocab]` of one sequence in float32."""
        positions = torch.arange(input_ids.numel(), device=input_ids.device)
        return logits(self.hidden([(input_ids[None], None)], positions), self.head).float()


def _find_body(causal_lm: Any) -> str:
    """Return the name of the module with the input embeddings but without the head; raise an InputError if none.

    The module is the decoder that the model names, or a child if a family's accessors return the whole model.
    """
    names = {id(module): name for name, module in causal_lm.named_modules()}
    try:
        embeddings, head = causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()
        candidates = [causal_lm.get_decoder(), causal_lm.base_model, *causal_lm.children()]
    except (AttributeError, NotImplementedError):
        embeddings, head, candidates = None, None, []
    for module in candidates:
        inside = {id(m) for m in module.modules()}
        if head is not None and id(embeddings) in inside and id(head) not in inside:
            return names[id(module)]
    raise InputError(
        f"model family {causal_lm.config.model_type}: expected a body with the token embeddings and, beside it, a "
        f"linear head"
    )


def _scale_and_softcap(config: Any) -> tuple[float, float | None]:
    """Return the factor of the logits and the soft cap, from the config keys of all model families of transformers."""

    def value(name: str, default: float | None) -> Any:
        found = getattr(config, name, None)
        return default if found is None else found

    # Cohere, Granite, Falcon-H1
    scale = value("logit_scale", 1.0) / value("logits_scaling", 1.0) * value("lm_head_multiplier", 1.0)
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma-2, RecurrentGemma, xLSTM
    return scale, next((cap for name in caps if (cap := value(name, None)) is not None), None)
