"""Who answers, as the settings say: the model here, or a server that has it."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sftmix.errors import ConfigError, InputError
from sftmix.evaluation.judging import ANSWER_PARAMETERS, check_address, check_parameters, key_of
from sftmix.evaluation.schema import GenerateConfig
from sftmix.evaluation.target import Target

if TYPE_CHECKING:
    from sftmix.evaluation.generators.answers import Generator

SERVED = "openai"


def check_answering(generate: GenerateConfig, target: Target, tokenizer: Callable[[], Any]) -> None:
    """Refuse a template that is none, a model without one, and a server that cannot be called; no model is read.

    Args:
        generate: settings.
        target: who answers.
        tokenizer: gives the model's.

    Raises:
        InputError: what is missing or wrong.
    """
    from sftmix.data.templates import choices, template_source

    if generate.backend != SERVED:
        if generate.rename_parameters or generate.drop_parameters:
            raise ConfigError(
                "generate.rename_parameters, generate.drop_parameters: only generate=openai sends requests"
            )
        if generate.template is not None:
            template_source(generate.template, "generate.template")
        elif not tokenizer().chat_template:
            raise ConfigError(
                f"generate.template has no value and {target.name} has no chat template, expected {choices()}"
            )
        return
    if generate.template is not None:
        raise ConfigError(f"generate.template={generate.template}: the server applies its own template")
    check_address("generate.base_url", generate.base_url)
    check_parameters("generate", generate.rename_parameters, generate.drop_parameters, ANSWER_PARAMETERS)
    if find_spec("openai") is None:
        raise InputError("generate=openai: the package openai is not installed, it comes with sftmix[eval]")
    key_of(generate.api_key_env, generate.api_key_env is not None, "generate=openai")


def make_generator(
    generate: GenerateConfig, target: Target, seed: int, model: Callable[[], tuple[Any, Any, str]]
) -> "Generator":
    """The generator of a call.

    Args:
        generate: settings.
        target: who answers.
        seed: of draws.
        model: gives the causal language model, its tokenizer and its device.

    Raises:
        InputError: the model cannot be read, or has no chat template.
    """
    if generate.backend == SERVED:
        from sftmix.evaluation.generators.server import ServerGenerator
        from sftmix.evaluation.judge.client import Server

        assert generate.model is not None
        server = Server(
            who=f"model {generate.model}",
            model=generate.model,
            base_url=generate.base_url,
            api_key=key_of(generate.api_key_env, generate.api_key_env is not None, "generate=openai"),
            concurrency=generate.concurrency,
            max_retries=generate.max_retries,
            timeout=generate.timeout,
            rename=generate.rename_parameters or {},
            drop=generate.drop_parameters or (),
            group="generate",
        )
        return ServerGenerator(server, identity=target.identity, seed=seed)
    from sftmix.evaluation.generators.local import HFGenerator

    causal_lm, tokenizer, _ = model()
    return HFGenerator(
        causal_lm,
        tokenizer,
        identity=target.identity,
        template_name=generate.template,
        seed=seed,
        batch_size=generate.batch_size,
    )
