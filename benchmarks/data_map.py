"""The data map in headless Chromium: time to the first points, frames while hovering, lasso, search, export, requests.

Without --page, the page of a synthetic run is made first: words drawn by Zipf's law, five checkpoints. Frames are
counted while a script moves the pointer over the points at every frame. "outside" are requests for anything but the
file and its downloads. If there is no Chromium with its driver, only the page is made. The last line is JSON.

    python benchmarks/data_map.py --examples 200000
    python benchmarks/data_map.py --page runs/reports/RUN-map.html --word the --screenshots FOLDER
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sftmix.analysis.scored_examples import ScoredExamples
from sftmix.reports.data_map.page import build_page

HOVER = """
const done = arguments[arguments.length - 1];
const overlay = document.getElementById("overlay");
const box = overlay.getBoundingClientRect();
const start = performance.now();
let [frames, longest, before, shown] = [0, 0, start, 0];
function frame(now) {
  frames++;
  longest = Math.max(longest, now - before);
  before = now;
  const turn = (now - start) / 400;
  const x = box.left + box.width * (0.5 + 0.3 * Math.cos(turn) * Math.cos(turn / 9));
  const y = box.top + box.height * (0.45 + 0.3 * Math.sin(turn) * Math.cos(turn / 9));
  overlay.dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: y, pointerId: 1, bubbles: true}));
  shown += document.getElementById("card").hidden ? 0 : 1;
  if (now - start < 3000) requestAnimationFrame(frame);
  else done({hovers_per_second: 1000 * frames / (now - start), longest_ms: longest, with_card: shown / frames});
}
requestAnimationFrame(frame);
"""

ZOOM = """
const done = arguments[arguments.length - 1];
const overlay = document.getElementById("overlay");
const box = overlay.getBoundingClientRect();
const start = performance.now();
let frames = 0;
const draws = [];
function frame(now) {
  frames++;
  draws.push(...performance.getEntriesByName("draw").map((entry) => entry.duration));
  const event = {clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, cancelable: true};
  overlay.dispatchEvent(new WheelEvent("wheel", {...event, deltaY: frames % 20 < 10 ? -40 : 40}));
  if (now - start < 3000) requestAnimationFrame(frame);
  else {
    draws.sort((a, b) => a - b);
    done({zooms_per_second: 1000 * frames / (now - start), draw_ms: draws[draws.length >> 1], least_draw_ms: draws[0]});
  }
}
requestAnimationFrame(frame);
"""


def synthetic_examples(count: int, seed: int = 0) -> ScoredExamples:
    """Return examples with responses of 60 words on average and five checkpoints."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlu"))
    words = np.array(
        ["".join(generator.choice(letters, size)) for size in generator.integers(2, 9, 20_000)], dtype=object
    )
    lengths = 1 + np.minimum(generator.exponential(60, count).astype(int), 400)
    drawn = words[np.minimum(generator.zipf(1.3, int(lengths.sum()) + 12 * count), len(words)) - 1]
    prompts = [" ".join(drawn[k * 12 : (k + 1) * 12]) for k in range(count)]
    starts = 12 * count + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    responses = [" ".join(drawn[a : a + size]) for a, size in zip(starts, lengths, strict=True)]
    level = generator.normal(1.5, 0.8, (count, 1)) + 0.2 * generator.normal(size=(count, 5)) - 0.1 * np.arange(5)
    perplexity = 1 + np.exp(level)
    confidence = -perplexity.mean(axis=1)
    return ScoredExamples(
        ids=[f"{k:016x}" for k in range(count)],
        confidence=confidence,
        variability=perplexity.std(axis=1),
        perplexity=perplexity,
        used=(0, 1, 2, 3, 4),
        num_tokens=lengths,
        subset=np.where(confidence > np.median(confidence), "confident", "unconfident").tolist(),
        part=["train"] * count,
        group=[f"group {k}" for k in generator.integers(0, 12, count)],
        source=[f"source {k}" for k in generator.integers(0, 5, count)],
        row=np.arange(1, count + 1),
        turn=np.ones(count, np.int64),
        instruction=prompts,
        response=responses,
        is_cut=np.zeros(count, bool),
    )


