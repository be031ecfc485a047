"""How the questions of tasks become prompts: solved examples, chat template, system text; checked on one question."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sftmix.errors import ConfigError, InputError, first_line
from sftmix.evaluation.generators.fitting import template_sha256
from sftmix.evaluation.lm_eval.catalog import refusing
from sftmix.evaluation.lm_eval.model import GENERATION, render_chat


@dataclass(frozen=True)
class Prompting:
    """How the questions of all tasks become prompts."""

    tokenizer: Any  # With the chat template
    in_chat: frozenset[str]  # Tasks that are asked through the chat template
    fewshot_as_multiturn: bool  # The solved examples of these tasks are turns of the chat
    system_instruction: str | None
    max_tokens: int  # Tokens that the model reads

    def arguments_of(self, name: str) -> dict[str, Any]:
        """Return the arguments with which lm-eval builds the questions of a task."""

        def as_text(turns: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
            return render_chat(self.tokenizer, turns, add_generation_prompt)

        return {
            "apply_chat_template": name in self.in_chat,
            "chat_template": as_text if name in self.in_chat else None,
            "fewshot_as_multiturn": self.fewshot_as_multiturn,
            "system_instruction": self.system_instruction,
        }

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return what belongs to the results of a task."""
        is_chat = name in self.in_chat
        return {
            "template_sha256": template_sha256(self.tokenizer) if is_chat else None,
            "fewshot_as_multiturn": self.fewshot_as_multiturn if is_chat else None,
            "system_instruction": self.system_instruction,
        }

    def check(self) -> None:
        """Refuse a chat template that cannot be rendered, or that leaves out the system instruction."""
        if not self.in_chat:
            return
        try:
            render_chat(self.tokenizer, [{"role": "user", "content": "a"}])
        except Exception as error:  # a template is a program
            raise InputError(f"suite.apply_chat_template: the chat template fails ({first_line(error)})") from None
        if self.system_instruction is not None:
            turns = [{"role": "system", "content": self.system_instruction}, {"role": "user", "content": "a"}]
            if self.system_instruction.strip() not in render_chat(self.tokenizer, turns):
                raise ConfigError(
                    f"suite.system_instruction={self.system_instruction}: the chat template has no system turn"
                )


def generates(task: Any) -> bool:
    """Return whether a task lets the model write text, and does not only score given texts."""
    return task.OUTPUT_TYPE == GENERATION


def set_seeds(tasks: Mapping[str, Any], seed: int) -> None:
    """Seed the draws of solved examples, and the generators that tasks draw from, as `lm_eval --seed` does."""
    random.seed(seed)
    np.random.seed(seed)
    for task in tasks.values():
        task.set_fewshot_seed(seed)


def set_num_fewshot(tasks: Mapping[str, Any], number: int | None) -> None:
    """Set the number of solved examples; as in lm-eval, a task that is defined without any keeps none.

    Raises:
        ConfigError: If all tasks are defined without.
    """
    fixed = [name for name, task in tasks.items() if task.config.num_fewshot == 0]
    if number and len(fixed) == len(tasks):
        raise ConfigError(f"suite.num_fewshot={number}: it has no effect, {', '.join(fixed)} is defined with 0")
    if number and fixed:
        print(f"            {', '.join(fixed)}: defined with 0 solved examples, asked with none", flush=True)
    for name, task in tasks.items():
        if name not in fixed:
            own = task.config.num_fewshot or 0
            task.set_config(key="num_fewshot", value=own if number is None else number)


def prepare(tasks: Mapping[str, Any], prompting: Prompting) -> None:
    """Let each task build its questions by `prompting`, and build the first one.

    The code of a task fails with one line from now on.

    Raises:
        InputError: If a question cannot be built, or asks for more tokens than the model reads.
    """
    for name, task in tasks.items():
        shots = task.config.num_fewshot
        built = "its questions cannot be built" + (f" with num_fewshot={shots}" if shots else "")
        task.build_all_requests = _guarded(task.build_all_requests, name, built, prompting.arguments_of(name))
        task.process_results = _guarded(task.process_results, name, "an answer cannot be scored", {})
        task.set_fewshot_seed(0)
        task.build_all_requests(limit=1)
        for instance in task.instances:
            if instance.request_type == GENERATION:
                _check_room(name, instance.args[1], prompting.max_tokens)


def _guarded(function: Callable[..., Any], name: str, what: str, fixed: Mapping[str, Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with refusing(f"task {name}", what):
            return function(*args, **{**kwargs, **fixed})

    return call


def _check_room(name: str, generation: Mapping[str, Any], max_tokens: int) -> None:
    from lm_eval.models.utils import normalize_gen_kwargs

    room = normalize_gen_kwargs(dict(generation))["max_gen_toks"]
    if room >= max_tokens:
        raise InputError(
            f"task {name}: its answers may have {room:,} tokens, and the model reads {max_tokens:,} with the question; "
            "leave the task out of suite.tasks, or set max_gen_toks in a task of suite.include_path"
        )
