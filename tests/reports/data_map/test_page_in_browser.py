"""The data map in a real browser: selected, searched, exported, and safe whatever the texts are."""

import json
import time

import numpy as np
import pytest

from chromium import IN_CHROMIUM, open_browser
from scored import Row, write_first_epoch_run, write_scored_run
from sftmix.analysis.scored_examples import read_scored_examples
from sftmix.data.selection import SelectionList
from sftmix.reports.data_map.page import write_map

pytestmark = IN_CHROMIUM
HOSTILE = "</script><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
RIGHT_TO_LEFT = "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd\u202e abc"
INFINITE = float("inf")


@pytest.fixture
def browser(tmp_path):
    with open_browser(tmp_path / "downloads", logs=("browser", "performance")) as driver:
        yield driver


def opened(browser, written, mark="panels"):
    browser.get(written.file.as_uri())
    wait(lambda: browser.execute_script("return performance.getEntriesByName(arguments[0]).length", mark))


def wait(condition):
    for _ in range(200):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen within 20 seconds")


def text_of(browser, name):
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def click(browser, name):
    browser.execute_script("document.getElementById(arguments[0]).click()", name)


def drag(browser, tool, start, end):
    """Drag over the map with a tool, between places as fractions of the canvas."""
    from selenium.webdriver import ActionChains

    browser.find_element("css selector", f"button[data-tool={tool}]").click()
    overlay = browser.find_element("id", "overlay")
    size = overlay.size
    corners = [(start[0], start[1]), (end[0], start[1]), (end[0], end[1]), (start[0], end[1])]
    places = corners if tool == "lasso" else [start, end]
    offsets = [(int((x - 0.5) * size["width"]), int((y - 0.5) * size["height"])) for x, y in places]
    actions = ActionChains(browser, duration=20).move_to_element_with_offset(overlay, *offsets[0]).click_and_hold()
    for offset in offsets[1:]:
        actions.move_to_element_with_offset(overlay, *offset)
    actions.release().perform()


EVERYTHING = ((0.09, 0.03), (0.97, 0.925))


def requests_of(browser):
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}


def downloaded(tmp_path, name):
    return wait(lambda: next((tmp_path / "downloads").glob(name), None))


def search(browser, words):
    field = browser.find_element("id", "search")
    field.clear()
    field.send_keys(words)


def many_rows(count=3000):
    generator = np.random.default_rng(0)
    level = np.exp(generator.normal(1, 1, (count, 3)))
    return [
        Row(
            f"Question {k}?",
            "word " * (k % 50) + f"answer {k}",
            (1 + level[k]).tolist(),
            group=f"g{k % 11}",
            source=f"s{k % 2}",
            subset=None if k % 10 == 0 else ("confident", "unconfident")[int(level[k].mean() > 4)],
            part="val" if k % 10 == 0 else "train",
            num_tokens=1 + k % 50,
        )
        for k in range(count)
    ]


def test_hostile_texts_stay_text_and_nothing_is_requested(browser, tmp_path):
    rows = [
        Row(HOSTILE, HOSTILE, (2.0, 4.0), group=HOSTILE, source=HOSTILE),
        Row(RIGHT_TO_LEFT, "", (8.0, INFINITE), subset="unconfident"),
        Row("long", "<b>x" * 250_000 + "END", (2.0, 3.0), subset=None, part="val"),
    ]
    written = write_map(write_scored_run(tmp_path, rows).run, tmp_path)
    opened(browser, written)
    drag(browser, "rectangle", *EVERYTHING)
    wait(lambda: text_of(browser, "selected") == "3 of 3 selected")
    assert text_of(browser, "message") == "1 of them is held out: data/select=ids trains on the other 2."
    shown = []
    for row in browser.find_elements("css selector", ".row"):
        row.click()
        shown.append([e.text for e in browser.find_elements("css selector", "#example .text")])
    assert [HOSTILE, HOSTILE] in shown
    assert any(texts[1] == "(empty)" for texts in shown)
    assert browser.title.endswith(": data map")
    assert browser.execute_script("return document.images.length") == 0
    assert browser.execute_script("return document.querySelectorAll('#example b b, .row b, .list b').length") == 0
    search(browser, "<B>X<b>x")
    wait(lambda: text_of(browser, "selected") == "1 of 3 selected")
    browser.find_element("css selector", ".row").click()
    assert len(browser.find_elements("css selector", "#example .text")[1].get_property("textContent")) < 21_000
    browser.find_element("css selector", "#example button").click()
    assert browser.find_elements("css selector", "#example .text")[1].get_property("textContent").endswith("END")
    browser.find_element("id", "export-jsonl").click()
    record = json.loads(downloaded(tmp_path, "*.jsonl").read_text())
    assert record["response"] == rows[2].response
    assert {url for url in requests_of(browser) if not url.startswith("blob:")} == {written.file.as_uri()}
    assert browser.get_log("browser") == []


