"""Write the page of a run."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from sftmix.analysis.scored_examples import ScoredExamples, read_scored_examples
from sftmix.artifacts.artifact import is_being_made, is_complete
from sftmix.artifacts.files import PARTIAL, write_bytes
from sftmix.artifacts.manifest import MANIFEST, read_manifest
from sftmix.errors import InputError, first_line
from sftmix.provenance.runs import NOT_A_RUN, Run, find_baseline, read_run
from sftmix.reports.data_map.page import WrittenMap, check_output, write_map_of
from sftmix.reports.package_files import asset, hash_of
from sftmix.reports.run_page import sections
from sftmix.reports.run_page.figures import map_picture
from sftmix.terminal import counted

NOT_YET = "not finished"


class WrittenPage(NamedTuple):
    """A page that was written: its file, and what it lacks in words."""

    file: Path
    in_words: str


class Section(NamedTuple):
    """A part of the page: what it shows, or why it shows nothing."""

    content: Any
    problem: str | None = None


class Origin(NamedTuple):
    """What the page takes from the program that writes it.

    Attributes:
        rerun: Returns the command that repeats a run, with comments.
        defaults: The config of `train.py` without arguments.
    """

    rerun: Callable[[Path], str]
    defaults: Mapping[str, Any]


def write_page(folder: Path, root: Path, origin: Origin, output: Path | None = None) -> WrittenPage:
    """Write the page of a run, and its data map beside it.

    What cannot be read is named in its section; the other sections are shown.

    Args:
        folder: A run, also one that is not finished (`<name>.partial`).
        output: File to write. The default is `reports/NAME.html` under the root.

    Raises:
        InputError: If the folder is not a run, or the output is a folder or is inside an artifact.
    """
    run, status = _read_run(folder)
    name = folder.name.removesuffix(PARTIAL)
    file = output or root / "reports" / f"{name}.html"
    check_output(file)
    parts = _sections(folder, run, root, origin, file.with_name(f"{file.stem}-map.html"))
    shown = {key: part for key, part in parts.items() if part.problem != NOT_YET}
    html = _render({"name": name, "status": status, "parts": shown, "is_finished": run != NOT_YET})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, html.encode("ascii", "xmlcharrefreplace"))
    problems = [part.problem for part in shown.values() if part.problem is not None]
    words = [status, f"{file.stat().st_size / 1e6:.1f} MB", *[str(problem) for problem in problems]]
    return WrittenPage(file, "; ".join(dict.fromkeys(words)))


def _read_run(folder: Path) -> tuple[Run | str, str]:
    """Return a run, or why it cannot be read as a whole, and its state."""
    if is_complete(folder) and not folder.name.endswith(PARTIAL):
        manifest = read_manifest(folder)
        fields = manifest.get("fields")
        if not isinstance(fields, dict) or fields.get("kind") != "run":
            kind = fields.get("kind") if isinstance(fields, dict) else "unknown"
            raise InputError(f"{folder}: of kind {kind}, expected a run")
        completed = str(manifest.get("completed", "")).replace("T", " ").partition("+")[0]
        status = f"finished {completed} UTC" if completed else "finished"
        try:
            return read_run(folder, fields), status
        except InputError as error:
            return str(error), status
    if folder.name.startswith(NOT_A_RUN) or not (folder.name.endswith(PARTIAL) or (folder / "logs").is_dir()):
        raise InputError(f"{folder}: is not a run (no {MANIFEST} and no logs in it)")
    if is_being_made(folder):
        return NOT_YET, "not finished: a process is making it now"
    return NOT_YET, "not finished: interrupted; the command that started it continues it"


def _sections(folder: Path, run: Run | str, root: Path, origin: Origin, map_file: Path) -> dict[str, Section]:
    """Return the sections of the page by name."""
    if isinstance(run, str):
        lacking = Section(None, run)
        curves = _read(lambda: sections.read_curve_pictures(folder, "this run", None))
        names = ("facts", "losses", "recovery", "map", "metadata", "commands", "rerun")
        parts = {**dict.fromkeys(names, lacking), "curves": curves}
        if run == NOT_YET:
            return {**parts, "data": lacking, "answers": lacking}
        data, answers = (partial(read, folder) for read in (sections.read_data_report, sections.read_answers))
        return {**parts, "data": _read(data), "answers": _read(answers)}
    baseline = _read(lambda: None if sections.is_baseline(run.fields) else find_baseline(folder, run.fields)).content
    examples = _read(lambda: read_scored_examples(folder, root))
    scored: ScoredExamples | None = examples.content
    return {
        "facts": _read(lambda: sections.read_facts(run)),
        "losses": _read(lambda: sections.read_losses(run, baseline)),
        "recovery": _read(lambda: sections.read_recovery(run, scored)),
        "curves": _read(lambda: sections.read_curve_pictures(folder, sections.name_of(run), baseline)),
        "data": _read(lambda: sections.read_data_report(folder)),
        "map": examples if scored is None else _read(lambda: _map(scored, folder, map_file)),
        "answers": _read(lambda: sections.read_answers(folder)),
        "metadata": _read(lambda: sections.read_metadata(run, origin.defaults)),
        "commands": _read(lambda: sections.read_commands(run)),
        "rerun": _read(lambda: origin.rerun(folder)),
    }


def _read(read: Callable[[], Any]) -> Section:
    """Return a section, with the problem in one line if a file is missing, damaged, or of an unknown form."""
    try:
        return Section(read())
    except InputError as error:
        return Section(None, str(error))
    except OSError as error:
        return Section(None, f"{error.filename}: {error.strerror}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # a file of another version
        return Section(None, f"cannot be read ({type(error).__name__}: {first_line(error)})")


def _map(examples: ScoredExamples, folder: Path, file: Path) -> dict[str, Any]:
    written: WrittenMap = write_map_of(examples, folder, file)
    picture = map_picture(examples)
    return {
        "picture": picture,
        "link": quote(file.name),
        "in_words": written.in_words,
        "has_subsets": examples.subset is not None,
        "has_ranks": examples.has_ranks,
    }


def _render(content: Mapping[str, Any]) -> str:
    """Return the page. Every text is escaped, and nothing but its own style and its images is allowed."""
    style = asset(__package__, "page.css")
    policy = f"default-src 'none'; style-src '{hash_of(style)}'; img-src data:; base-uri 'none'; form-action 'none'"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["counted"] = counted
    template = environment.from_string(asset(__package__, "page.html"))
    return template.render(policy=policy, style=style, **content)
