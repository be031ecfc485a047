// Panels: distributions, length, extremes, shares, forgetting, repeated prompts.

function svg(width, height) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return picture;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Replace what a panel holds under its title. */
function fillPanel(id, ...content) {
  const panel = at(id);
  while (panel.children.length > 1) panel.lastChild.remove();
  panel.append(...content);
}

/** Return a list of examples: a number, instruction and response of each. A click shows the example. */
function list(examples, number) {
  const box = element("div", undefined, "list");
  for (const k of examples) {
    const button = element("button");
    button.type = "button";
    button.append(element("span", number(k), "number"), element("span", texts.line("instruction", k)), element("span", texts.line("response", k), "quiet"));
    button.addEventListener("click", () => pin(k));
    button.addEventListener("pointerenter", () => {
      scatter.hovered = k;
      drawOverlay();
    });
    box.append(button);
  }
  return box;
}

function selectButton(examples, label) {
  const button = element("button", label || `Select ${examples.length === 1 ? "it" : `these ${COUNT.format(examples.length)}`}`);
  button.type = "button";
  button.disabled = !examples.length;
  button.addEventListener("click", () => select(examples, "replace"));
  return button;
}

/** Return the examples of each name of a category, the most frequent first. */
function members(key) {
  if (!members.known.has(key)) {
    const found = (meta.categories[key] || ["all examples"]).map((name) => ({ name: name || "(none)", examples: [] }));
    for (let k = 0; k < N; k++) found[columns[key] ? columns[key][k] : 0].examples.push(k);
    for (const some of found) some.median = median(some.examples.map((k) => columns.confidence[k]));
    members.known.set(key, found);
  }
  return members.known.get(key);
}
members.known = new Map();

const titleOfConfidence = () => `confidence${meta.has_ranks ? "" : " (log scale)"}`;

function drawDistributions() {
  const key = at("by").value;
  const scale = new Scale(MEASURES.confidence, true);
  const places = scale.places();
  const shown = members(key).slice(0, 12);
  const colors = meta.categories[key] ? categoryColors(key) : [themed("accent")];
  if (selection.count) shown.push({ name: "selection", examples: selection.list });
  const [width, left, high, bins] = [480, 124, 28, 70];
  const picture = svg(width, shown.length * high + 36);
  const toX = (p) => left + Math.max(-0.03, Math.min(1.03, p)) * (width - left - 14);
  const bottom = shown.length * high + 4;
  for (const [p, label] of scale.ticks(-0.1, 1.1, 7)) {
    picture.append(shape("line", { x1: toX(p), x2: toX(p), y1: 0, y2: bottom, class: "rule" }), shape("text", { x: toX(p), y: bottom + 12, "text-anchor": "middle" }, label));
  }
  shown.forEach(({ name, examples, median: known }, n) => {
    const counts = new Float32Array(bins);
    for (const k of examples) counts[Math.max(0, Math.min(bins - 1, Math.floor(places[k] * bins)))]++;
    const most = Math.max(...counts) || 1;
    const base = (n + 1) * high;
    const points = [`${toX(0)},${base}`, ...Array.from(counts, (c, b) => `${toX((b + 0.5) / bins)},${base - (c / most) * (high - 5)}`), `${toX(1)},${base}`];
    const color = name === "selection" ? themed("ink") : colors[n];
    picture.append(shape("polygon", { points: points.join(" "), fill: color, "fill-opacity": 0.5, stroke: color, "stroke-width": 1 }));
    const label = shape("text", { x: left - 8, y: base - 9, "text-anchor": "end", class: "ink" }, name.length > 18 ? `${name.slice(0, 17)}...` : name);
    label.append(shape("title", {}, name));
    const middle = known ?? median(examples.map((k) => columns.confidence[k]));
    picture.append(label, shape("text", { x: left - 8, y: base + 1, "text-anchor": "end", class: "small" }, plural(examples.length, "example")));
    if (Number.isFinite(middle)) {
      const line = shape("line", { x1: toX(scale.place(middle)), x2: toX(scale.place(middle)), y1: base - high + 5, y2: base, stroke: themed("ink"), "stroke-width": 1.5 });
      line.append(shape("title", {}, `${name}: median ${format(middle)}`));
      picture.append(line);
    }
  });
  picture.append(shape("text", { x: (width + left) / 2, y: bottom + 27, "text-anchor": "middle", class: "ink" }, `${titleOfConfidence()}; line: median`));
  fillPanel("panel-groups", picture);
}