def test_a_selection_is_read_by_data_select_ids(browser, tmp_path):
    rows = many_rows()
    run = write_scored_run(tmp_path, rows).run
    opened(browser, write_map(run, tmp_path))
    drag(browser, "lasso", (0.3, 0.2), (0.7, 0.6))
    wait(lambda: "selected" in text_of(browser, "selected") and "Nothing" not in text_of(browser, "selected"))
    count = int(text_of(browser, "selected").split(" ")[0].replace(",", ""))
    assert 100 < count < 2900
    assert len(browser.find_elements("css selector", ".row")) < 60  # only the rows in view exist
    browser.find_element("id", "export-ids").click()
    file = downloaded(tmp_path, "*-ids.json")
    assert file.name == f"{run.name}-ids.json"
    assert f"data/select=ids data.select.path={file.name}" in text_of(browser, "message")
    listed = SelectionList(file, as_scores=False)
    ids = [row.id for row in rows]
    chosen = listed.names(ids, range(1, len(rows) + 1))
    assert chosen.sum() == count == len(json.loads(file.read_text()))
    assert listed.unknown(ids, range(1, len(rows) + 1)) == []
    browser.find_element("id", "export-jsonl").click()
    records = [json.loads(line) for line in downloaded(tmp_path, "*.jsonl").read_text().splitlines()]
    assert {record["example_id"] for record in records} == {i for i, is_in in zip(ids, chosen, strict=True) if is_in}
    first = records[0]
    row = next(row for row in rows if row.id == first["example_id"])
    assert (first["instruction"], first["response"], first["group"]) == (row.instruction, row.response, row.group)
    assert first["perplexity"] == pytest.approx(row.perplexity, rel=1e-5)
    assert first["confidence"] == pytest.approx(-np.mean(row.perplexity), rel=1e-5)
    assert SelectionList(downloaded(tmp_path, "*.jsonl"), as_scores=False).names(ids, range(1, 3001)).sum() == count

    click(browser, "clear")
    browser.find_element("css selector", "#head button").click()  # the least confident first
    click(browser, "keep")
    wait(lambda: text_of(browser, "selected") == "500 of 3,000 selected")
    assert text_of(browser, "message") == ""  # none is held out
    browser.find_element("css selector", ".row").click()
    trained = [row for row in rows if row.part == "train"]
    least = max(trained, key=lambda row: np.mean(row.perplexity))
    assert browser.find_elements("css selector", "#example .text")[0].text == least.instruction

    click(browser, "clear")
    given = tmp_path / "given.json"
    given.write_text(json.dumps([ids[7], ids[70], "0" * 16]))
    browser.find_element("id", "load-ids").send_keys(str(given))
    wait(lambda: text_of(browser, "selected") == "2 of 3,000 selected")
    assert "1 id of given.json is not in this run, such as 0000000000000000" in text_of(browser, "message")
    assert browser.get_log("browser") == []


