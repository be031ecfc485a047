"""A page depends on its arguments only, does not reveal the models, and shows texts as texts."""

import json
import re
from html.parser import HTMLParser

from sftmix.evaluation.human.annotator_page import Comparison, build_page, build_pages, item_id


class Elements(HTMLParser):
    """Every element that a parser sees, and the text of the one with the data."""

    def __init__(self):
        super().__init__()
        self.names, self.data, self.is_data = [], "", False

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.is_data = ("id", "data") in attrs

    def handle_endtag(self, tag):
        self.is_data = False

    def handle_data(self, data):
        if self.is_data:
            self.data += data


def parsed(html):
    elements = Elements()
    elements.feed(html)
    return elements


def test_hostile_answers_are_data_and_add_no_element(pairs):
    tame = build_page([Comparison("i", "a", "b")], 1, 0)
    page = build_page(pairs, 1, 0)
    assert parsed(page.html).names == parsed(tame.html).names
    assert page.html.isascii()
    items = json.loads(parsed(page.html).data)["items"]
    by_instruction = {item["instruction"]: item for item in items}
    assert len(items) == len(pairs)
    for pair in pairs:
        item = by_instruction[pair.instruction]
        assert {item["left"], item["right"]} == {pair.a, pair.b}
        assert item["left"] == (pair.a if page.left[item["id"]] == "a" else pair.b)


def test_the_same_arguments_give_the_same_page_and_any_other_another(pairs):
    assert build_page(pairs, 1, 0) == build_page(pairs, 1, 0)
    changed = [*pairs[:-1], pairs[-1]._replace(a="other")]
    pages = [build_page(*arguments) for arguments in ((pairs, 1, 0), (pairs, 2, 0), (pairs, 1, 1), (changed, 1, 0))]
    assert len({page.sha256 for page in pages}) == 4
    assert len({tuple(page.left.items()) for page in pages[:3]}) == 3


def test_order_and_sides_do_not_depend_on_the_order_of_the_pairs(pairs):
    page, turned = build_page(pairs, 1, 0), build_page(pairs[::-1], 1, 0)
    assert page.html == turned.html
    assert page.left == turned.left


def test_each_model_is_on_the_left_in_half_of_the_items_anywhere_in_the_order():
    pairs = [Comparison(str(i), f"{i}a", f"{i}b") for i in range(80)]
    first_half, first_instruction = 0, set()
    for annotator in range(1, 101):
        page = build_page(pairs, annotator, 0)
        assert sum(side == "a" for side in page.left.values()) == 40
        order = [item["id"] for item in json.loads(parsed(page.html).data)["items"]]
        first_half += sum(page.left[i] == "a" for i in order[:40])
        first_instruction.add(order[0])
    assert abs(first_half - 2000) < 4 * 100 * 80**0.5 / 10 / 2  # 4 standard errors of a draw without replacement
    assert len(first_instruction) > 40


def test_the_odd_one_is_not_always_the_same_models():
    pairs = [Comparison(str(i), f"{i}a", f"{i}b") for i in range(5)]
    counts = {sum(side == "a" for side in build_page(pairs, k, 0).left.values()) for k in range(1, 20)}
    assert counts == {2, 3}


def test_a_page_names_no_model_and_loads_nothing(folder):
    html = (folder / "annotator-1.html").read_text()
    assert "sftmix" not in html
    assert "ntp" not in html.lower()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html).group(1)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"https?:|\bsrc=(?!x )|\bhref=|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|innerHTML", html)
    assert "Disregard length" in html


def test_the_key_has_what_the_pages_leave_out(folder, pairs):
    key = json.loads((folder / "key.json").read_text())
    assert (key["a"], key["b"], key["seed"]) == ("sftmix", "ntp", 0)
    assert list(key["items"]) == [item_id(pair.instruction) for pair in pairs]
    for sha256, page in key["pages"].items():
        embedded = json.loads(parsed((folder / f"annotator-{page['annotator']}.html").read_text()).data)
        assert (embedded["page_sha256"], embedded["annotator"]) == (sha256, page["annotator"])
        assert page["left"].keys() == {item["id"] for item in embedded["items"]}
        assert set(embedded["items"][0]) == {"id", "instruction", "left", "right"}


def test_pages_with_other_content_have_other_names(folder, pairs):
    before = (folder / "annotator-1.html").read_bytes()
    arguments = {"names": ("sftmix", "ntp"), "annotators": 2, "record": {}}
    assert build_pages(folder.parent, pairs, seed=1, **arguments) != folder
    assert build_pages(folder.parent, pairs[1:], seed=0, **arguments) != folder
    assert build_pages(folder.parent, pairs, seed=0, **arguments) == folder
    assert (folder / "annotator-1.html").read_bytes() == before


def test_names_of_models_make_a_folder_that_stays_where_it_belongs(tmp_path, pairs):
    names = ("../../up", "org/model name\n" + "x" * 300)
    folder = build_pages(tmp_path, pairs, names=names, annotators=1, seed=0, record={})
    assert folder.parent == tmp_path
    assert len(folder.name) < 200
