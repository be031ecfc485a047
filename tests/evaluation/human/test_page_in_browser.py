"""The page in a real browser: judged by keyboard, closed and opened, and what it downloads can be scored."""

import json
import time

import pytest

from chromium import IN_CHROMIUM, open_browser
from sftmix.evaluation.human.judgments import read_judgments

pytestmark = IN_CHROMIUM


@pytest.fixture
def browser(tmp_path):
    with open_browser(tmp_path / "downloads") as driver:
        yield driver


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    for key in keys:
        time.sleep(0.35)  # the page takes no choice of what has only just come into view
        ActionChains(browser).send_keys(key).perform()


def text_of(browser, name):
    script = "return JSON.stringify(document.getElementById(arguments[0]).textContent)"  # half characters, escaped
    return json.loads(browser.execute_script(script, name))


def is_shown(browser, name):
    return browser.find_element("id", name).is_displayed()


def downloaded(tmp_path, number=1):
    for _ in range(100):
        files = sorted((tmp_path / "downloads").glob("*.json"), key=lambda f: f.stat().st_mtime)
        if len(files) >= number:
            return files[-1]
        time.sleep(0.1)
    raise AssertionError("nothing was downloaded")


def items_of(browser):
    return json.loads(text_of(browser, "data"))["items"]


def test_five_judgments_by_keyboard_survive_a_reload_and_are_scored(browser, folder, tmp_path):
    from selenium.webdriver.common.keys import Keys

    browser.get((folder / "annotator-1.html").as_uri())
    items = items_of(browser)
    browser.save_screenshot(str(tmp_path / "start.png"))
    press(browser, "1")  # the explanation is open: nothing is judged
    assert text_of(browser, "place") == "1 of 12"
    press(browser, Keys.ENTER, "1", "2", "3", Keys.ARROW_LEFT)
    assert text_of(browser, "place") == "5 of 12"
    press(browser, Keys.BACKSPACE)
    assert text_of(browser, "place") == "4 of 12"
    press(browser, "r", "Better: 1, 2, 3.", Keys.ESCAPE)
    assert text_of(browser, "place") == "4 of 12"  # what is written is no choice
    browser.save_screenshot(str(tmp_path / "item.png"))

    browser.refresh()
    assert text_of(browser, "place") == "4 of 12"
    assert not is_shown(browser, "intro")
    assert browser.find_element("id", "reason").get_property("value") == "Better: 1, 2, 3."
    press(browser, Keys.ARROW_RIGHT, "2")
    browser.refresh()
    assert text_of(browser, "place") == "6 of 12"
    assert text_of(browser, "instruction") == items[5]["instruction"]

    browser.find_element("id", "download").click()
    file = downloaded(tmp_path)
    content = json.loads(file.read_text())
    assert file.name == "judgments-annotator-1.json"
    assert [row["choice"] for row in content["judgments"]] == ["left", "tie", "right", "right", "tie"]
    assert [row["id"] for row in content["judgments"]] == [item["id"] for item in items[:5]]
    assert [row.get("reason") for row in content["judgments"]] == [None, None, None, "Better: 1, 2, 3.", None]
    key, judgments = read_judgments([file], folder.parent)
    left = key.pages[content["page_sha256"]][1]
    expected = ["tie" if c == "tie" else "win" if (c == "left") == (left[i] == "a") else "lose"
                for i, c in ((row["id"], row["choice"]) for row in content["judgments"])]  # fmt: skip
    assert [j.outcome for j in judgments] == expected
    assert all(0.3 <= j.seconds < 60 for j in judgments)
    assert (tmp_path / "item.png").stat().st_size > 10_000
    assert browser.get_log("browser") == []


def test_hostile_answers_stay_text_and_the_end_downloads_everything(browser, folder, tmp_path, pairs):
    from selenium.webdriver.common.keys import Keys

    browser.get((folder / "annotator-2.html").as_uri())
    items = items_of(browser)
    press(browser, Keys.ENTER)
    for item in items:
        shown = {name: text_of(browser, name) for name in ("instruction", "left", "right")}
        assert shown == {name: item[name] if item[name].strip() else "" for name in shown}
        press(browser, "2")
    assert browser.title == "Which answer is more helpful?"
    assert browser.execute_script("return document.images.length + document.scripts.length") == 2
    assert is_shown(browser, "end")
    assert not is_shown(browser, "foot")
    browser.save_screenshot(str(tmp_path / "end.png"))
    content = json.loads(downloaded(tmp_path).read_text())
    assert [row["id"] for row in content["judgments"]] == [item["id"] for item in items]
    press(browser, "1", Keys.BACKSPACE)
    assert text_of(browser, "place") == "12 of 12"
    press(browser, "3")
    content = json.loads(downloaded(tmp_path, 2).read_text())
    assert [row["choice"] for row in content["judgments"]] == ["tie"] * 11 + ["right"]
    assert len(content["judgments"]) == len(pairs)
    assert browser.get_log("browser") == []


def test_a_held_key_and_a_double_press_judge_one_item(browser, folder):
    from selenium.webdriver.common.keys import Keys

    browser.get((folder / "annotator-1.html").as_uri())
    press(browser, Keys.ENTER)
    time.sleep(0.4)
    browser.execute_script(
        "const press = (repeat) => dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat}));"
        "press(false); press(false); for (let i = 0; i < 20; i++) press(true);"
    )
    assert text_of(browser, "place") == "2 of 12"


def test_a_narrow_and_dark_screen_shows_all_of_it(browser, folder, tmp_path):
    from selenium.webdriver.common.keys import Keys

    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    browser.get((folder / "annotator-1.html").as_uri())
    press(browser, Keys.ENTER, "1")
    browser.save_screenshot(str(tmp_path / "narrow.png"))
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    for button in browser.find_elements("css selector", "[data-choice]"):
        assert button.size["height"] >= 44
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
