"""Root verbs and objects of instructions by the stated heuristic, and by a spaCy pipeline."""

import sys
from types import SimpleNamespace

import pytest

from sftmix.analysis.root_verbs import Root, root_of, spacy_roots
from sftmix.errors import InputError


@pytest.mark.parametrize(
    ("instruction", "verb", "object_"),
    [
        ("Give three tips for staying healthy.", "give", "tips"),
        ("Write a short story about a dog", "write", "story"),
        ("Rewrite the following sentence using the active voice:\nThe cat ate.", "rewrite", "sentence"),
        ("Please, could you tell me an interesting fact?", "tell", "fact"),
        ("Given the input, create a hypothetical experiment.", "create", "experiment"),
        ("Generate an automated reply to this email", "generate", "reply"),
        ("Identify a potential harm caused by the situation", "identify", "harm"),
        ("Convert 3 miles into kilometers", "convert", "miles"),
        ("Explain.", "explain", ""),
        ("Give me three.", "give", ""),
        ('Translate "good morning" into French', "translate", "morning"),
        ("...\n\nSummarize the text", "summarize", "text"),
        ("42", "", ""),
        ("", "", ""),
    ],
)
def test_the_root_of_an_instruction(instruction, verb, object_):
    assert root_of(instruction) == Root(verb, object_)


@pytest.mark.parametrize(("question", "word"), [("What's the capital?", "what"), ("If so, how many are there?", "how")])
def test_the_root_of_a_question_is_its_first_word(question, word):
    assert root_of(question) == Root(word, "", True)


def test_a_root_is_written_as_verb_and_object():
    assert [str(root) for root in (Root("write", "poem"), Root("explain", ""), Root("", ""))] == [
        "write poem",
        "explain",
        "(no word)",
    ]


def test_without_spacy_or_a_pipeline_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(InputError, match="spacy=en: needs spaCy: pip install spacy"):
        spacy_roots("en")

    def load(name):
        raise OSError(f"[E050] Can't find model {name!r}.\nmore")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(InputError, match=r"cannot be loaded .*E050.*: python -m spacy download nosuch"):
        spacy_roots("nosuch")
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: SimpleNamespace(pipe_names=["ner"])))
    with pytest.raises(InputError, match="has no parser"):
        spacy_roots("ner_only")


def test_a_pipeline_gives_the_root_verb_and_its_object(monkeypatch):
    noun = SimpleNamespace(lemma_="Poem", dep_="dobj")
    verb = SimpleNamespace(pos_="VERB", lemma_="write", children=[noun])
    title = SimpleNamespace(pos_="NOUN", lemma_="task", children=[])
    sentences = [SimpleNamespace(root=title, text="Task:"), SimpleNamespace(root=verb, text="Write poems.")]
    nlp = SimpleNamespace(pipe_names=["tagger", "parser"], pipe=lambda texts: [SimpleNamespace(sents=sentences)])
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: nlp))
    assert spacy_roots("mine")(["Task: Write poems."]) == [Root("write", "poem")]
