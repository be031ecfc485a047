// Paint the points first, then unpack the rest, then wait for the reader.

function options(id, entries, chosen) {
  const box = at(id);
  box.replaceChildren(...entries.map(([value, label]) => {
    const option = element("option", label);
    option.value = value;
    return option;
  }));
  if (chosen) box.value = chosen;
}

const CATEGORIES = [["subset", "subset"], ["group", "group"], ["source", "source"], ["part", "held out or not"]].filter(([key]) => meta.categories[key]);

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  at("theme").textContent = name === "dark" ? "Light" : "Dark";
}

function startPage() {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.title = `${meta.name}: data map`;
  at("title").textContent = meta.name;
  at("title").title = meta.name;
  const isAll = meta.used.length === meta.checkpoints;
  at("counts").textContent = `${plural(N, "example")}, ${plural(meta.checkpoints, "checkpoint")}`;
  at("used").textContent = isAll ? `${meta.checkpoints > 1 ? "the " : ""}${plural(meta.checkpoints, "checkpoint")}` : `checkpoints ${meta.used.map((c) => c + 1).join(", ")} of ${meta.checkpoints}`;
  if (meta.has_ranks) at("explain").textContent = `A point is an example. Confidence: ${RANKS}.`;
  at("notes").hidden = !meta.notes.length;
  at("notes").textContent = meta.notes.map((note) => note[0].toUpperCase() + note.slice(1)).join(". ");
  addColumns(bytesOf("points-data"), meta.layouts.points);
  const measures = Object.entries(MEASURES).map(([key, { label }]) => [key, label]);
  const later = (key) => !["confidence", "variability"].includes(key);
  options("x-axis", measures.filter(([key]) => !later(key)), "variability");
  options("y-axis", measures.filter(([key]) => !later(key)), "confidence");
  options("color", [...CATEGORIES.filter(([key]) => columns[key]), ["confidence", "confidence"]]);
  table.head();
  setAxis("x", "variability");
  setAxis("y", "confidence");
  colorBy(at("color").value);
  at("selected").textContent = "Nothing is selected";
  at("example").replaceChildren(element("p", "Point at an example to see it; click to keep it here.", "hint"));
  showAll();
  listen();
}

async function unpackRest() {
  addColumns(await gunzip(bytesOf("columns-data")), meta.layouts.columns);
  columns.rise = new Float32Array(N);
  for (let k = 0; k < N; k++) {
    let low = Infinity;
    for (const c of meta.used) low = Math.min(low, perplexityOf(k, c));
    columns.rise[k] = perplexityOf(k, meta.used[meta.used.length - 1]) / low;
  }
  const measures = Object.entries(MEASURES).filter(([key]) => meta.checkpoints > 1 || key !== "rise").map(([key, { label }]) => [key, label]);
  options("x-axis", measures, meta.checkpoints > 1 ? "variability" : "tokens");
  options("y-axis", measures, "confidence");
  const colors = [...CATEGORIES, ["tokens", "length"], ["confidence", "confidence"], ["rise", "rise of perplexity"]];
  options("color", colors.filter(([key]) => meta.checkpoints > 1 || key !== "rise"), (CATEGORIES.find(([key]) => ["subset", "group"].includes(key)) || ["confidence"])[0]);
  const by = CATEGORIES.length ? CATEGORIES : [["", "all examples"]];
  options("by", by, meta.categories.group ? "group" : by[0][0]);
  options("shares-by", by, (meta.categories.source || []).length > 1 || !meta.categories.group ? "source" : "group");
  setAxis("x", at("x-axis").value);
  colorBy(at("color").value);
  showAll();
  texts.unpack(await gunzip(bytesOf("texts-data")));
  performance.mark("texts");
  at("search").disabled = false;
  table.orders.clear();
  showSelection();
  await drawPanels();
  performance.mark("panels");
  setTimeout(() => index.build(), 300);
}

function setTool(name) {
  scatter.tool = name;
  scatter.overlay.dataset.tool = name;
  for (const button of document.querySelectorAll("[data-tool]:not(canvas)")) button.setAttribute("aria-pressed", String(button.dataset.tool === name));
}

