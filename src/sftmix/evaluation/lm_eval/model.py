"""The requests of lm-eval, answered by the model of a pool and kept in a journal: no request is computed twice."""

import contextlib
import copy
import hashlib
import io
import json
import logging
import multiprocessing
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from sftmix.data.vocabulary import check_prompts
from sftmix.errors import InputError
from sftmix.evaluation.judge.journal import Journal
from sftmix.evaluation.model_pool import LoadedModel, ModelPool
from sftmix.training.progress import progress_bar

LOGLIKELIHOOD, ROLLING, GENERATION = "loglikelihood", "loglikelihood_rolling", "generate_until"
# What is computed, for the progress bar
TITLES = {LOGLIKELIHOOD: "log-probabilities", ROLLING: "texts", GENERATION: "answers"}


class ScoringOptions(NamedTuple):
    """How lm-eval's model class reads prompts. Everything but the batch size is part of a result."""

    batch_size: int
    max_length: int  # Tokens that the model reads
    add_bos_token: bool | None  # Whether the BOS token is put before a prompt; None: as the tokenizer does
    seed: int  # Of sampled answers


class ScoringRequest(NamedTuple):
    """A request of lm-eval without its question."""

    kind: str
    args: tuple[Any, ...]  # (context, continuation), (text,) or (context, generation settings)


class ScoringReply(NamedTuple):
    """The result of a request."""

    value: Any  # (log-probability, whether the continuation is greedy), log-probability, or text
    num_cut: int  # Tokens of the beginning of the prompt that did not fit the model


class JournaledLM(LM):
    """A model for lm-eval's `evaluate`, whose requests are computed by a pool, in chunks with the longest first.

    Args:
        journal: Replies so far. Its file must belong to the model and to everything but the batch size of `options`.
        tokenizer: Tokenizer with the chat template.
        title: Title of the progress bars.
    """

    def __init__(
        self,
        pool: ModelPool,
        journal: Journal,
        options: ScoringOptions,
        *,
        tokenizer: Any,
        title: str,
        show_progress: bool,
    ) -> None:
        super().__init__()
        self.pool, self.journal, self.options, self.tokenizer = pool, journal, options, tokenizer
        self.title, self.show_progress = title, show_progress
        self.cut: set[tuple[str, int]] = set()  # Task and number of each question whose prompt was cut
        self._streams = sys.stdout, sys.stderr  # lm-eval runs in silence

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether every token of it is the most probable."""
        for request in requests:
            if not request.args[1]:
                raise InputError(f"task {request.task_name}, question {request.doc_id}: a choice is empty")
        return [(float(logprob), bool(is_greedy)) for logprob, is_greedy in self._replies(LOGLIKELIHOOD, requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-probability of each text."""
        return [float(logprob) for logprob in self._replies(ROLLING, requests)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the text that follows each context."""
        return [str(text) for text in self._replies(GENERATION, requests)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text. Without a generation prompt, the last turn is continued."""
        return render_chat(self.tokenizer, chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """A name that lm-eval requires; it only matters for lm-eval's own cache, which is not used."""
        return "tokenizer"

    def _replies(self, kind: str, instances: Sequence[Instance]) -> list[Any]:
        requests = [ScoringRequest(kind, instance.args) for instance in instances]
        keys = _keys(requests)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.journal}
        if missing:
            self._compute(missing, f"{self.title}, {TITLES[kind]}")
        for key, instance in zip(keys, instances, strict=True):
            if self.journal[key]["num_cut"]:
                self.cut.add((instance.task_name, instance.doc_id))
        return [self.journal[key]["value"] for key in keys]

    def _compute(self, requests: Mapping[str, ScoringRequest], title: str) -> None:
        """Compute requests by their keys, and write each reply into the journal."""
        chunks = _chunks(requests, self.options.batch_size)
        compute = partial(answer_chunk, options=self.options)
        out, err = self._streams
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            progress_bar(len(requests), title, " requests", hide=not self.show_progress) as bar,
        ):
            for place, replies in self.pool.map(compute, [[requests[key] for key in chunk] for chunk in chunks]):
                for key, reply in zip(chunks[place], replies, strict=True):
                    self.journal.append(key, {"kind": requests[key].kind, **reply._asdict()})
                bar.update(len(replies))


