"""A causal language model taken apart where SFTMix needs it: last hidden states, and the head on response rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sftmix.errors import InputError
from sftmix.functional.confidence import sum_by_example
from sftmix.functional.equations import LMHead, LossSettings, StepLoss, dense_sftmix_loss, logits
from sftmix.functional.fused import fused_sftmix_loss, fused_token_nll
from sftmix.functional.noise import neftune_noise

PROBE_TOKENS = 32
LARGE_LOGIT = 30.0  # a soft cap of 500 moves it by 1e-3
SINGLE, HALF = 1e-3, 5e-2  # the largest `logits_error` that rounding explains, in single and in half precision

BodyInput = tuple[Tensor, Tensor | None]  # input_ids, and position_ids where a line holds several sequences


class EmbeddingNoise(NamedTuple):
    """NEFTune noise for a micro-batch. Each sequence has its own generator. Padding gets no noise.

    Attributes:
        alpha: Size of the noise.
        seeds: Seed of the generator of each sequence.
        spans: Start of each sequence in the flattened inputs, and its number of tokens.
    """

    alpha: float
    seeds: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class LossInputs(Protocol):
    """What the loss needs of a micro-batch (`sftmix.data.collate.MicroBatch`).

    The tokens that carry loss are ordered as `sftmix.functional.equations` says: P mixed tokens of confident examples,
    their P partners, then the unpaired tokens.

    Attributes:
        inputs: Inputs of the body, one forward each.
        positions: Positions in the flattened inputs that predict the tokens that carry loss.
        labels: The token that each position predicts.
        weights: Weight of each token in next-token prediction.
        lam: Share of the confident token in each of the P pairs of tokens.
    """

    @property
    def inputs(self) -> Sequence[BodyInput]: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def weights(self) -> Tensor: ...
    @property
    def lam(self) -> Tensor: ...


class SFTMixLM(nn.Module):
    """A Hugging Face causal language model whose forward gives the loss of a part of a step.

    The body runs on the tokens that the layout gives it; the head runs on the rows that predict response tokens alone.
    A training step reads the head's weight inside this module's forward alone.

    Args:
        causal_lm: Any decoder-only model of transformers with a linear head. A model on the meta device has no weights
            and is not checked.

    Raises:
        InputError: If the model has no body between its embeddings and its head, or if its logits are not a linear map
            (with scale and soft cap) of the last hidden states.
    """

    def __init__(self, causal_lm: Any) -> None:
        """Find the body and the head, and check both against the model's own logits."""
        super().__init__()
        self.causal_lm = causal_lm
        self._body_name = _find_body(causal_lm)
        self._scale, self._softcap = _scale_and_softcap(causal_lm.config.get_text_config())
        if not self.head.weight.is_meta:
            self._check_head()

    @property
    def family(self) -> str:
        """What transformers calls models of its kind."""
        return str(self.causal_lm.config.model_type)

    @property
    def body(self) -> nn.Module:
        """The module that maps token ids to last hidden states."""
        return self.causal_lm.get_submodule(self._body_name)

    @property
    def head(self) -> LMHead:
        """The language-model head as it is now."""
        layer = self.causal_lm.get_output_embeddings()
        return LMHead(layer.weight, getattr(layer, "bias", None), self._scale, self._softcap)

    def hidden(self, inputs: Sequence[BodyInput], positions: Tensor, noise: EmbeddingNoise | None = None) -> Tensor:
        """Return last hidden states `[token, dim]` at positions of the flattened inputs.

        Raises:
            InputError: If there is noise and the model family does not call its input embeddings exactly once.
        """
        states, begin = [], 0
        for input_ids, position_ids in inputs:
            keywords = {} if position_ids is None else {"position_ids": position_ids}
            with nullcontext() if noise is None else self._noisy(noise, begin):
                out = self.body(input_ids=input_ids, use_cache=False, **keywords)
            states.append(out.last_hidden_state.flatten(0, 1))
            begin += input_ids.numel()
        return (states[0] if len(states) == 1 else torch.cat(states)).index_select(0, positions)

    @contextmanager
    def _noisy(self, noise: EmbeddingNoise, begin: int) -> Iterator[None]:
        """Put noise on the embeddings of one forward, whose input begins at a place of the flattened inputs."""
        shapes = []

        def add(_layer: nn.Module, _arguments: Any, embedded: Tensor) -> Tensor:
            shapes.append(embedded.shape)
            dim, number = embedded.shape[-1], embedded.numel() // embedded.shape[-1]
            noises = torch.zeros(number, dim, dtype=torch.float32, device=embedded.device)
            generator = torch.Generator(embedded.device)
            for seed, (start, length) in zip(noise.seeds, noise.spans, strict=True):
                if begin <= start < begin + number:
                    generator.manual_seed(seed)
                    here = slice(start - begin, start - begin + length)
                    noises[here] = neftune_noise(length, dim, alpha=noise.alpha, generator=generator)
            return (embedded + noises.view_as(embedded)).to(embedded.dtype)

        layer = self.causal_lm.get_input_embeddings()
        handle = layer.register_forward_hook(add)  # for this forward alone: no other pass can have noise
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
        batch: LossInputs,
        settings: LossSettings,
        *,
        num_tokens: int,
        num_mixed: int,
        noise: EmbeddingNoise | None = None,
        observe: Callable[[Tensor, LMHead], None] | None = None,
    ) -> StepLoss:
        """Return the loss of a micro-batch.

        Args:
            batch: The micro-batch.
            settings: How the loss is computed.
            num_tokens: N, the response tokens of the whole step.
            num_mixed: The pairs of tokens of the whole step.
            noise: Noise on the embeddings.
            observe: Is called with the hidden states and the head. Under FSDP2 the head is whole only in this forward.
        """
        hidden, head = self.hidden(batch.inputs, batch.positions, noise), self.head
        if observe is not None:
            observe(hidden, head)
        loss_of = fused_sftmix_loss if settings.implementation == "fused" else dense_sftmix_loss
        return loss_of(
            hidden,
            head,
            batch.labels,
            batch.weights,
            batch.lam,
            settings,
            num_tokens=num_tokens,
            num_mixed=num_mixed,
        )

    @torch.no_grad()
    def response_nll(
        self, inputs: Sequence[BodyInput], positions: Tensor, labels: Tensor, examples: Tensor, num_examples: int
    ) -> Tensor:
        """Return the nll of each response of a batch in nats, float64 `[example]`."""
        nll = fused_token_nll(self.hidden(inputs, positions), self.head, labels)
        return sum_by_example(nll, examples, num_examples)

    def use_attention(self, implementation: str) -> None:
        """Choose among transformers' implementations of attention: sdpa, eager, flash_attention_2.

        Raises:
            InputError: the family has none of that name, or its package is not installed.
        """
        cause = "it has its own"
        try:
            self.causal_lm.set_attn_implementation(implementation)
        except (ValueError, ImportError) as refusal:
            cause = str(refusal).split("\n")[0]
        if self.causal_lm.config._attn_implementation != implementation:
            raise InputError(
                f"trainer.attention={implementation}: model family {self.family} cannot ({cause})"
            ) from None

    def compile_blocks(self) -> None:
        """Compile each block of the body by torch.compile; lengths may vary, the head stays as it is.

        Raises:
            InputError: the body has no list of blocks.
        """
        for block in self.blocks():
            block.compile(dynamic=True)

    def checkpoint_activations(self) -> None:
        """Let blocks keep their inputs alone and compute again in the backward, where the family can.

        Raises:
            InputError: it cannot.
        """
        name = "activation_checkpointing_enable"  # its name from 5.23 on
        enable = getattr(self.causal_lm, name, None) or self.causal_lm.gradient_checkpointing_enable
        try:
            enable({"use_reentrant": False})
        except ValueError as refusal:
            raise InputError(f"trainer.activation_checkpointing=full: {str(refusal).splitlines()[0]}") from None

    def blocks(self) -> nn.ModuleList:
        """The blocks of the body, one after the other.

        Raises:
            InputError: the body has no list of them.
        """
        number = self.causal_lm.config.get_text_config().num_hidden_layers
        lists = (m for m in self.body.modules() if isinstance(m, nn.ModuleList) and len(m) == number)
        blocks = next(lists, None)
        if blocks is None:
            raise InputError(f"model family {self.family} has no list of {number} blocks to compile or to shard")
        return blocks

    @torch.no_grad()
    def logits(self, input_ids: Tensor) -> Tensor:
        """Logits `[position vocab]` of one sequence, in float32."""
        rows = torch.arange(input_ids.numel(), device=input_ids.device)
        return logits(self.hidden([(input_ids[None], None)], rows), self.head).float()

    def check_packing(self) -> None:
        """See that sequences packed into one row do not see each other, as far as short ones show it.

        Raises:
            InputError: they do, or the family takes no positions.
        """
        advice = "choose trainer.layout=grouped"
        try:
            error = self._packed_error()
        except (TypeError, ValueError) as refusal:
            cause = str(refusal).split("\n")[0]
            raise InputError(f"trainer.layout=packed: model family {self.family} cannot ({cause}), {advice}") from None
        if error > 1e-3:
            raise InputError(
                f"trainer.layout=packed: in model family {self.family} packed sequences see each other (their states "
                f"are off by {error:.2g} of the largest), {advice}"
            )

    def _packed_error(self) -> float:
        """Largest difference of the states of packed sequences to those of each alone, over the largest state."""
        alone = [torch.arange(3, 8), torch.arange(14, 2, -2), torch.arange(5, 2, -1)]
        positions = torch.cat([torch.arange(len(ids)) for ids in alone])
        expected = self._first_states([(ids[None], None) for ids in alone])
        got = self._first_states([(torch.cat(alone)[None], positions[None])])
        return ((got - expected).abs().max() / expected.abs().max()).item()

    @torch.no_grad()
    def _first_states(self, inputs: Sequence[BodyInput]) -> Tensor:
        """Last hidden states of all positions, without dropout."""
        device, was_training = self.head.weight.device, self.causal_lm.training
        here = [(ids.to(device), None if positions is None else positions.to(device)) for ids, positions in inputs]
        self.causal_lm.eval()
        try:
            return self.hidden(here, torch.arange(sum(ids.numel() for ids, _ in here), device=device))
        finally:
            self.causal_lm.train(was_training)

    def _check_head(self) -> None:
        """Compare the head on the body's hidden states with the model's own logits.

        The hidden states are scaled up on their way into the head, so that a soft cap shows also in an untrained model.

        Raises:
            InputError: If they differ, or if the model cannot be called with token ids only.
        """
        try:
            error = self._head_error()
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as refusal:
            cause = str(refusal).split("\n")[0][:160]
            raise InputError(f"model family {self.family}: it cannot be tuned here ({cause})") from None
        if not error <= SINGLE:
            raise InputError(
                f"model family {self.family}: its logits are not head(last hidden state): they differ by {error:.2g} "
                f"of their norm, expected at most {SINGLE:g}, so its head has a part that is not known here"
            )

    @torch.no_grad()
    def _head_error(self) -> float:
        """Return the difference between our logits and the model's own, as `logits_error` measures it."""
        ids, was_training = probe_ids(self.causal_lm), self.causal_lm.training
        states = self._first_states([(ids[None], None)])
        largest = logits(states, self.head).float().abs().max().item()
        factor = max(1.0, LARGE_LOGIT / max(largest, 1e-6))
        scaled = []

        def scale(_layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            scaled.append(factor)
            return arguments[0] * factor, *arguments[1:]

        handle = self.causal_lm.get_output_embeddings().register_forward_pre_hook(scale)
        self.causal_lm.eval()
        try:
            own = self.causal_lm(input_ids=ids[None], use_cache=False).logits[0]
        finally:
            handle.remove()
            self.causal_lm.train(was_training)
        return logits_error(logits(states * (scaled or [1.0])[0], self.head), own)


def probe_ids(causal_lm: Any) -> Tensor:
    """Return token ids that are spread over the vocabulary of a model, on its device."""
    layers = (causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings())
    size = min(layer.weight.shape[0] for layer in layers)
    return torch.linspace(0, size - 1, PROBE_TOKENS, device=layers[1].weight.device).long()


def logits_error(got: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of two logits `[position vocab]`, over the norm of the expected ones.

    Logits are centered at each position, since a constant changes no probability. The Euclidean norm over all positions
    does not depend on a single logit.
    """
    got, expected = (z.double() - z.double().mean(-1, keepdim=True) for z in (got, expected))
    return ((got - expected).norm() / expected.norm().clamp_min(1e-12)).item()


def warn_if_logits_differ(got: Tensor, expected: Tensor, what: str, *, is_rounded: bool) -> None:
    """Print a warning if two models that should be equal differ by more than rounding explains.

    Args:
        got: Logits `[position vocab]` of a model.
        expected: Logits of the model that it should equal.
        what: Names the first model.
        is_rounded: Whether one of them was computed or written in half precision.
    """
    error, tolerance = logits_error(got, expected), HALF if is_rounded else SINGLE
    if not error <= tolerance:
        print(
            f"warning     {what}: its logits differ by {error:.2g} of their norm from those of the model in memory, "
            f"expected at most {tolerance:g}: compare their answers before you use it",
            flush=True,
        )


def _find_body(causal_lm: Any) -> str:
    """Return the name of the module that holds the input embeddings but not the head.

    That is the decoder that the model names; families whose accessors return the whole model have it as a child.

    Raises:
        InputError: If there is no such module, or no head.
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
    """Return what the families of transformers multiply logits by, and their soft cap."""
    scale = 1.0
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        scale *= config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        scale /= config.logits_scaling
    if getattr(config, "lm_head_multiplier", None) is not None:  # Falcon-H1
        scale *= config.lm_head_multiplier
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma-2, RecurrentGemma, xLSTM
    return scale, next((getattr(config, name) for name in caps if getattr(config, name, None) is not None), None)
