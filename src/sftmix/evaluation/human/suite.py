"""suite=human: build pages on which people compare two models, and score their judgments (section B.2)."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from sftmix.errors import InputError
from sftmix.evaluation.human.annotator_page import build_pages
from sftmix.evaluation.human.answers import (
    NAME,
    NUM_INSTRUCTIONS,
    answers_of,
    asks_embedded,
    instructions_of,
    pair_answers,
    sides_of,
)
from sftmix.evaluation.human.judgments import Judgment, Key, read_judgments
from sftmix.evaluation.human.schema import HumanConfig
from sftmix.evaluation.human.tally import OUTCOMES, POINTS, Share, Tally, tally_judgments
from sftmix.evaluation.results import Evaluation, part_name, write_evaluations
from sftmix.evaluation.session import DEMO, Session
from sftmix.terminal import counted, one_line

FOLDER = "human"
PEOPLE = "people"
PACKAGES = {"scipy": "scipy", "sklearn": "scikit-learn", "krippendorff": "krippendorff"}


def check(session: Session, suite: HumanConfig) -> None:
    """Check that pages can be built, or that judgments can be scored."""
    config = session.config
    if suite.judgments is None:
        sides = sides_of(session)
        instructions = instructions_of(session, sides)
        if all(side.given is not None for side in sides):
            pair_answers(instructions, *(side.given for side in sides if side.given is not None))
        return
    for key in ("a", "b", "limit"):
        if (value := getattr(config, key)) is not None:
            raise InputError(f"{key}={value}: suite.judgments name their pages, leave this setting out")
    lacking = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if lacking:
        raise InputError(f"suite.judgments: {', '.join(lacking)} is not installed (pip install 'sftmix[eval]')")
    _read(session, suite.judgments)


def evaluate(session: Session, suite: HumanConfig) -> list[Evaluation]:
    """Build the pages, or score downloaded judgments and write the result to the folder of the pages."""
    if suite.judgments is None:
        _build(session, suite)
        return []
    key, judgments = _read(session, suite.judgments)
    tally = tally_judgments(judgments)
    print("\n".join(lines_of(key, judgments, tally)), flush=True)
    folder = key.file.parent
    write_evaluations(folder, [evaluation_of(key, judgments, tally)])
    print(f"written: {folder}", flush=True)
    return []  # the result belongs to two models, not to one run


def lines_of(key: Key, judgments: Sequence[Judgment], tally: Tally) -> list[str]:
    """Return the result as lines of text."""
    names = [one_line(name) for name in key.names]
    a, b = names if names[0] != names[1] else (f"{names[0]} (a)", f"{names[1]} (b)")
    done = Counter(j.annotator for j in judgments)
    by_annotator = ", ".join(
        f"annotator {annotator}: {done[annotator]} of {len(key.items)}" for annotator in sorted(done)
    )
    lines = [
        f"{a} against {b}: {counted(len(judgments), 'judgment')} of {counted(tally.num_items, 'instruction')}",
        by_annotator,
        *(f"  {outcome:<5}{_in_words(tally.outcomes[outcome])}" for outcome in OUTCOMES),
        f"  win minus lose {tally.lead:+.1f} points"
        + (f" [{tally.lead_interval[0]:+.1f}, {tally.lead_interval[1]:+.1f}]" if tally.lead_interval else ""),
    ]
    if tally.decided is not None:
        lines.append(f"  wins among decided judgments {_in_words(tally.decided)}")
    lines.append(f"  sign test p = {tally.sign_p:.2g} (n={tally.sign_items} decided instructions)")
    if tally.num_doubled:
        lines.append(
            f"  agreement: Krippendorff's alpha {_number(tally.alpha)} (n={tally.num_doubled} judged by several)"
        )
        lines += [
            f"    annotators {k.first} and {k.second}: kappa {_number(k.value)} (n={k.num_items})" for k in tally.kappas
        ]
    else:
        lines.append("  agreement: unknown, no instruction was judged by several annotators")
    if tally.left is not None:
        lines.append(f"  left chosen among decided judgments {_in_words(tally.left)}: 50% without side bias")
    lines.append(f"  median time of a judgment {tally.median_seconds:.1f} s")
    lines.append("95% intervals: Wilson over judgments for shares, Student over instructions for win minus lose")
    if tally.num_doubled:
        lines.append("judgments of the same instruction are not independent: rely on win minus lose and the sign test")
    lines.append(f"verdict on {a} against {b}: {tally.verdict.in_full}")
    return lines


def evaluation_of(key: Key, judgments: Sequence[Judgment], tally: Tally) -> Evaluation:
    """Return the tally as an evaluation. Its questions are the judgments, `<item>/annotator <n>`."""
    by_judgment = {f"{j.item}/annotator {j.annotator}": j.outcome for j in judgments}
    questions = {o: {i: 100.0 * (outcome == o) for i, outcome in by_judgment.items()} for o in OUTCOMES}
    questions["lead"] = {i: 100.0 * POINTS[outcome] for i, outcome in by_judgment.items()}
    is_vicuna = key.record.get("instructions") == NAME
    total = NUM_INSTRUCTIONS if is_vicuna else len(key.items)
    return Evaluation(
        FOLDER,
        PEOPLE,
        part_name(NAME if is_vicuna else DEMO, len(key.items), total),
        1,
        {**{o: tally.outcomes[o].percent for o in OUTCOMES}, "lead": tally.lead},
        questions,
        {"judgments": len(judgments), "questions": tally.num_items, "judged_by_several": tally.num_doubled},
        {
            "a": key.names[0],
            "b": key.names[1],
            "statistics": {
                "intervals": {o: [tally.outcomes[o].low, tally.outcomes[o].high] for o in OUTCOMES},
                "lead_interval": tally.lead_interval,
                "decided": tally.decided and tally.decided._asdict(),
                "sign_p": tally.sign_p,
                "alpha": tally.alpha,
                "kappas": [k._asdict() for k in tally.kappas],
                "left": tally.left and tally.left._asdict(),
                "median_seconds": tally.median_seconds,
            },
            "pages": dict(key.record),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _build(session: Session, suite: HumanConfig) -> None:
    sides = sides_of(session)
    instructions = instructions_of(session, sides)
    number = f"{counted(len(instructions), 'instruction')}, {counted(suite.annotators, 'annotator')}"
    if session.config.dry_run:
        print(f"{number}: {counted(len(instructions) * suite.annotators, 'judgment')} by people, no judge is asked")
        return
    a, b = (answers_of(side, instructions, suite.max_new_tokens) for side in sides)
    pairs = pair_answers(instructions, a, b)
    record = {
        "instructions": DEMO if asks_embedded(session, sides) else NAME,
        "answers": {"a": session.config.a, "b": session.config.b},
        "limit": session.config.limit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder = build_pages(
        _root(session),
        pairs,
        names=(a.name, b.name),
        annotators=suite.annotators,
        seed=session.config.seed,
        record=record,
    )
    print(f"{one_line(a.name)} against {one_line(b.name)}: {number}")
    if same := sum(pair.a == pair.b for pair in pairs):
        print(f"the answers of the two models are equal for {same} of {len(pairs)} instructions")
    pages = ", ".join(f"annotator-{n}.html" for n in range(1, suite.annotators + 1))
    print(f"pages: {folder}: {pages}")
    print("Give each annotator only a page: key.json has the sides of the models. Score the downloaded files by")
    print("python eval.py suite=human 'suite.judgments=[FILE,FILE]'", flush=True)


def _read(session: Session, judgments: Sequence[str]) -> tuple[Key, list[Judgment]]:
    if not judgments:
        raise InputError("suite.judgments=[]: expected at least one file that was downloaded from a page")
    return read_judgments([Path(file) for file in judgments], _root(session))


def _root(session: Session) -> Path:
    return Path(session.config.root) / FOLDER


def _in_words(share: Share) -> str:
    return f"{share.percent:5.1f}% [{share.low:.1f}, {share.high:.1f}]  ({share.num} of {share.total})"


def _number(value: float | None) -> str:
    return "undefined: all choices are equal" if value is None else f"{value:.2f}"
