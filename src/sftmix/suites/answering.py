"""Who answers, as the settings say: the model here, or a server that has it."""

from typing import TYPE_CHECKING

from sftmix.suites.work import Work

if TYPE_CHECKING:
    from sftmix.evaluation.answers import Generator


def make_generator(work: Work) -> "Generator":
    """The generator of a call.

    Raises:
        InputError: the model cannot be read, or has no chat template.
    """
    raise NotImplementedError
