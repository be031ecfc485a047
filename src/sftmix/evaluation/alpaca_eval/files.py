"""The files that AlpacaEval publishes: fetched, or in a folder that was given. None of their content is in here."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.evaluation.published import Published, locate

SUBFOLDER = "alpaca_eval"
_HUB = "https://huggingface.co/datasets/tatsu-lab/alpaca_eval/resolve/2edc6fad8be6b14ea7230aabfd08188da6b8b814"
_GITHUB = "https://raw.githubusercontent.com/tatsu-lab/alpaca_eval/15fd513071d389b79dab27fd464800c6fe10c15a"


class Named(NamedTuple):
    """A published file, and what else people call it.

    Attributes:
        published: where it comes from.
        also: other names that it has in folders.
    """

    published: Published
    also: Sequence[str] = ()


BASELINE = Named(
    Published("gpt4_1106_preview_outputs.json", f"{_HUB}/alpaca_eval_gpt4_baseline.json"),
    ("alpaca_eval_gpt4_baseline.json",),
)
# In a rebuilt file of the second name the rows differ from the published ones, and the fit does not.
GAMED = Named(Published("df_gamed.csv", f"{_HUB}/df_gamed.csv"), ("df_gamed_equivalent.csv",))
TEMPLATE = Named(
    Published(
        "alpaca_eval_clf.txt",
        f"{_GITHUB}/src/alpaca_eval/evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
        "784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62",
    )
)


def find_file(file: Named, bench: Path | None, cache: Path) -> Path:
    """The path of a published file: in a folder or its subfolder `alpaca_eval`, else fetched.

    Args:
        file: which.
        bench: folder with the published files, or None.
        cache: folder of what was fetched.

    Raises:
        InputError: it is not in the folder, or cannot be fetched.
    """
    if bench is not None:
        for folder in (bench, bench / SUBFOLDER):
            for name in (file.published.name, *file.also):
                if (folder / name).is_file():
                    return folder / name
    return locate(file.published, bench, cache)
