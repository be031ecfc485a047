"""Data, tokenizers and models as the configuration means them, each made once for all stages of a run."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sftmix.artifacts.artifact import Artifact, making
from sftmix.artifacts.manifest import read_json, verify
from sftmix.config.schema import Config, Model, to_dict
from sftmix.data.census import HELD_OUT, NOT_FOUND, NOT_SELECTED, SAME_TOKENS, Census
from sftmix.data.demo import demo_texts
from sftmix.data.encoding import Encoder
from sftmix.data.example import is_held_out, place
from sftmix.data.generation_prompt import align_generation_prompt
from sftmix.data.selection import SelectionList, best, longest, random_examples
from sftmix.data.shards import EXAMPLES, TOKENS, EncodedExamples, Examples, map_shards
from sftmix.data.templates import set_template, template_source
from sftmix.data.vocabulary import check_examples, check_template
from sftmix.distributed.device import Device
from sftmix.distributed.stopping import StopRequest
from sftmix.errors import InputError, explain_os_error
from sftmix.hub import looks_local
from sftmix.models.loading import empty_causal_lm, load_causal_lm, num_embeddings, num_positions
from sftmix.models.lora import Base, add_lora
from sftmix.models.tiny import tiny_llama, tiny_tokenizer
from sftmix.models.tokenizer import load_tokenizer, set_pad_token
from sftmix.stages.plan import base_artifact, data_name, examples_artifact
from sftmix.stages.prepare import CENSUS, READING, make_examples, make_tokens, tokens_artifact
from sftmix.terminal import counted

if TYPE_CHECKING:
    import torch

    from sftmix.distributed.ranks import Ranks

# The embedded tokenizer is trained on the embedded set as it ships, whatever the run's data.
TINY_TEXTS = {"num_examples": 2000, "seed": 0}


class StageSpec(NamedTuple):
    """What a stage computes, and where.

    Attributes:
        stage: reference, ntp (the target is an NTP run), confidence, target or certify.
        folder: Folder that the stage writes into.
        fields: Everything that the content of the folder depends on.
        inputs: Paths that the stage reads.
    """

    stage: str
    folder: Path
    fields: Mapping[str, Any]
    inputs: tuple[Path, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the spec as JSON can hold it, for the processes of a stage."""
        return {**self._asdict(), "folder": str(self.folder), "inputs": [str(path) for path in self.inputs]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "StageSpec":
        """Return the spec that `as_dict` has written."""
        inputs = tuple(map(Path, content["inputs"]))
        return cls(content["stage"], Path(content["folder"]), content["fields"], inputs)


class RankContext(NamedTuple):
    """One process of a stage.

    Attributes:
        device: Devices of the run.
        ranks: Rank of this process among the processes of the stage.
        stop: Whether this process was asked to stop.
    """

    device: Device
    ranks: "Ranks"
    stop: StopRequest

    @property
    def torch_device(self) -> "torch.device":
        """The device of this process."""
        import torch

        return torch.device("cuda", self.ranks.local_rank) if self.device.accelerator == "gpu" else torch.device("cpu")


def run_stage(spec: StageSpec, context: "RunContext", rank: RankContext) -> None:
    """Run a stage in this process, or the share of this rank.

    Raises:
        InputError: If the input is wrong, or a file cannot be read or written.
    """
    from safetensors import SafetensorError

    try:
        _write(spec, context, rank)
    except BrokenPipeError:  # of the standard output, as of `| head`: the command line ends without a message
        raise
    except OSError as error:
        raise InputError(explain_os_error(error)) from error
    except SafetensorError as error:
        raise InputError(f"{spec.folder}: {' '.join(str(error).split())}; run the same command again") from error


def _write(spec: StageSpec, context: "RunContext", rank: RankContext) -> None:
    """Call the function of a stage. Stages import torch, so each is imported when it runs."""
    if spec.stage == "confidence":
        from sftmix.stages.confidence import write_confidence

        write_confidence(spec, context, rank)
    elif spec.stage == "certify":
        from sftmix.stages.invariance.gradients import write_gradients

        write_gradients(spec, context, rank)
    elif spec.stage == "target":
        from sftmix.stages.target import write_target

        write_target(spec, context, rank)
    else:
        from sftmix.stages.plan import reference_config
        from sftmix.stages.reference import write_ntp

        config = reference_config(context.config) if spec.stage == "reference" else context.config
        write_ntp(spec, config, context, rank)


class EncodedData(NamedTuple):
    """The data under one model's tokenizer.

    Attributes:
        tokenizer: with the chat template that was rendered.
        encoder: renders and tokenizes.
        train: examples to train on.
        val: held-out examples.
        census: what became of every row.
    """

    tokenizer: Any
    encoder: Encoder
    train: EncodedExamples
    val: EncodedExamples
    census: Census


class RunContext:
    """What the stages of one run are made from."""

    def __init__(self, config: Config) -> None:
        """Nothing is read yet."""
        self.config = config
        self._tokenizers: dict[str, Any] = {}
        self._encoded: dict[tuple[str, str, str], EncodedData] = {}

    @cached_property
    def _artifact(self) -> Artifact:
        """The artifact of the examples, which is made if it is not there, and verified.

        Raises:
            InputError: If the source cannot be read, or a file of the artifact is damaged.
        """
        artifact = examples_artifact(self.config)
        make_examples(artifact, self.config.data, self.config.trainer.progress_bar)
        verify(artifact.folder)
        return artifact

    @cached_property
    def reading(self) -> dict[str, Any]:
        """What was found in reading the source: its census, shapes, rows of each source, joined responses."""
        return read_json(self._artifact.folder / READING)

    @cached_property
    def examples(self) -> Examples:
        """All examples of the source, mapped into memory.

        Raises:
            InputError: the source cannot be read.
        """
        return Examples(map_shards(self._artifact.folder, EXAMPLES))

    @property
    def _source(self) -> str:
        data = self.config.data
        return Path(data.path).name if data.path else data.hub_id or data.name

    def encoded(self, model: Model) -> EncodedData:
        """The data under a model's tokenizer.

        Raises:
            InputError: the tokenizer or its template cannot be used, a token has no embedding, or fewer than two
                examples are left.
        """
        encoded = self.encoded_by(self._tokenizer_of(model))
        if model.path is not None:
            size = num_embeddings(model.path, model.revision)
            check_examples(encoded.train, encoded.tokenizer, size, f"model {model.path}")
        return encoded

    def _tokenizer_of(self, model: Model) -> Any:
        """A model's tokenizer, loaded once, with the run's template."""
        key = json.dumps(to_dict(model))
        if key not in self._tokenizers:
            self._check_positions(model)
            self._tokenizers[key] = self.tokenizer(model)
            self._check_lora(model)
            self._set_template(self._tokenizers[key])
            if model.path is not None:
                encoder = Encoder(self._tokenizers[key], self.config.data.max_seq_len, self.config.data.overlong)
                size = num_embeddings(model.path, model.revision)
                check_template(encoder, encoder.end_token_id, size, f"model {model.path}")
        return self._tokenizers[key]

    def encoded_by(self, tokenizer: Any) -> EncodedData:
        """The data under a tokenizer, with the run's template or the tokenizer's own by data.template=tokenizer.

        Raises:
            InputError: the template cannot be used, or fewer than two examples are left.
        """
        self._set_template(tokenizer)
        key = (tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template), str(tokenizer.special_tokens_map))
        if key not in self._encoded:
            self._encoded[key] = self._encode(tokenizer)
        return self._encoded[key]

    def _set_template(self, tokenizer: Any) -> None:
        """Give a tokenizer the run's chat template (data.template=tokenizer keeps its own) and align the template."""
        set_template(tokenizer, template_source(self.config.data.template))
        if tokenizer.chat_template:
            align_generation_prompt(tokenizer, f"data.template={self.config.data.template}")

    def _encode(self, tokenizer: Any) -> EncodedData:
        data = self.config.data
        encoder, artifact = self._tokens(tokenizer)
        census = Census()
        census.add(self.reading["census"])
        census.add(read_json(artifact.folder / CENSUS))
        everything = EncodedExamples(map_shards(artifact.folder, TOKENS))
        self._take_down(census, everything, ~repeats_of(everything), SAME_TOKENS)
        train, val = self._parts(artifact)
        if data.select is not None:
            chosen = np.isin(train.lines, self._selected_lines)
            self._take_down(census, train, chosen, f"{NOT_SELECTED} (data.select.by={data.select.by})")
            if data.select.path is not None:
                both = train.joined(val)
                for entry in self._listed.unknown(both.ids, self._rows(both)):
                    census.noted[NOT_FOUND].append(entry)
            if data.select.by == "ids":
                for where in self._places(val.select(self._listed.names(val.ids, self._rows(val)))):
                    census.noted[HELD_OUT].append(where)
            train = train.select(chosen)
        if len(train) < 2:
            lost = census.lost()
            raise InputError(
                f"{self._source}: {counted(len(train), 'example')} to train on, expected at least 2 ({len(val)} held "
                f"out{'; ' + lost if lost else ''}; data.max_seq_len={data.max_seq_len}, data.overlong={data.overlong})"
            )
        return EncodedData(tokenizer, encoder, train, val, census)

    def _tokens(self, tokenizer: Any) -> tuple[Encoder, Artifact]:
        """The token ids under a tokenizer, which are made if they are not there, and verified."""
        data = self.config.data
        encoder = Encoder(tokenizer, data.max_seq_len, data.overlong)
        artifact = tokens_artifact(self._artifact, encoder, data_name(data))
        progress = self.config.trainer.progress_bar
        make_tokens(artifact, self._artifact.folder, encoder, num_workers=data.num_workers, show_progress=progress)
        verify(artifact.folder)
        return encoder, artifact

    def _parts(self, artifact: Artifact) -> tuple[EncodedExamples, EncodedExamples]:
        """Return the examples to train on, before any selection, and the held-out ones; each token sequence once."""
        encoded = EncodedExamples(map_shards(artifact.folder, TOKENS))
        encoded = encoded.select(~repeats_of(encoded))
        dialogues = encoded.column("dialogue").to_pylist()
        fraction = self.config.data.val_fraction
        held_out = np.array([is_held_out(dialogue, fraction) for dialogue in dialogues], dtype=bool)
        return encoded.select(~held_out), encoded.select(held_out)

    @cached_property
    def _selected_lines(self) -> np.ndarray:
        """Where the selected examples stand among all: chosen under the target's tokenizer, for every model of a run.

        Raises:
            InputError: there are too few, or the file of scores or ids is of other data.
        """
        select = self.config.data.select
        assert select is not None
        _, artifact = self._tokens(self._tokenizer_of(self.config.model))
        train, val = self._parts(artifact)
        if select.by in ("longest", "random"):
            assert select.k is not None
            if select.by == "longest":
                chosen = longest(train.num_response_tokens, select.k)
            else:
                chosen = random_examples(train.ids, select.k, int(select.seed or 0))
        else:
            self._listed.check_covers(sum(self.reading["rows"].values()))
            held_out = self._listed.names(val.ids, self._rows(val)).sum()
            scores = self._listed.scores(train.ids, self._rows(train), len(self.reading["rows"]), int(held_out))
            is_scored = select.by == "scores"
            chosen = best(scores, select.k, select.at_least) if is_scored else np.flatnonzero(~np.isnan(scores))
        return train.lines[chosen]

    @cached_property
    def _listed(self) -> SelectionList:
        """The file of scores or ids.

        Raises:
            InputError: it cannot be read, or holds something else.
        """
        select = self.config.data.select
        assert select is not None
        return SelectionList(Path(str(select.path)), as_scores=select.by == "scores")

    def _rows(self, encoded: EncodedExamples) -> list[int]:
        """The row of each example in its source, counted from 1."""
        return self.examples.table.column("row").take(encoded.lines).to_pylist()

    def _take_down(self, census: Census, encoded: EncodedExamples, chosen: np.ndarray, reason: str) -> None:
        """Count the examples that are not chosen as dropped for a reason, and what that makes of their rows."""
        if chosen.all():
            return
        left_out = encoded.select(~chosen)
        places = self._places(left_out)
        for where, shortened in zip(places, left_out.column("shortened").to_pylist(), strict=True):
            if shortened:
                census.shortened[shortened].remove(where)
            else:
                census.kept -= 1
            census.dropped[reason].append(where)
        stay = set(self._places(encoded.select(chosen)))
        whole = dict(zip(places, left_out.column("is_whole").to_pylist(), strict=True))
        for where, was_whole in whole.items():
            if where not in stay:
                census.rows["kept" if was_whole else "shortened"] -= 1
                census.rows["dropped"] += 1
            elif was_whole:
                census.rows["kept"] -= 1
                census.rows["shortened"] += 1

    def _places(self, encoded: EncodedExamples) -> list[str]:
        """The row of each example, as the census names it."""
        where = self.examples.table.select(["source", "row"]).take(encoded.lines).to_pydict()
        return [place(source, row) for source, row in zip(where["source"], where["row"], strict=True)]

    def _check_positions(self, model: Model) -> None:
        """Refuse sequences that are longer than what a model was made for."""
        wanted = self.config.data.max_seq_len
        if model.init is not None:
            positions: int | None = model.init.max_position_embeddings
        else:
            positions = num_positions(str(model.path), model.revision)
        if positions is not None and wanted > positions:
            raise InputError(
                f"data.max_seq_len={wanted}: model {model.name} has {positions} positions, set "
                f"data.max_seq_len={positions}"
            )

    def _check_lora(self, model: Model) -> None:
        """Refuse adapters that a model's layers cannot take."""
        if model.lora is not None:
            if model.init is not None:
                shell = tiny_llama(self.tokenizer(model), **_shape(model))
            else:
                shell = empty_causal_lm(str(model.path), model.revision)
            add_lora(shell, **_adapters(model), seed=0, base=Base("", None))

    def tokenizer(self, model: Model) -> Any:
        """A model's tokenizer, with a pad token.

        Raises:
            InputError: it cannot be had.
        """
        if model.init is not None:
            tokenizer = tiny_tokenizer(demo_texts(**TINY_TEXTS), model.init.vocab_size)
            set_pad_token(tokenizer, model.pad_token)
            return tokenizer
        return load_tokenizer(str(model.path), model.revision, model.pad_token)

    def causal_lm(self, model: Model, *, weights: bool = True) -> Any:
        """A model with its weights in float32, or without any on the meta device.

        Raises:
            InputError: it cannot be had.
        """
        if model.init is not None:
            return tiny_llama(self.encoded(model).tokenizer, **_shape(model), weights=weights)
        load = load_causal_lm if weights else empty_causal_lm
        return load(str(model.path), model.revision)

    def tuned_causal_lm(self, model: Model, seed: int, *, weights: bool = True) -> Any:
        """A model to tune: all weights in float32 or, with LoRA, adapters drawn by the seed beside frozen weights.

        Without weights it is on the meta device: the first rank has them.

        Raises:
            InputError: it cannot be had, or takes no such adapters.
        """
        causal_lm = self.causal_lm(model, weights=weights)
        if model.lora is None:
            return causal_lm
        base = self._base(model) if weights else Base("", None)  # the rank that has the weights writes the adapters
        return add_lora(causal_lm, **_adapters(model), seed=seed, base=base)

    def _base(self, model: Model) -> Base:
        """What an adapter names as its base; the embedded model gets a folder, so that it has one."""
        if model.init is None:
            local = looks_local(str(model.path))
            return Base(str(Path(str(model.path)).resolve()) if local else str(model.path), model.revision)
        artifact = base_artifact(self.config.root, model)
        with making(artifact) as folder:
            if folder is not None:
                from sftmix.models.export import export  # it imports torch

                tokenizer = self.tokenizer(model)
                export(self.causal_lm(model), tokenizer, folder / "model", "float32", tokenizer.eos_token_id)
        verify(artifact.folder)
        return Base(str((artifact.folder / "model").resolve()), None)


def repeats_of(encoded: EncodedExamples) -> np.ndarray:
    """Return which examples have the token ids of an earlier one whose row has the same text, bool `[example]`.

    Rows that set instruction and input apart at different places are two examples; a template without inputs shows them
    alike.
    """
    repeats = np.zeros(len(encoded), dtype=bool)
    dialogues = encoded.column("dialogue").to_pylist()
    if len(set(dialogues)) == len(dialogues):
        return repeats
    first: dict[Any, list[int]] = {}
    keys = zip(dialogues, encoded.lengths.tolist(), encoded.num_prompt_tokens.tolist(), strict=True)
    for k, key in enumerate(keys):
        earlier = first.setdefault(key, [])
        repeats[k] = any(encoded[k].input_ids == encoded[other].input_ids for other in earlier)
        if not repeats[k]:
            earlier.append(k)
    return repeats


def _shape(model: Model) -> dict[str, Any]:
    """Arguments of the embedded model."""
    return {k: v for k, v in to_dict(model.init).items() if k != "vocab_size"}


def _adapters(model: Model) -> dict[str, Any]:
    """Arguments of its adapters."""
    return {k: v for k, v in to_dict(model.lora).items() if k != "lr_factor"}