def test_search_combines_with_the_selection_and_the_legend(browser, tmp_path):
    answers = [f"\u00c4pfel {k}" if k % 2 else f"pears {k}" for k in range(40)]
    rows = [Row(f"Q{k}", answer, (2.0 + k,), group="ab"[k % 2]) for k, answer in enumerate(answers)]
    opened(browser, write_map(write_scored_run(tmp_path, rows).run, tmp_path))
    search(browser, "\u00e4PFEL")
    wait(lambda: text_of(browser, "selected") == "20 of 40 selected")
    browser.execute_script("document.getElementById('combine').value = 'narrow'")
    search(browser, "l 3")
    wait(lambda: text_of(browser, "selected") == "6 of 40 selected")  # 3, 31, 33, 35, 37, 39
    search(browser, "5pears")  # over the border of two texts
    wait(lambda: text_of(browser, "message") == "No text contains it.")
    browser.execute_script("document.getElementById('combine').value = 'replace'")
    browser.find_element("css selector", "#color option[value=group]").click()
    legend = browser.find_elements("css selector", "#legend button")
    assert [button.text for button in legend] == ["a 20, 50.0%", "b 20, 50.0%"]
    legend[0].click()
    drag(browser, "rectangle", *EVERYTHING)
    wait(lambda: text_of(browser, "selected") == "20 of 40 selected")
    assert browser.get_log("browser") == []


def test_keys_reach_the_search_the_table_and_the_map(browser, tmp_path):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    rows = [Row(f"Q{k}", f"A{k}", (2.0 + k, 3.0)) for k in range(30)]
    opened(browser, write_map(write_scored_run(tmp_path, rows).run, tmp_path))
    ActionChains(browser).send_keys("/").send_keys("Q1").perform()
    wait(lambda: text_of(browser, "selected") == "11 of 30 selected")
    browser.execute_script("document.getElementById('table').focus()")
    ActionChains(browser).send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN).perform()
    assert browser.find_elements("css selector", "#example .text")[0].text == "Q10"  # the second most confident
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert text_of(browser, "selected") == "Nothing is selected"
    browser.execute_script("document.getElementById('overlay').focus()")
    before = browser.find_element("id", "points").screenshot_as_png
    ActionChains(browser).send_keys("+", Keys.ARROW_LEFT, "l").perform()
    wait(lambda: browser.find_element("id", "points").screenshot_as_png != before)
    assert browser.find_element("css selector", "[data-tool=lasso]").get_attribute("aria-pressed") == "true"
    assert browser.get_log("browser") == []


def test_panels_state_what_numpy_computes(browser, tmp_path):
    written = write_scored_run(tmp_path, many_rows())
    opened(browser, write_map(written.run, tmp_path))
    examples = read_scored_examples(written.run, tmp_path)
    perplexity = examples.perplexity
    above = int((perplexity[:, -1] / perplexity.min(axis=1) > 1.1).sum())
    rising = int((np.diff(perplexity, axis=1) > 0).all(axis=1).sum())
    forgetting = text_of(browser, "panel-forgetting")
    assert f"The perplexity of {above:,} examples" in forgetting
    assert f"of {rising:,} (" in forgetting
    order = np.argsort(-examples.confidence, kind="stable")
    for name, chosen in (("most", order[:50]), ("least", order[::-1][:50])):
        buttons = browser.find_elements("css selector", f"#panel-{name} .list button span:nth-child(2)")
        shown = [button.get_property("textContent") for button in buttons]
        assert shown == [examples.instruction[k] for k in chosen]
    rows = browser.find_elements("css selector", "#panel-shares tr")[1:]
    shares = [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows]
    assert len(shares) == 2
    for name, count, _, confident, *_ in shares:
        here = np.array(examples.source) == name
        assert int(count.replace(",", "")) == here.sum()
        expected = (np.array(examples.subset)[here] == "confident").mean()
        assert float(confident.rstrip("%")) == pytest.approx(100 * expected, abs=0.06)