function drawLength() {
  const [sx, sy] = [new Scale(MEASURES.tokens, true), new Scale(MEASURES.confidence, true)];
  const [x, y] = [sx.places(), sy.places()];
  const [across, up, width, height, left, bottom] = [56, 36, 480, 270, 64, 38];
  const counts = new Float32Array(across * up);
  const byColumn = Array.from({ length: across }, () => []);
  const cell = (p, n) => Math.max(0, Math.min(n - 1, Math.floor(p * n)));
  for (let k = 0; k < N; k++) {
    const c = cell(x[k], across);
    counts[cell(y[k], up) * across + c]++;
    byColumn[c].push(columns.confidence[k]);
  }
  const most = Math.max(...counts);
  const picture = svg(width, height);
  const toX = (p) => left + p * (width - left - 10);
  const toY = (p) => (1 - p) * (height - bottom - 6) + 6;
  const [w, h] = [(width - left - 10) / across, (height - bottom - 6) / up];
  counts.forEach((count, n) => {
    if (!count) return;
    const [c, r] = [n % across, Math.floor(n / across)];
    const color = gradient(isDark() ? 0.15 + 0.85 * Math.log1p(count) / Math.log1p(most) : 0.95 - 0.85 * Math.log1p(count) / Math.log1p(most));
    const mark = shape("rect", { x: toX(c / across), y: toY((r + 1) / up), width: w + 0.3, height: h + 0.3, fill: color, "shape-rendering": "crispEdges" });
    mark.append(shape("title", {}, plural(count, "example")));
    picture.append(mark);
  });
  const line = byColumn.map((values, c) => [(c + 0.5) / across, values.length >= Math.min(20, N) ? sy.place(median(values)) : NaN]).filter(([, p]) => Number.isFinite(p));
  picture.append(shape("polyline", { points: line.map(([px, py]) => `${toX(px)},${toY(py)}`).join(" "), fill: "none", stroke: themed("ink"), "stroke-width": 2 }));
  for (const [p, label] of sx.ticks(-0.1, 1.1, 7)) picture.append(shape("text", { x: toX(p), y: height - bottom + 14, "text-anchor": "middle" }, label));
  for (const [p, label] of sy.ticks(-0.1, 1.1, 6)) picture.append(shape("text", { x: left - 6, y: toY(p) + 4, "text-anchor": "end" }, label));
  picture.append(
    shape("rect", { x: left, y: 6, width: width - left - 10, height: height - bottom - 6, class: "axis" }),
    shape("text", { x: (width + left) / 2, y: height - 6, "text-anchor": "middle", class: "ink" }, "response length (tokens, log scale); line: median confidence"),
    shape("text", { transform: `translate(11 ${(height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "ink" }, titleOfConfidence()),
  );
  const rho = (name) => (meta.rho[name] === null || meta.rho[name] === undefined ? "not defined (all values are equal)" : signed(meta.rho[name]));
  const signed = (value) => value.toFixed(2).replace(/^-(?!0\.00)/, "\u2212").replace("-0.00", "0.00");
  const subsets = "confident" in meta.rho ? `; within the confident subset ${rho("confident")}, within the unconfident ${rho("unconfident")}` : "";
  fillPanel("panel-length", element("p", `Spearman's rho ${rho("all")} over all examples${subsets}. Near 0: confidence is not length. Darker cells hold more examples.`.replace("Darker", isDark() ? "Brighter" : "Darker")), picture);
}

function drawExtremes() {
  const order = table.order("confidence");
  const [most, least] = [Array.from(order.slice(-50)).reverse(), Array.from(order.slice(0, 50))];
  for (const [id, examples] of [["panel-most", most], ["panel-least", least]]) {
    fillPanel(id, selectButton(examples), list(examples, (k) => fixed(columns.confidence[k])));
  }
}

function drawShares() {
  const key = at("shares-by").value;
  const names = meta.categories.subset || [];
  const first = Math.max(0, names.indexOf("confident"));
  const [box, made] = [element("div", undefined, "scroll"), element("table")];
  const head = element("tr");
  const titles = [at("shares-by").selectedOptions[0].textContent, "examples", "share", ...(names.length ? [names[first], ""] : []), "median", "selected"];
  head.append(...titles.map((title) => element("th", title)));
  made.append(head);
  const colors = names.length ? categoryColors("subset") : [];
  for (const { name, examples, median: middle } of members(key)) {
    const row = element("tr");
    const counts = new Array(names.length).fill(0);
    if (names.length) for (const k of examples) counts[columns.subset[k]]++;
    const chosen = selection.count ? examples.filter((k) => selection.mask[k]).length : 0;
    row.append(...[name, COUNT.format(examples.length), percent(examples.length, N), ...(names.length ? [percent(counts[first], examples.length)] : [])].map((text) => element("td", text)));
    if (names.length) {
      const [cell, bar] = [element("td"), element("span", "", "bar")];
      counts.forEach((count, code) => {
        const part = element("span", "");
        part.style.flex = String(count);
        part.style.background = colors[code];
        bar.append(part);
      });
      cell.append(bar);
      row.append(cell);
    }
    row.append(element("td", fixed(middle)), element("td", selection.count ? `${COUNT.format(chosen)}, ${percent(chosen, selection.count)}` : ""));
    row.firstChild.title = name;
    made.append(row);
  }
  box.append(made);
  fillPanel("panel-shares", box);
}

function drawForgetting() {
  if (meta.checkpoints < 2) {
    fillPanel("panel-forgetting", element("p", "There is one checkpoint: nothing can rise."));
    return;
  }
  const everRising = [];
  const above = [];
  for (let k = 0; k < N; k++) {
    let rises = true;
    for (let c = 1; c < meta.checkpoints; c++) rises = rises && perplexityOf(k, c) > perplexityOf(k, c - 1);
    if (rises) everRising.push(k);
    if (columns.rise[k] > 1.1) above.push(k);
  }
  const subsets = members("subset").slice(0, 3);
  const lines = subsets.map(({ examples }) => Array.from({ length: meta.checkpoints }, (_, c) => median(examples.map((k) => perplexityOf(k, c)))));
  const logs = lines.flat().filter((v) => Number.isFinite(v) && v > 0).map(Math.log);
  const [low, high] = [Math.min(...logs), Math.max(...logs)];
  const [width, height, left] = [480, 130, 52];
  const picture = svg(width, height);
  const toX = (c) => left + 10 + (c / (meta.checkpoints - 1)) * (width - left - 130);
  const toY = (v) => (high > low ? 8 + ((high - Math.log(v)) / (high - low)) * (height - 48) : 45);
  const colors = meta.categories.subset ? categoryColors("subset") : [themed("accent")];
  lines.forEach((values, n) => {
    picture.append(shape("polyline", { points: values.map((v, c) => `${toX(c)},${toY(v)}`).filter((p) => !p.includes("N") && !p.includes("I")).join(" "), fill: "none", stroke: colors[n], "stroke-width": 2 }));
    const last = values[values.length - 1];
    if (Number.isFinite(last)) picture.append(shape("text", { x: toX(meta.checkpoints - 1) + 8, y: toY(last) + 4, class: "ink" }, `${subsets[n].name} ${format(last)}`));
    if (Number.isFinite(values[0])) picture.append(shape("text", { x: left + 2, y: toY(values[0]) + 4, "text-anchor": "end" }, format(values[0])));
  });
  for (let c = 0; c < meta.checkpoints; c++) picture.append(shape("text", { x: toX(c), y: height - 22, "text-anchor": "middle" }, c + 1));
  picture.append(shape("text", { x: toX((meta.checkpoints - 1) / 2), y: height - 6, "text-anchor": "middle", class: "ink" }, "checkpoint; up: median perplexity (log scale)"));
  const worst = above.slice().sort((a, b) => columns.rise[b] - columns.rise[a]).slice(0, 50);
  const tools = element("p");
  tools.append(
    `The perplexity of ${COUNT.format(above.length)} examples (${percent(above.length, N)}) is at the last checkpoint more than 10% above its lowest; of ${COUNT.format(everRising.length)} (${percent(everRising.length, N)}) it rises at every checkpoint. `,
    selectButton(above, "Select the first"), " ", selectButton(everRising, "Select the second"),
  );
  fillPanel("panel-forgetting", tools, picture, list(worst, (k) => `\u00d7 ${fixed(columns.rise[k])}`));
}

function drawRepeated() {
  const { prompts, examples, groups } = meta.repeated;
  const most = groups.length < prompts ? ` The ${COUNT.format(groups.length)} prompts whose answers differ most in confidence are listed.` : "";
  const counts = prompts ? `${plural(prompts, "prompt")} ${prompts === 1 ? "has" : "have"} several different answers: ${plural(examples, "example")}` : "No prompt has several different answers";
  const text = `${counts}. Prompts are equal here if they differ only in case, spaces and punctuation at the end.${most} `;
  const intro = element("p", text);
  if (groups.length) intro.append(selectButton(groups.flat()));
  const box = element("div", undefined, "list");
  for (const group of groups) {
    const button = element("button", undefined, "wide");
    button.type = "button";
    const values = group.map((k) => columns.confidence[k]).sort((a, b) => b - a);
    button.append(element("span", `${group.length} answers`, "number"), element("span", texts.line("instruction", group[0])), element("span", `confidence ${fixed(values[0])} to ${fixed(values[values.length - 1])}`, "quiet"));
    button.addEventListener("click", () => select(group, "replace"));
    box.append(button);
  }
  fillPanel("panel-repeated", intro, box);
}

async function drawPanels() {
  for (const part of [drawExtremes, drawDistributions, drawShares, drawLength, drawForgetting, drawRepeated]) {
    part();
    await pause();
  }
}

/** Draw the panels that compare the selection with everything. */
function updatePanels() {
  if (!texts.ready) return;
  drawDistributions();
  drawShares();
}
