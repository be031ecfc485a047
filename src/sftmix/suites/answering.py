"""Who answers, as the settings say: the model here, or a server that has it."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sftmix.errors import ConfigError, InputError
from sftmix.suites.judging import check_address, key_of

if TYPE_CHECKING:
    from sftmix.evaluation.answers import Generator
    from sftmix.suites.work import Work

SERVED = "openai"


def check_answering(work: "Work") -> None:
    """Refuse a template that is none, a model without one, and a server that cannot be called; no model is read.

    Raises:
        InputError: what is missing or wrong.
    """
    from sftmix.data.templates import choices, template_source

    generate = work.config.generate
    if generate.backend != SERVED:
        if generate.template is not None:
            template_source(generate.template, "generate.template")
        elif not work.tokenizer.chat_template:
            raise ConfigError(
                f"generate.template has no value and {work.subject.name} has no chat template, expected {choices()}"
            )
        return
    if generate.template is not None:
        raise ConfigError(f"generate.template={generate.template}: the server applies its own template")
    check_address("generate.base_url", generate.base_url)
    if find_spec("openai") is None:
        raise InputError("generate=openai: the package openai is not installed, it comes with sftmix[eval]")
    key_of(generate.api_key_env, generate.api_key_env is not None, "generate=openai")


def make_generator(work: "Work") -> "Generator":
    """The generator of a call.

    Raises:
        InputError: the model cannot be read, or has no chat template.
    """
    generate, seed = work.config.generate, work.config.seed
    if generate.backend == SERVED:
        from sftmix.evaluation.server import Server
        from sftmix.evaluation.server_generator import ServerGenerator

        assert generate.model is not None
        server = Server(
            who=f"model {generate.model}",
            model=generate.model,
            base_url=generate.base_url,
            api_key=key_of(generate.api_key_env, generate.api_key_env is not None, "generate=openai"),
            concurrency=generate.concurrency,
            max_retries=generate.max_retries,
            timeout=generate.timeout,
        )
        return ServerGenerator(server, identity=work.subject.identity, seed=seed)
    from sftmix.evaluation.local_generator import HFGenerator

    causal_lm, tokenizer, _ = work.model()
    return HFGenerator(
        causal_lm,
        tokenizer,
        identity=work.subject.identity,
        template_name=generate.template,
        seed=seed,
        batch_size=generate.batch_size,
    )


def known_settings(work: "Work") -> Mapping[str, Any]:
    """What is known of the settings of a call's generator without its model.

    Raises:
        InputError: the tokenizer cannot be read, or there is no such template.
    """
    if work.config.generate.backend == SERVED:
        return work.generator().settings
    from sftmix.evaluation.local_generator import known_settings
    from sftmix.models.loading import load_tokenizer

    return known_settings(
        load_tokenizer(work.subject.model, work.subject.revision, None),
        identity=work.subject.identity,
        template_name=work.config.generate.template,
        seed=work.config.seed,
        dtype=work.dtype,
        device=work.device,
    )