@pytest.mark.parametrize(
    "rows",
    [
        [Row("only", "one", (2.0,))],
        [Row(f"Q{k}", "same", (3.0, 3.0)) for k in range(5)],
        [Row("a", "b", (INFINITE,)), Row("c", "d", (INFINITE,))],
        [Row("", "", (2.0, 9.0)), Row("x", "y", (2.0, INFINITE))],
    ],
)
def test_a_point_can_be_read_whatever_the_values_are(browser, tmp_path, rows):
    opened(browser, write_map(write_scored_run(tmp_path, rows).run, tmp_path))
    drag(browser, "rectangle", *EVERYTHING)
    wait(lambda: text_of(browser, "selected") == f"{len(rows)} of {len(rows)} selected")
    assert len(browser.find_elements("css selector", ".row")) == len(rows)
    assert browser.get_log("browser") == []


def test_ranks_of_a_first_epoch_are_on_the_map(browser, tmp_path):
    rows = [Row(f"Q{k}", "x" * k, (2.0 + k,), num_tokens=1 + k) for k in range(20)]
    run = write_first_epoch_run(tmp_path, rows, [1 - (k + 0.5) / 20 for k in range(20)])
    opened(browser, write_map(run, tmp_path))
    drag(browser, "rectangle", *EVERYTHING)
    wait(lambda: text_of(browser, "selected") == "20 of 20 selected")
    assert "rank of the loss within a window of the first epoch" in text_of(browser, "explain")
    assert "log scale" not in text_of(browser, "panel-groups")
    assert browser.get_log("browser") == []


def test_the_card_of_a_point_has_its_texts_and_perplexities(browser, tmp_path):
    from selenium.webdriver import ActionChains

    opened(browser, write_map(write_scored_run(tmp_path, [Row("Why?", "Because.", (2.0, 4.0))]).run, tmp_path))
    overlay = browser.find_element("id", "overlay")
    for x in range(-60, 120, 12):  # the only point is near the middle
        ActionChains(browser, duration=10).move_to_element_with_offset(overlay, x, -14).perform()
        if browser.find_element("id", "card").is_displayed():
            break
    card = browser.find_element("id", "card").text
    for part in ("confidence \u22123.00", "variability 1.00", "perplexity 2.00 \u2192 4.00", "Why?", "Because."):
        assert part in card


def test_a_run_whose_data_is_gone_says_which_texts_are_missing(browser, tmp_path):
    rows = [Row("q" * 400, "short", (2.0,)), Row("b", "c", (3.0,))]
    opened(browser, write_map(write_scored_run(tmp_path, rows, prepared=False).run, tmp_path))
    assert browser.find_element("id", "notes").is_displayed()
    assert text_of(browser, "notes").startswith("Of 1 example only the first 300 characters of each text are shown")
    search(browser, "qqq")
    wait(lambda: text_of(browser, "selected") == "1 of 2 selected")
    browser.find_element("css selector", ".row").click()
    assert "(long texts are cut in this page)" in text_of(browser, "example")


def test_dark_narrow_screens_show_all_of_it(browser, tmp_path):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    opened(browser, write_map(write_scored_run(tmp_path, many_rows(300)).run, tmp_path))
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    color = "return getComputedStyle(document.getElementById('map')).backgroundColor"
    assert browser.execute_script(color) == "rgb(27, 30, 35)"
    click(browser, "theme")
    assert browser.execute_script(color) == "rgb(255, 255, 255)"
    browser.save_screenshot(str(tmp_path / "narrow.png"))
    assert browser.get_log("browser") == []


def test_one_huge_perplexity_leaves_the_others_apart(browser, tmp_path):
    rows = [Row(f"Q{k}", "r", (2.0 + k, 2.0 + k + 0.2 * (k % 7 + 1))) for k in range(300)]
    rows.append(Row("huge", "r", (1e9, 9e9)))
    opened(browser, write_map(write_scored_run(tmp_path, rows).run, tmp_path))
    drag(browser, "rectangle", (0.09, 0.03), (0.13, 0.925))  # the left border: only the lowest variability of seven
    wait(lambda: text_of(browser, "selected") == "43 of 301 selected")
    drag(browser, "rectangle", *EVERYTHING)
    wait(lambda: text_of(browser, "selected") == "301 of 301 selected")
