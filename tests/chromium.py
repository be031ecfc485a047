"""Pages in headless Chromium, for tests that are slow and skip where it is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
IN_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
    pytest.mark.skipif(not (CHROMIUM.is_file() and DRIVER.is_file()), reason=f"no {CHROMIUM} or no {DRIVER}"),
]


@contextmanager
def open_browser(downloads: Path, *, width: int = 1440, logs: tuple[str, ...] = ("browser",)) -> Iterator[Any]:
    """Yield a selenium driver that downloads to a folder and keeps the logs named."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},900"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", dict.fromkeys(logs, "ALL"))
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()
