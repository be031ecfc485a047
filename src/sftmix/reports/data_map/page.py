"""Write the page of a data map."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sftmix.analysis.scored_examples import SHOWN_CHARACTERS, ScoredExamples, read_scored_examples
from sftmix.artifacts.artifact import is_complete
from sftmix.artifacts.files import replacing_file
from sftmix.errors import InputError
from sftmix.provenance.runs import read_record
from sftmix.quoting import shell_command
from sftmix.reports.data_map.findings import length_correlations, repeated_prompts
from sftmix.reports.data_map.packing import PackedTexts, codes_of, compress, encoded, pack_arrays, pack_texts
from sftmix.reports.package_files import asset, hash_of
from sftmix.sweep import CONFIG_FILE
from sftmix.terminal import counted

BUDGET = 30_000_000  # Bytes of the texts in a page, above which long texts are shortened
SCRIPTS = ("unpack", "scales", "scatter", "selection", "table", "panels", "start")  # In the order of the page


class WrittenMap(NamedTuple):
    """A map that was written: its file, and what it holds in words."""

    file: Path
    in_words: str


def write_map(folder: Path, root: Path, output: Path | None = None, budget: int = BUDGET) -> WrittenMap:
    """Write the data map of a run, of a reference, or of a folder of scores.

    Args:
        output: File to write. The default is `reports/NAME-map.html` under the root.
        budget: Bytes of the texts in the page, above which long texts are shortened.

    Raises:
        InputError: If the folder has no scores, a file is damaged, or the output is a folder or is inside an artifact.
    """
    file = output or root / "reports" / f"{folder.name}-map.html"
    check_output(file)
    return write_map_of(read_scored_examples(folder, root), folder, file, budget)


def write_map_of(examples: ScoredExamples, folder: Path, file: Path, budget: int = BUDGET) -> WrittenMap:
    """Write the data map of the examples of a folder."""
    html, notes = build_page(examples, folder.name, _command_to_select(folder), budget)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(file) as aside:
        aside.write_text(html, encoding="ascii")
    size = f"{file.stat().st_size / 1e6:.1f} MB"
    return WrittenMap(file, "; ".join([f"{counted(len(examples), 'example')}, {size}", *notes]))


def check_output(file: Path) -> None:
    """Refuse an output that is a folder or is inside an artifact."""
    if file.is_dir():
        raise InputError(f"output={file}: is a folder, expected the name of a file")
    if (artifact := next((folder for folder in file.resolve().parents if is_complete(folder)), None)) is not None:
        raise InputError(f"output={file}: is inside {artifact.name}, whose files do not change; choose another folder")


def _command_to_select(folder: Path) -> str:
    """Return the recorded command of a folder with `data/select=ids` instead of its own selection and mode."""
    words = ["train.py", "..."]
    try:
        recorded = [str(word) for word in read_record(folder / "run.json")["command"]]
    except (InputError, LookupError, TypeError):  # the page is of use without the command
        recorded = []
    if recorded and CONFIG_FILE not in recorded:
        words = [word for word in recorded if not re.match(r"data/select=|data\.select\.|mode=", word)]
    return shell_command(["python", *words, "data/select=ids"])


def build_page(examples: ScoredExamples, name: str, command: str, budget: int = BUDGET) -> tuple[str, list[str]]:
    """Return the page in ASCII, and a note for each kind of text that is not whole.

    Args:
        command: Command that trains on exported ids, up to `data.select.path=FILE`.
    """
    texts = pack_texts((examples.ids, examples.instruction, examples.response), budget)
    with np.errstate(over="ignore"):
        points = {
            "confidence": examples.confidence.astype(np.float32),
            "variability": examples.variability.astype(np.float32),
        }
        perplexity = examples.perplexity.astype(np.float32)
    categories, codes = {}, {}
    columns = {"subset": examples.subset, "group": examples.group, "source": examples.source, "part": examples.part}
    for key, values in columns.items():
        if values is not None and any(values):
            categories[key], codes[key] = codes_of(values)
    if "subset" in codes:  # the colors of the first paint
        points["subset"] = codes.pop("subset")
    rest = {
        "perplexity": perplexity,
        "num_tokens": examples.num_tokens.astype(np.uint32),
        "row": examples.row.astype(np.uint32),
        "turn": np.minimum(examples.turn, 2**16 - 1).astype(np.uint16),
        "is_cut": (examples.is_cut | texts.is_shortened).astype(np.uint8),
        **codes,
    }
    first, later = pack_arrays(points), pack_arrays(rest)
    notes = _notes(examples, texts)
    meta = {
        "name": name,
        "examples": len(examples),
        "checkpoints": examples.perplexity.shape[1],
        "used": examples.used,
        "has_ranks": examples.has_ranks,
        "command": command,
        "categories": categories,
        "layouts": {"points": first.layout, "columns": later.layout},
        "rho": length_correlations(examples),
        "repeated": repeated_prompts(examples),
        "notes": notes,
    }
    blocks = {"points": encoded(first.content), "columns": compress(later.content), "texts": texts.content}
    return _render(meta, blocks), notes


def _notes(examples: ScoredExamples, texts: PackedTexts) -> list[str]:
    notes = []
    missing = sum(text is None for text in examples.response)
    if missing:
        notes.append(f"the texts of {counted(missing, 'example')} are missing: the prepared data of the run is gone")
    if cut := int(examples.is_cut.sum()):
        notes.append(
            f"of {counted(cut, 'example')} only the first {SHOWN_CHARACTERS} characters of each text are shown: "
            f"the prepared data of the run is gone"
        )
    if texts.limit is not None:
        short = counted(int(texts.is_shortened.sum()), "example")
        notes.append(f"texts of {short} are shortened to {texts.limit:,} characters, to keep the page small")
    return notes


def _render(meta: dict[str, Any], blocks: dict[str, str]) -> str:
    """Return the page with its data and a content security policy that allows only its own style and script."""
    style, page = asset(__package__, "map.css"), asset(__package__, "map.html")
    script = "".join(["(() => {\n'use strict';\n", *(asset(__package__, f"{name}.js") for name in SCRIPTS), "})();\n"])
    policy = f"default-src 'none'; style-src '{hash_of(style)}'; script-src '{hash_of(script)}'; "
    policy += "base-uri 'none'; form-action 'none'"
    # "<" is escaped, so that data cannot end the script element. All characters beyond ASCII are escaped too.
    embedded = json.dumps(meta).replace("<", "\\u003c")
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "META": embedded}
    parts |= {name.upper(): content for name, content in blocks.items()}
    return re.sub(r"__([A-Z]+)__", lambda found: parts[found[1]], page)  # once: data may hold a placeholder
