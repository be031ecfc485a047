"""Settings of suite=lm_eval."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sftmix.config.fields import checked, number, path_field
from sftmix.evaluation.suite_config import SuiteConfig


@dataclass(kw_only=True)
class LmEvalConfig(SuiteConfig):
    """Any task of lm-evaluation-harness."""

    reads: ClassVar[frozenset[str]] = frozenset({"device", "seed"})
    decimals: ClassVar[int] = 4
    notes: ClassVar[tuple[str, ...]] = ("lm_eval: scores are in the units of lm-eval, so an accuracy is a share of 1",)
    usage: ClassVar[Mapping[str, str]] = {
        "run=runs/RUN suite=lm_eval": "IFEval and MMLU by lm-evaluation-harness",
        "suite=lm_eval 'suite.tasks=[gsm8k,bbh]'": "any of its tasks; suite.include_path=FOLDER adds your own",
    }

    tasks: list[str] = checked(
        lambda names: len(names) > 0 and len(set(names)) == len(names) and all(name.strip() for name in names),
        "at least one name of a task, group or tag, each once",
    )  # Names of tasks, groups or tags of lm-eval
    num_fewshot: int | None = number(least=0)  # Solved examples in each prompt; null: the number of the task
    apply_chat_template: bool | None  # null: only tasks that generate text are asked through the chat template
    fewshot_as_multiturn: bool  # With the chat template: the solved examples are turns, not one text
    template: str | None = path_field()  # Chat template; null: the model's own
    system_instruction: str | None  # Text before the prompt, or the system turn of the chat
    include_path: str | None = path_field()  # Folder with further tasks (YAML files of lm-eval's form)
    batch_size: int = number(least=1)  # Prompts of a batch

    def without_effect(self) -> Mapping[str, str]:
        if self.apply_chat_template is False:
            return dict.fromkeys(("fewshot_as_multiturn", "template"), "suite.apply_chat_template=false")
        return {}
