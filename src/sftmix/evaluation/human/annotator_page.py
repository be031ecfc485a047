"""Build the page on which a person compares two models blind: one HTML file without any network access."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from sftmix.artifacts.files import write_json
from sftmix.artifacts.hashes import fingerprint
from sftmix.evaluation.results import plain_name

KEY_FILE = "key.json"
TEMPLATE = "page.html"


class Comparison(NamedTuple):
    """An instruction and the answers of models a and b."""

    instruction: str
    a: str
    b: str


class AnnotatorPage(NamedTuple):
    """A page for one annotator."""

    annotator: int  # Counted from 1
    html: str  # Content in ASCII
    sha256: str  # Hash of the content without this hash
    left: Mapping[str, str]  # By item, the model whose answer is on the left: a or b


def item_id(instruction: str) -> str:
    """Return the id of an instruction. It does not depend on the answers."""
    return hashlib.sha256(instruction.encode(errors="surrogatepass")).hexdigest()[:12]


def build_page(pairs: Sequence[Comparison], annotator: int, seed: int) -> AnnotatorPage:
    """Return the page of an annotator, counted from 1; the same arguments give the same page.

    Order and sides are drawn by (seed, annotator, item). Each model is on the left of half of the items.
    """
    by_id = {item_id(pair.instruction): pair for pair in pairs}
    if len(by_id) != len(pairs):
        raise ValueError(f"{len(pairs)} pairs have {len(by_id)} different instructions, expected one pair for each")
    draws = {i: Random(f"{seed}/{annotator}/{i}") for i in by_id}
    order = sorted(by_id, key=lambda i: draws[i].random())
    by_side = sorted(by_id, key=lambda i: draws[i].random())
    lefts = (
        "ab" if Random(f"{seed}/{annotator}").random() < 0.5 else "ba"
    )  # the first has one more if the number is odd
    left = {i: lefts[rank % 2] for rank, i in enumerate(by_side)}
    items = []
    for i in order:
        pair = by_id[i]
        sides = (pair.a, pair.b) if left[i] == "a" else (pair.b, pair.a)
        items.append({"id": i, "instruction": pair.instruction, "left": sides[0], "right": sides[1]})
    sha256 = hashlib.sha256(_render({"page_sha256": "", "annotator": annotator, "items": items}).encode()).hexdigest()
    html = _render({"page_sha256": sha256, "annotator": annotator, "items": items})
    return AnnotatorPage(annotator, html, sha256, left)


def build_pages(
    root: Path,
    pairs: Sequence[Comparison],
    *,
    names: tuple[str, str],
    annotators: int,
    seed: int,
    record: Mapping[str, Any],
) -> Path:
    """Write the pages of all annotators and the key with the sides of the models; return their folder.

    The folder is `<a>-vs-<b>-<8 hex>` under the root. Its name depends only on the pages, so other pages never replace
    the key of pages that were handed out.

    Args:
        names: Names of models a and b.
        record: Further content of the key: origin of the answers, settings.
    """
    pages = [build_page(pairs, annotator, seed) for annotator in range(1, annotators + 1)]
    title = "-vs-".join(plain_name(name)[:60] for name in names)
    folder = root / f"{title}-{fingerprint({'pages': [page.sha256 for page in pages], 'names': names})}"
    folder.mkdir(parents=True, exist_ok=True)
    key = {
        "a": names[0],
        "b": names[1],
        "seed": seed,
        "items": {item_id(pair.instruction): pair.instruction for pair in pairs},
        "pages": {page.sha256: {"annotator": page.annotator, "left": page.left} for page in pages},
        "record": record,
    }
    write_json(folder / KEY_FILE, key)  # before the pages, so that no page can be handed out without a key
    for page in pages:
        (folder / f"annotator-{page.annotator}.html").write_text(page.html, encoding="ascii")
    return folder


def _render(data: Mapping[str, Any]) -> str:
    """Return the page with its data and a content security policy that allows only its own style and script."""
    template = files("sftmix.evaluation.human").joinpath(TEMPLATE).read_text(encoding="utf-8")
    template = template.encode("ascii", "xmlcharrefreplace").decode()
    policy = (
        f"default-src 'none'; style-src '{_hash_of('style', template)}'; script-src '{_hash_of('script', template)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # "<" is escaped, so that data cannot end the script element. All characters beyond ASCII are escaped too.
    embedded = json.dumps(data).replace("<", "\\u003c")
    parts = {"__POLICY__": policy, "__DATA__": embedded}
    return re.sub("|".join(parts), lambda found: parts[found.group()], template)  # once: data may hold a placeholder


def _hash_of(element: str, template: str) -> str:
    content = template.rpartition(f"<{element}>")[2].partition(f"</{element}>")[0]
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
