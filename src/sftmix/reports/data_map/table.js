// The example that is read, and the table of the selection, of which only the rows in view exist.

const ROW = 23;  // pixels, as in the style

const table = {
  list: [], rows: new Map(), orders: new Map(), current: -1, sorted: { key: "confidence", falls: true },
  columns: [
    ["confidence", (k) => columns.confidence[k], true], ["variability", (k) => columns.variability[k], true],
    ["tokens", (k) => columns.num_tokens?.[k] ?? 0, true],
    ...["subset", "group"].filter((key) => meta.categories[key]).map((key) => [key, (k) => nameOf(key, k)]),
    ["instruction", null], ["response", null],
  ],
  head() {
    const widths = [98, 84, 58, ...new Array(this.columns.length - 5).fill(78)].map((width) => `${width}px`);
    at("table").style.setProperty("--widths", `${widths.join(" ")} minmax(70px, 1fr) minmax(70px, 1fr)`);
    at("head").replaceChildren(...this.columns.map(([name, value, isNumber]) => {
      const button = element("button", name, isNumber ? "number" : "");
      button.type = "button";
      button.setAttribute("role", "columnheader");
      if (!value) button.disabled = true;
      button.addEventListener("click", () => {
        this.sorted = { key: name, falls: this.sorted.key === name ? !this.sorted.falls : Boolean(isNumber) };
        this.fill(this.list);
      });
      return button;
    }));
  },
  /** Return all examples in the rising order of a column. The order is computed once. */
  order(name) {
    if (!this.orders.has(name)) {
      const value = this.columns.find(([other]) => other === name)[1];
      const ranks = new Map([...(meta.categories[name] || [])].sort().map((text, rank) => [text, rank]));
      const keys = Float64Array.from({ length: N }, (_, k) => (ranks.size ? ranks.get(value(k)) : value(k)));
      const low = keys.map((key) => (Number.isNaN(key) ? -Infinity : key));
      this.orders.set(name, Uint32Array.from({ length: N }, (_, k) => k).sort((a, b) => low[a] - low[b] || a - b));
    }
    return this.orders.get(name);
  },
  /** List examples in the chosen order. */
  fill(list) {
    const { key, falls } = this.sorted;
    const isListed = new Uint8Array(N);
    for (const k of list) isListed[k] = 1;
    this.list = [];
    if (list.length) for (const k of this.order(key)) if (isListed[k]) this.list.push(k);
    if (falls) this.list.reverse();
    at("body").style.height = `${this.list.length * ROW}px`;
    at("table").setAttribute("aria-rowcount", String(this.list.length + 1));
    at("head").querySelectorAll("button").forEach((button, c) => {
      const [name] = this.columns[c];
      button.textContent = name + (name === key ? (falls ? " \u2193" : " \u2191") : "");
      button.setAttribute("aria-sort", name === key ? (falls ? "descending" : "ascending") : "none");
    });
    at("table").scrollTop = 0;
    this.current = -1;
    this.rows = new Map();
    at("rows").replaceChildren();
    if (!list.length) at("rows").append(element("p", "Select points with the lasso, the rectangle or the search. Keep first selects by the order of a column. The selection is listed here.", "hint"));
    this.show();
  },
  /** Make the rows that have come into view, and remove those that have left it. */
  show() {
    const box = at("table");
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 8);
    const last = Math.min(this.list.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 8);
    for (const [n, row] of this.rows) {
      if (n >= first && n < last) continue;
      row.remove();
      this.rows.delete(n);
    }
    for (let n = first; n < last; n++) {
      if (this.rows.has(n)) continue;
      this.rows.set(n, this.row(n));
      at("rows").append(this.rows.get(n));
    }
  },
  row(n) {
    const k = this.list[n];
    const row = element("div", undefined, "row");
    row.setAttribute("role", "row");
    row.setAttribute("aria-rowindex", String(n + 2));
    row.setAttribute("aria-selected", String(n === this.current));
    row.style.top = `${n * ROW}px`;
    for (const [name, value, isNumber] of this.columns) {
      const cell = element("span", isNumber ? (name === "tokens" ? COUNT.format(value(k)) : fixed(value(k))) : value ? value(k) : texts.line(name, k), isNumber ? "number" : "");
      cell.setAttribute("role", "gridcell");
      row.append(cell);
    }
    row.addEventListener("click", () => this.choose(n));
    row.addEventListener("pointerenter", () => {
      scatter.hovered = k;
      drawOverlay();
    });
    return row;
  },
  choose(n) {
    this.rows.get(this.current)?.setAttribute("aria-selected", "false");
    this.current = Math.max(0, Math.min(this.list.length - 1, n));
    if (!this.list.length) return;
    const box = at("table");
    const top = this.current * ROW;
    if (top < box.scrollTop) box.scrollTop = top;
    if (top + 3 * ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + 3 * ROW - box.clientHeight;
    this.show();
    this.rows.get(this.current)?.setAttribute("aria-selected", "true");
    pin(this.list[this.current]);
  },
};