function listen() {
  for (const button of document.querySelectorAll("button[data-tool]")) button.addEventListener("click", () => setTool(button.dataset.tool));
  setTool("pan");
  const repaint = () => {
    for (const axis of ["x", "y"]) setAxis(axis, at(`${axis}-axis`).value);
    showAll();
  };
  for (const id of ["x-axis", "y-axis", "log"]) at(id).addEventListener("change", repaint);
  at("color").addEventListener("change", () => {
    colorBy(at("color").value);
    redraw();
  });
  at("by").addEventListener("change", drawDistributions);
  at("shares-by").addEventListener("change", drawShares);
  at("theme").addEventListener("click", () => {
    setTheme(isDark() ? "light" : "dark");
    colorBy(coloring.key);
    redraw();
    if (texts.ready) drawPanels();
    if (scatter.pinned >= 0) pin(scatter.pinned);
  });
  const middle = (factor) => zoomAt(factor, scatter.frame.width / 2, scatter.frame.height / 2);
  at("zoom-in").addEventListener("click", () => middle(1 / 1.4));
  at("zoom-out").addEventListener("click", () => middle(1.4));
  at("zoom-all").addEventListener("click", showAll);
  at("clear").addEventListener("click", clearAll);
  at("keep").addEventListener("click", keepFirst);
  at("export-ids").addEventListener("click", exportIds);
  at("export-jsonl").addEventListener("click", exportRecords);
  at("load-ids").addEventListener("change", async () => {
    if (at("load-ids").files[0]) await loadIds(at("load-ids").files[0]);
    at("load-ids").value = "";
  });
  let waiting = 0;
  at("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => search(at("search").value), 180);
  });
  at("table").addEventListener("scroll", () => table.show(), { passive: true });
  at("table").addEventListener("keydown", (event) => {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.target !== at("table")) return;
    event.preventDefault();
    table.choose(Math.max(0, Math.min(table.list.length - 1, table.current + steps[event.key])));
  });
  window.addEventListener("keydown", onKey);
  new ResizeObserver(redraw).observe(at("plot"));
  listenToPointers();
}

function clearAll() {
  at("search").value = "";
  scatter.path = [];
  select([], "replace");
}

function onKey(event) {
  const isWriting = ["INPUT", "SELECT"].includes(event.target.tagName) && event.target.type !== "checkbox";
  if (event.key === "Escape") {
    clearAll();
    return;
  }
  if (isWriting || event.ctrlKey || event.metaKey || event.altKey) return;
  const isMap = event.target === scatter.overlay;
  const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  const actions = {
    "/": () => at("search").focus(), p: () => setTool("pan"), l: () => setTool("lasso"), r: () => setTool("rectangle"),
    "+": () => at("zoom-in").click(), "=": () => at("zoom-in").click(), "-": () => at("zoom-out").click(), 0: showAll,
  };
  if (isMap && moves[event.key]) moveBy(...moves[event.key].map((d) => d * scatter.ratio));
  else if (actions[event.key]) actions[event.key]();
  else return;
  event.preventDefault();
}

function listenToPointers() {
  const { overlay } = scatter;
  const down = new Map();  // pointers that are pressed
  let moved = 0;
  const placeOf = (event) => {
    const box = overlay.getBoundingClientRect();
    return [(event.clientX - box.left) * scatter.ratio - scatter.frame.left, (event.clientY - box.top) * scatter.ratio - scatter.frame.top];
  };
  overlay.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    overlay.setPointerCapture(event.pointerId);
    down.set(event.pointerId, placeOf(event));
    moved = down.size > 1 ? Infinity : 0;
    scatter.path = scatter.tool === "pan" || down.size > 1 ? [] : [placeOf(event)];
    showCard(-1);
  });
  overlay.addEventListener("pointermove", (event) => {
    const [x, y] = placeOf(event);
    const before = down.get(event.pointerId);
    if (!before) {
      const found = nearest(x, y);
      if (found === scatter.hovered) return;
      scatter.hovered = found;
      const box = overlay.getBoundingClientRect();
      showCard(found, event.clientX - box.left, event.clientY - box.top);
      drawOverlay();
      return;
    }
    moved += Math.hypot(x - before[0], y - before[1]);
    if (down.size === 2) {
      const [other] = [...down].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const grown = Math.hypot(x - other[0], y - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1]));
      zoomAt(1 / Math.max(0.5, Math.min(2, grown)), (x + other[0]) / 2, (y + other[1]) / 2);
    } else if (scatter.tool === "pan") {
      moveBy(x - before[0], y - before[1]);
    } else if (scatter.tool === "rectangle") {
      const [x0, y0] = scatter.path[0];
      scatter.path = [[x0, y0], [x, y0], [x, y], [x0, y]];
      drawOverlay();
    } else if (Math.hypot(x - scatter.path.at(-1)[0], y - scatter.path.at(-1)[1]) > 3) {
      scatter.path.push([x, y]);
      drawOverlay();
    }
    down.set(event.pointerId, [x, y]);
  });
  const end = (event) => {
    if (!down.delete(event.pointerId) || event.type === "pointercancel") return;
    const path = scatter.path;
    scatter.path = [];
    if (moved < 5 * scatter.ratio) {
      const found = nearest(...placeOf(event));
      if (found >= 0) pin(found);
    } else if (path.length > 2) {
      const start = performance.now();
      select(inside(path));
      performance.measure("lasso", { start });
    }
    drawOverlay();
  };
  overlay.addEventListener("pointerup", end);
  overlay.addEventListener("pointercancel", end);
  overlay.addEventListener("pointerleave", () => {
    scatter.hovered = -1;
    showCard(-1);
    drawOverlay();
  });
  overlay.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAt(Math.exp(Math.max(-1, Math.min(1, event.deltaY * (event.deltaMode ? 0.05 : 0.0015)))), ...placeOf(event));
  }, { passive: false });
}

startPage();
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => requestAnimationFrame(() => setTimeout(unpackRest)));
else setTimeout(unpackRest);
