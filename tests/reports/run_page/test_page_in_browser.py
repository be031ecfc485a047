"""The page of a run in a real browser: every figure is drawn under its policy, and nothing is requested."""

from pathlib import Path

import pytest

from sftmix.reports.run_page.page import Origin, write_page

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
    pytest.mark.skipif(not (CHROMIUM.is_file() and DRIVER.is_file()), reason=f"no {CHROMIUM} or no {DRIVER}"),
]


@pytest.fixture
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=500,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_whole_in_both_themes_and_leads_to_the_map(copy_of_run, browser, theme):
    plan, root = copy_of_run
    written = write_page(root / plan.target.folder.name, root, Origin(str, {}))
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(written.file.as_uri())
    widths = browser.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(widths) >= 6
    assert all(widths)
    ground = browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    assert ground == {"light": "rgb(244, 244, 242)", "dark": "rgb(20, 22, 26)"}[theme]
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), "no sideways scrolling"
    assert browser.execute_script("return performance.getEntriesByType('resource').every((r) => /^data:/.test(r.name))")
    browser.find_element("link text", "Open the interactive map").click()
    assert browser.title.endswith(": data map")
    assert browser.get_log("browser") == []