const WHOLE = 20000;  // characters of a text that are shown at first

/** Return what is known of an example as elements. `most` limits the characters of each text. */
function describe(k, most) {
  const facts = element("div", undefined, "facts");
  const fact = (name, value) => {
    const item = element("span", `${name} `);
    item.append(element("b", value));
    facts.append(item);
  };
  fact("confidence", fixed(columns.confidence[k]));
  fact("variability", fixed(columns.variability[k]));
  if (!columns.perplexity) return [facts];
  fact("tokens", COUNT.format(columns.num_tokens[k]));
  for (const key of ["subset", "group"]) if (columns[key] && nameOf(key, k)) fact(key, nameOf(key, k));
  if (isHeldOut(k)) fact("", "held out");
  if (columns.row[k]) fact(nameOf("source", k) || "row", `row ${COUNT.format(columns.row[k])}`);
  if (columns.turn[k] > 1) fact("turn", `${columns.turn[k]} of a dialogue (earlier turns are not shown)`);
  const made = [facts, steps(k)];
  for (const field of ["instruction", "response"]) {
    const text = texts.get(field, k, most * 4);
    made.push(element("div", field, "label"), textBox(field, k, text, most));
  }
  return made;
}

function textBox(field, k, text, most) {
  const box = element("div", undefined, "text");
  box.dir = "auto";
  const isCut = columns.is_cut[k] && text;
  if (text === null) box.textContent = texts.ready ? "(this text is missing: the prepared data is gone)" : "(reading ...)";
  else if (text === "") box.textContent = "(empty)";
  else box.textContent = text.length > most ? `${text.slice(0, most)} ...` : text;
  if (text !== null && text.length > most && most >= WHOLE) {
    const button = element("button", "Show the whole text");
    button.type = "button";
    button.addEventListener("click", () => {
      box.replaceChildren(...blocksOf(texts.get(field, k)));
      button.remove();
    });
    const both = element("div");
    both.append(box, button);
    return both;
  }
  if (isCut && most >= WHOLE && text.length >= 30) box.append(" ... (long texts are cut in this page)");
  return box;
}

/** Return a long text in blocks, because the layout of one block takes quadratic time without spaces. */
function blocksOf(text) {
  const blocks = [];
  for (let from = 0; from < text.length;) {
    let end = Math.min(text.length, from + WHOLE / 4);
    const line = text.lastIndexOf("\n", end);
    if (end < text.length && line > from) end = line + 1;
    else if (end < text.length && (text.charCodeAt(end) & 0xfc00) === 0xdc00) end++;  // not between two surrogates
    blocks.push(element("div", text.slice(from, text[end - 1] === "\n" && end < text.length ? end - 1 : end)));
    from = end;
  }
  return blocks;
}

/** Return the perplexity of an example at each checkpoint, as a line and as numbers. */
function steps(k) {
  const values = Array.from({ length: meta.checkpoints }, (_, c) => perplexityOf(k, c));
  const box = element("div", undefined, "steps");
  const finite = values.filter((v) => Number.isFinite(v) && v > 0).map(Math.log);
  if (finite.length > 1) {
    const [low, high] = [Math.min(...finite), Math.max(...finite)];
    const picture = svg(90, 22);
    const points = values.map((v, c) => [c, Math.log(v)]).filter(([, v]) => Number.isFinite(v))
      .map(([c, v]) => `${4 + (82 * c) / (values.length - 1)},${high > low ? 18 - (14 * (v - low)) / (high - low) : 11}`);
    picture.append(shape("polyline", { points: points.join(" "), fill: "none", stroke: themed("accent"), "stroke-width": 1.5 }));
    picture.setAttribute("width", "90");
    picture.setAttribute("height", "22");
    picture.setAttribute("aria-hidden", "true");
    box.append(picture);
  }
  box.append(element("span", `perplexity ${values.map(fixed).join(" \u2192 ")}`));
  return box;
}

/** Show an example to read. */
function pin(k) {
  scatter.pinned = k;
  at("example").replaceChildren(...describe(k, WHOLE));
  if (texts.ready) at("example").append(element("div", `id ${texts.get("id", k)}`, "label"));
  at("example").scrollTop = 0;
  drawOverlay();
}

function showCard(k, x, y) {
  const card = at("card");
  card.hidden = k < 0;
  if (k < 0) return;
  card.replaceChildren(...describe(k, 600));
  const box = at("plot").getBoundingClientRect();
  const [width, height] = [card.offsetWidth, card.offsetHeight];
  card.style.left = `${Math.max(0, x + 16 + width > box.width ? x - width - 16 : x + 16)}px`;
  card.style.top = `${Math.max(0, Math.min(box.height - height - 4, y + 12))}px`;
}
