"""The page of a run in a real browser: every figure is drawn under its policy, and nothing is requested."""

import pytest

from chromium import IN_CHROMIUM, open_browser
from sftmix.reports.run_page.page import Origin, write_page

pytestmark = IN_CHROMIUM


@pytest.fixture
def browser(tmp_path):
    with open_browser(tmp_path / "downloads", width=500) as driver:
        yield driver


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
