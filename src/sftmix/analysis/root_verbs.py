"""The root verb of an instruction and its object, by a heuristic without a parser, or by a spaCy pipeline.

The heuristic, on the first sentence of the instruction that has a word:

1. Words of politeness (please, kindly, can you, ...) at the beginning are skipped.
2. A sentence that begins with a question word or an auxiliary verb is a question; the word is its root, without object.
3. A sentence that begins with a preposition or a participle (given, using, in, for, ...) has its root after the first
   comma, if there is one.
4. Otherwise the first word is the root.
5. The object is the last word before the first preposition, conjunction, relative pronoun or punctuation after the
   root, or before a participle (-ing, -ed) that follows a noun. Pronouns in front of it (give me a ...) are skipped.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sftmix.errors import InputError, first_line

POLITE = re.compile(
    r"^(?:please|kindly|now|then|hi|hello|(?:can|could|would|will) you(?: please| kindly)?)\b[\s,]*", re.IGNORECASE
)
QUESTION = frozenset(
    "what how why when where who whom whose which is are was were am do does did can could should would will has have "
    "had may might shall".split()
)
BEFORE_COMMA = frozenset(
    "given using in for based from with if as on at by after before about considering assuming to under within of "
    "while according following here your".split()
)
PRONOUNS = frozenset("me us it him her them you".split())
DETERMINERS = frozenset(
    "a an the this that these those my your its their our his her some any each every all one two three four five six "
    "seven eight nine ten several many more most other another".split()
)
ENDS_OBJECT = frozenset(
    "of for in on at by to with from about into between as which who whose where when and or but so if than "
    "according without within over under during through against per via like such because while after before "
    "is are was were be can could should would will has have had".split()
)
NOT_PARTICIPLES = frozenset(
    "thing something anything everything string spring king ring wing meaning morning building meeting painting "
    "setting ending heading beginning evening bed seed feed need speed breed".split()
)
QUOTES = "\"'’‘“”-"
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[^\w\s]")
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


class Root(NamedTuple):
    """Root of an instruction."""

    verb: str  # In lower case; empty if the instruction has no word
    object: str  # In lower case; empty if there is none
    is_question: bool = False

    def __str__(self) -> str:
        return " ".join(word for word in self if isinstance(word, str) and word) or "(no word)"


def root_of(instruction: str) -> Root:
    """Return root verb and object of an instruction by the heuristic of this module."""
    for sentence in SENTENCE.split(instruction.strip()):
        words = _words(sentence)
        if not any(word[0].isalpha() for word in words):
            continue
        first = re.split("['’]", words[0].lower())[0]
        if first in QUESTION:
            return Root(first, "", True)
        if first in BEFORE_COMMA and "," in words[:-1]:
            after = _words(" ".join(words[words.index(",") + 1 :]))
            words = after if any(word[0].isalpha() for word in after) else words
            if words[0].lower() in QUESTION:
                return Root(words[0].lower(), "", True)
        start = next(k for k, word in enumerate(words) if word[0].isalpha())
        return Root(words[start].lower(), _object(words[start + 1 :]))
    return Root("", "")


def _words(sentence: str) -> list[str]:
    text = sentence.strip()
    while (shorter := POLITE.sub("", text, count=1)) != text:
        text = shorter
    return WORD.findall(text)


def _object(words: list[str]) -> str:
    found = ""
    for word in words:
        low = word.lower()
        if low in PRONOUNS:
            continue
        has_noun = bool(found) and found not in DETERMINERS and not found.isdigit()
        if has_noun and (low == "that" or (low.endswith(("ing", "ed")) and low not in NOT_PARTICIPLES)):
            break
        if low in ENDS_OBJECT or not (word[0].isalnum() or word in QUOTES):
            break
        if word[0].isalnum():
            found = low
    return "" if found in DETERMINERS else found


def spacy_roots(pipeline: str) -> Callable[[Iterable[str]], list[Root]]:
    """Return a function that finds root verb and direct object by a spaCy pipeline that is installed.

    Raises:
        InputError: If spaCy or the pipeline is not installed, or the pipeline has no parser.
    """
    try:
        import spacy
    except ImportError:
        raise InputError(f"spacy={pipeline}: needs spaCy: pip install spacy") from None
    try:
        nlp = spacy.load(pipeline)
    except (OSError, ValueError) as error:
        remedy = f"python -m spacy download {pipeline}"
        raise InputError(f"spacy={pipeline}: cannot be loaded ({first_line(error)}): {remedy}") from None
    if not {"parser", "tagger"} & set(nlp.pipe_names) or "parser" not in nlp.pipe_names:
        raise InputError(f"spacy={pipeline}: has no parser, expected a pipeline such as en_core_web_sm")
    return lambda texts: [_root_in(document) for document in nlp.pipe(texts)]


def _root_in(document: Any) -> Root:
    """Return the root verb of the first sentence that has one, and its direct object."""
    for sentence in document.sents:
        root = sentence.root
        if root.pos_ in ("VERB", "AUX"):
            objects = [child.lemma_.lower() for child in root.children if child.dep_ in ("dobj", "obj")]
            is_question = sentence.text.rstrip().endswith("?")
            return Root(root.lemma_.lower(), objects[0] if objects else "", is_question)
    return Root("", "")
