"""suite=human: pages on which people judge two models side by side, and the result (section B.2)."""

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
            raise InputError(f"{key}={value}: suite.judgments say themselves of which pages they are, leave it out")
    lacking = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if lacking:
        raise InputError(f"suite.judgments: {', '.join(lacking)} is not installed (pip install 'sftmix[eval]')")
    _read(session, suite.judgments)


def evaluate(session: Session, suite: HumanConfig) -> list[Evaluation]:
    """Build the pages, or score downloaded judgments; results go to the folder of the pages."""
    if suite.judgments is None:
        _build(session, suite)
        return []
    key, judgments = _read(session, suite.judgments)
    tally = tally_judgments(judgments)
    print("\n".join(lines_of(key, judgments, tally)), flush=True)
    folder = key.file.parent
    write_evaluations(folder, [evaluation_of(key, judgments, tally)])
    print(f"written: {folder}", flush=True)
    return []  # the results are of two models, not of one run


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
        lines.append(f"  won of those decided {_in_words(tally.decided)}")
    lines.append(f"  sign test p = {tally.sign_p:.2g} (n={tally.sign_items} instructions that are decided)")
    if tally.num_doubled:
        lines.append(
            f"  agreement: Krippendorff's alpha {_figure(tally.alpha)} (n={tally.num_doubled} judged by several)"
        )
        lines += [
            f"    annotators {k.first} and {k.second}: kappa {_figure(k.value)} (n={k.num_items})" for k in tally.kappas
        ]
    else:
        lines.append("  agreement: no instruction is judged by several, nothing to say")
    if tally.left is not None:
        lines.append(f"  left chosen of those decided {_in_words(tally.left)}: 50% without side bias")
    lines.append(f"  median {tally.median_seconds:.1f} s a judgment")
    lines.append("intervals are 95%: shares Wilson's over judgments, win minus lose Student's over instructions")
    if tally.num_doubled:
        lines.append("judgments of one instruction depend on each other: go by win minus lose and the sign test")
    lines.append(f"verdict on {a} against {b}: {tally.verdict.in_full}")
    return lines


def evaluation_of(key: Key, judgments: Sequence[Judgment], tally: Tally) -> Evaluation:
    """Return the tally as an evaluation; its questions are judgments, `<item>/annotator <n>`."""
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
        print(f"{number}: {counted(len(instructions) * suite.annotators, 'judgment')} by people, no call of a judge")
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
        print(f"the two give the same answer to {same} of {len(pairs)}")
    pages = ", ".join(f"annotator-{n}.html" for n in range(1, suite.annotators + 1))
    print(f"pages: {folder}: {pages}")
    print(
        "Give each annotator a page and nothing else: key.json says whose answers are where. Then score what they send"
    )
    print("back: python eval.py suite=human 'suite.judgments=[FILE,FILE]'", flush=True)


def _read(session: Session, judgments: Sequence[str]) -> tuple[Key, list[Judgment]]:
    if not judgments:
        raise InputError("suite.judgments=[]: expected at least one file that a page has downloaded")
    return read_judgments([Path(file) for file in judgments], _root(session))


def _root(session: Session) -> Path:
    return Path(session.config.root) / FOLDER


def _in_words(share: Share) -> str:
    return f"{share.percent:5.1f}% [{share.low:.1f}, {share.high:.1f}]  ({share.num} of {share.total})"


def _figure(value: float | None) -> str:
    return "cannot be given: all chose alike" if value is None else f"{value:.2f}"