def measure(page: Path, word: str, screenshots: Path | None, downloads: Path) -> dict[str, Any]:
    """Open a page in Chromium, use it by script, and return what it took."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1600,1000"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    driver.set_script_timeout(120)
    found: dict[str, Any] = {}

    def marked(name: str, kind: str = "mark") -> float:
        value = "startTime" if kind == "mark" else "duration"
        for _ in range(1200):
            script = f"return performance.getEntriesByName(arguments[0]).at(-1)?.{value}"
            if (number := driver.execute_script(script, name)) is not None:
                return float(number)
            time.sleep(0.1)
        raise RuntimeError(f"{page}: no {name}; {driver.get_log('browser')}")

    def picture(name: str) -> None:
        if screenshots is not None:
            time.sleep(0.3)
            driver.save_screenshot(str(screenshots / f"{name}.png"))

    try:
        start = time.monotonic()
        driver.get(page.resolve().as_uri())
        found["seconds_to_load"] = time.monotonic() - start
        for name in ("painted", "texts", "panels", "indexed"):
            found[f"{name}_ms"] = marked(name)
        picture("whole")
        found |= driver.execute_async_script(HOVER)
        picture("hover")
        found |= driver.execute_async_script(ZOOM)
        driver.execute_script("document.getElementById('zoom-all').click()")
        driver.find_element("css selector", "button[data-tool=lasso]").click()
        _lasso(driver)
        found["lasso_ms"] = marked("lasso", "measure")
        found["lassoed"] = driver.find_element("id", "selected").text
        picture("lasso")
        before = float(driver.execute_script("return performance.now()"))
        for button, key in (("export-ids", "click_ids_ms"), ("export-jsonl", "click_jsonl_ms")):
            start = time.monotonic()
            driver.find_element("id", button).click()
            found[key] = 1000 * (time.monotonic() - start)
        found["exported_ms"] = marked("exported") - before
        driver.find_element("id", "search").send_keys(word)
        found["search_ms"] = marked("search", "measure")
        found["found"] = driver.find_element("id", "selected").text
        driver.execute_script("document.querySelector('.row')?.click()")
        picture("search")
        driver.execute_script("document.getElementById('theme').click()")
        picture("other_theme")
        driver.execute_script("document.getElementById('panels').scrollIntoView()")
        picture("panels")
        script = "return performance.memory.usedJSHeapSize / 1e6"
        found["heap_megabytes"] = driver.execute_script(script)
        events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        found["outside"] = sorted({url for url in urls if not url.startswith(("blob:", page.resolve().as_uri()))})
        found["console"] = [entry["message"] for entry in driver.get_log("browser")]
        time.sleep(1)
        found["downloads"] = {file.name[-16:]: file.stat().st_size for file in sorted(downloads.iterdir())}
    finally:
        driver.quit()
    return found


def _lasso(driver: Any) -> None:
    from selenium.webdriver import ActionChains

    overlay = driver.find_element("id", "overlay")
    size = overlay.size
    actions = ActionChains(driver, duration=10)
    turns = np.linspace(0, 2 * np.pi, 40)
    places = [(int(0.25 * size["width"] * np.cos(t)), int(0.3 * size["height"] * np.sin(t))) for t in turns]
    actions.move_to_element_with_offset(overlay, *places[0]).click_and_hold()
    for place in places[1:]:
        actions.move_to_element_with_offset(overlay, *place)
    actions.release().perform()


def main() -> None:
    """Make or take a page, measure it, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--page", type=Path, help="a page that exists")
    parser.add_argument("--word", default="teat", help="what is searched for")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the page")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"benchmark": "data_map"}
    with tempfile.TemporaryDirectory() as folder:
        page = arguments.page
        if page is None:
            examples = synthetic_examples(arguments.examples)
            start, page = time.monotonic(), Path(folder) / "map.html"
            html, notes = build_page(examples, "synthetic", "python train.py data/select=ids")
            page.write_text(html, encoding="ascii")
            found |= {"examples": arguments.examples, "seconds_to_write": time.monotonic() - start, "notes": notes}
        found["megabytes"] = page.stat().st_size / 1e6
        if arguments.screenshots is not None:
            arguments.screenshots.mkdir(parents=True, exist_ok=True)
        if shutil.which("chromium") and shutil.which("chromedriver"):
            downloads = Path(folder) / "downloads"
            downloads.mkdir()
            found |= measure(page, arguments.word, arguments.screenshots, downloads)
    for key, value in found.items():
        print(f"{key:<20}{value:.1f}" if isinstance(value, float) else f"{key:<20}{value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