def render_chat(tokenizer: Any, turns: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
    """Return a conversation as text. As in lm-eval, a template that refuses a system turn is given none."""
    from jinja2 import TemplateError

    def rendered(turns: Sequence[Mapping[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    try:
        return rendered(turns)
    except TemplateError:
        others = [turn for turn in turns if turn["role"] != "system"]
        if len(others) == len(turns):
            raise
        return rendered(others)


def why_no_reply(record: Mapping[str, Any]) -> str | None:
    """Return why a line of a journal is not a reply, or None."""
    value, kind = record.get("value"), record.get("kind")
    if kind == LOGLIKELIHOOD:
        is_read = isinstance(value, list) and len(value) == 2 and _is_number(value[0]) and isinstance(value[1], bool)
    elif kind == ROLLING:
        is_read = _is_number(value)
    else:
        is_read = kind == GENERATION and isinstance(value, str)
    return None if is_read and isinstance(record.get("num_cut"), int) else "not a reply to a request of lm-eval"


def answer_chunk(
    loaded: LoadedModel, chunk: Sequence[ScoringRequest], *, options: ScoringOptions
) -> list[ScoringReply]:
    """Return the reply to each request of one kind.

    Raises:
        InputError: If a token has no embedding, or the chunk does not fit the GPU.
    """
    import torch

    with silent():
        lm = _scoring_model(loaded.causal_lm, loaded.tokenizer, options)
        num_cut = _num_cut(lm, chunk)
        [kind] = {request.kind for request in chunk}
        if is_sampled(chunk[0]):
            text = json.dumps([options.seed, chunk])
            torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
        instances = [Instance(kind, {}, request.args, 0) for request in chunk]
        try:
            values = getattr(lm, kind)(instances, disable_tqdm=True)
        except torch.OutOfMemoryError:
            raise InputError(
                f"suite.batch_size={options.batch_size}: {len(chunk)} requests do not fit the GPU, give less; replies "
                "so far are kept"
            ) from None
    return [ScoringReply(value, cut) for value, cut in zip(values, num_cut, strict=True)]


def is_sampled(request: ScoringRequest) -> bool:
    """Return whether an answer is drawn at random, so that the same request has several answers."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return request.kind == GENERATION and bool(normalize_gen_kwargs(request.args[1])["do_sample"])


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress the notes and bars of lm-eval and `datasets`, which are many and the same at each call."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


@lru_cache(maxsize=1)  # once for each process and model
def _scoring_model(causal_lm: Any, tokenizer: Any, options: ScoringOptions) -> Any:
    from lm_eval.models.huggingface import HFLM

    if multiprocessing.parent_process() is not None:
        tqdm.set_lock(threading.RLock())  # a process of the pool is killed, and the usual lock would leak a semaphore
    return HFLM(
        pretrained=causal_lm,
        tokenizer=copy.deepcopy(tokenizer),  # lm-eval sets its pad token
        batch_size=options.batch_size,
        max_length=options.max_length,
        add_bos_token=options.add_bos_token,
    )


def _num_cut(lm: Any, chunk: Sequence[ScoringRequest]) -> list[int]:
    """Return the number of tokens that lm-eval cuts off the beginning of each prompt; refuse ids without embedding."""
    from lm_eval.models.utils import normalize_gen_kwargs

    @cache
    def encoded(text: str) -> list[int]:
        return lm.tok_encode(text) if text else [lm.prefix_token_id]

    lengths, ids = [], []
    for request in chunk:
        text = "".join(request.args[:2]) if request.kind == LOGLIKELIHOOD else request.args[0]
        ids.append(encoded(text))
        if request.kind == LOGLIKELIHOOD:
            lengths.append(len(ids[-1]) - lm.max_length - 1)
        elif request.kind == GENERATION:
            room = normalize_gen_kwargs(request.args[1], lm.max_gen_toks)["max_gen_toks"]
            lengths.append(len(ids[-1]) + room - lm.max_length)
        else:
            lengths.append(0)  # a long text is read in parts
    num_embeddings = lm.model.get_input_embeddings().weight.shape[0]
    check_prompts(ids, lm.tokenizer, num_embeddings, "the model that lm-eval asks")
    return [max(0, length) for length in lengths]


def _keys(requests: Sequence[ScoringRequest]) -> list[str]:
    """Return the key of each request in the journal. A repeated request has one key, unless its answer is drawn."""
    seen: Counter[str] = Counter()
    keys = []
    for request in requests:
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]
        number, seen[key] = seen[key], seen[key] + 1
        keys.append(f"{key}/{number}" if number and is_sampled(request) else key)
    return keys


def _chunks(requests: Mapping[str, ScoringRequest], batch_size: int) -> list[list[str]]:
    """Return the keys of requests in chunks of `batch_size` contexts, the longest first.

    The choices of a question stay together, because lm-eval reads their context once if they are single tokens.
    """
    together: dict[tuple[str, str], list[str]] = {}
    for key, request in requests.items():
        settings = json.dumps(request.args[1], sort_keys=True) if request.kind == GENERATION else ""
        together.setdefault((settings, request.args[0]), []).append(key)

    def length(keys: Sequence[str]) -> int:
        return max(sum(len(text) for text in requests[key].args if isinstance(text, str)) for key in keys)

    chunks: list[list[str]] = []
    by_settings: dict[str, list[list[str]]] = {}
    for (settings, _), keys in together.items():
        by_settings.setdefault(settings, []).append(keys)
    for contexts in by_settings.values():
        contexts.sort(key=length, reverse=True)
        for start in range(0, len(contexts), batch_size):
            chunks.append([key for keys in contexts[start : start + batch_size] for key in keys])
    return chunks


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
