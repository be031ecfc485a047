// What is selected: by lasso, search, legend, panels or a file of ids; and how it leaves the page.

const selection = { mask: new Uint8Array(N), list: [], count: 0 };
const coloring = { key: "", codes: new Uint8Array(N), colors: new Uint32Array(256) };

/** Change the selection as the reader chose: replace, add, narrow or remove. */
function select(examples, how = at("combine").value) {
  const { mask } = selection;
  if (how === "replace") mask.fill(0);
  if (how === "narrow") {
    const kept = examples.filter((k) => mask[k]);
    mask.fill(0);
    for (const k of kept) mask[k] = 1;
  } else {
    for (const k of examples) mask[k] = how === "remove" ? 0 : 1;
  }
  selection.list = [];
  for (let k = 0; k < N; k++) if (mask[k]) selection.list.push(k);
  selection.count = selection.list.length;
  showSelection();
  redraw();
}

function showSelection() {
  const { count } = selection;
  at("selected").textContent = count ? `${COUNT.format(count)} of ${COUNT.format(N)} selected` : "Nothing is selected";
  for (const id of ["clear", "export-ids", "export-jsonl"]) at(id).disabled = !count || (id !== "clear" && !texts.ready);
  const held = heldOut();
  at("message").textContent = held ? `${COUNT.format(held)} of them ${held === 1 ? "is" : "are"} held out: data/select=ids trains on the other ${COUNT.format(selection.count - held)}.` : "";
  table.fill(selection.list);
  clearTimeout(selection.later);
  selection.later = setTimeout(updatePanels, 30);  // the map is drawn first
}

/** Keep the first examples in the order of the table, without held-out ones: of the selection or, if nothing is selected, of all. */
function keepFirst() {
  if (!selection.count) select(Array.from({ length: N }, (_, k) => k).filter((k) => visible[k]), "replace");
  select(table.list.filter((k) => !isHeldOut(k)).slice(0, Math.max(0, Number(at("first").value))), "replace");
}

function heldOut() {
  return selection.list.filter(isHeldOut).length;
}

/** The texts in lower case, in long pieces, so that a search goes through few strings. */
const index = {
  pieces: [], size: 4096, done: false, built: null,
  build() {
    this.built = this.built || this.buildPieces();
    return this.built;
  },
  async buildPieces() {
    for (const field of texts.fields) {
      for (let first = 0; first < N; first += this.size) {
        this.pieces.push(this.piece(field, first, Math.min(N, first + this.size)));
        await pause();
      }
    }
    this.done = true;
    performance.mark("indexed");
  },
  /** Join the texts of some examples. Plain ASCII is decoded at once. */
  piece(field, first, end) {
    const starts = new Uint32Array(end - first + 1);
    for (let k = first; k < end; k++) starts[k - first + 1] = starts[k - first] + texts.size(field, k);
    const text = texts.range(field, first, end);
    if (text.length === starts[end - first] && text.toLowerCase().length === text.length) return { first, starts, text: text.toLowerCase() };
    const parts = [];
    for (let k = first; k < end; k++) {
      parts.push((texts.get(field, k) || "").toLowerCase());
      starts[k - first + 1] = starts[k - first] + parts[k - first].length;
    }
    return { first, starts, text: parts.join("") };
  },
  /** Return which examples have a text with these words, as a mask. */
  find(words) {
    const wanted = words.toLowerCase();
    const found = new Uint8Array(N);
    for (const { first, starts, text } of this.pieces) {
      let k = 0;
      let place = text.indexOf(wanted);
      while (place >= 0) {
        while (starts[k + 1] <= place) k++;
        const fits = place + wanted.length <= starts[k + 1];  // not across the border of two texts
        if (fits) found[first + k] = 1;
        place = text.indexOf(wanted, fits ? starts[k + 1] : place + 1);
      }
    }
    return found;
  },
};

async function search(words) {
  if (!words.trim()) return select([], "replace");
  at("message").textContent = index.done ? "" : "Reading the texts ...";
  await index.build();
  if (at("search").value !== words) return undefined;  // the reader went on writing
  const start = performance.now();
  const mask = index.find(words);
  const found = [];
  for (let k = 0; k < N; k++) if (mask[k] && visible[k]) found.push(k);
  performance.measure("search", { start });
  select(found);
  if (!found.length) at("message").textContent = "No text contains it.";
  return undefined;
}

const exported = (value) => (Number.isFinite(value) ? Number(value.toPrecision(7)) : null);

function recordOf(k) {
  const record = { example_id: texts.get("id", k) };
  for (const key of ["subset", "group", "source"]) if (columns[key]) record[key] = nameOf(key, k);
  if (columns.part) record.part = isHeldOut(k) ? "val" : "train";
  if (columns.row[k]) record.row = columns.row[k];
  record.confidence = exported(columns.confidence[k]);
  record.variability = exported(columns.variability[k]);
  record.perplexity = Array.from({ length: meta.checkpoints }, (_, c) => exported(perplexityOf(k, c)));
  record.num_tokens = columns.num_tokens[k];
  record.instruction = texts.get("instruction", k);
  record.response = texts.get("response", k);
  if (columns.is_cut[k]) record.is_cut = true;
  return record;
}

function save(name, parts, type) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function exportIds() {
  const ids = selection.list.map((k) => texts.get("id", k));
  const name = `${meta.name}-ids.json`;
  save(name, [JSON.stringify(ids, null, 1), "\n"], "application/json");
  at("message").textContent = `Saved ${plural(ids.length, "id")} as ${name} in the browser's folder of downloads. To train on them, with the path of the file:\n${meta.command} data.select.path=${name}`;
}

async function exportRecords() {
  const name = `${meta.name}-selection.jsonl`;
  const [chosen, parts] = [selection.list, []];
  for (let n = 0; n < chosen.length; n += 1000) {
    parts.push(`${chosen.slice(n, n + 1000).map((k) => JSON.stringify(recordOf(k))).join("\n")}\n`);
    at("message").textContent = `Writing ${COUNT.format(n)} of ${plural(chosen.length, "record")} ...`;
    await pause();
  }
  save(name, parts, "application/jsonl");
  at("message").textContent = `Saved ${plural(chosen.length, "record")} as ${name}.`;
  performance.mark("exported");
}

/** Return the ids in a file: a list or records in JSON, or lines of ids or records. */
function idsIn(content) {
  const idOf = (entry) => (entry && typeof entry === "object" ? entry.example_id ?? entry.id : entry);
  const lines = () => content.split(/\r?\n/).filter((line) => line.trim()).map((line) => {
    try {
      return JSON.parse(line);
    } catch {
      return line.split(",")[0].replaceAll('"', "").trim();
    }
  });
  let entries;
  try {
    entries = JSON.parse(content);
  } catch {
    entries = lines();
  }
  return (Array.isArray(entries) ? entries : lines()).map(idOf).filter((id) => id !== undefined && id !== null).map(String);
}

async function loadIds(file) {
  const wanted = new Set(idsIn(await file.text()));
  const found = [];
  for (let k = 0; k < N; k++) if (wanted.delete(texts.get("id", k))) found.push(k);
  select(found);
  const [first] = wanted;
  const lacking = wanted.size ? `; ${plural(wanted.size, "id")} of ${file.name} ${wanted.size === 1 ? "is" : "are"} not in this run, such as ${first.slice(0, 40)}` : "";
  at("message").textContent = `${plural(found.length, "example")} of ${file.name} ${found.length === 1 ? "is" : "are"} in this run${lacking}`;
}

/** Color the points by a category or a number, and show the legend. */
function colorBy(key) {
  const legend = at("legend");
  legend.replaceChildren(element("span", at("color").selectedOptions[0].textContent, "name"));
  coloring.key = key;
  if (meta.categories[key]) {
    const names = meta.categories[key];
    const colors = categoryColors(key);
    coloring.codes = columns[key];
    coloring.colors = Uint32Array.from(colors, packed);
    const counts = new Uint32Array(names.length);
    for (const code of columns[key]) counts[code]++;
    names.forEach((name, code) => legend.append(legendButton(key, name, code, colors[code], counts[code])));
    return;
  }
  const scale = new Scale(MEASURES[key], true);
  coloring.colors = Uint32Array.from({ length: 256 }, (_, k) => packed(k === 255 ? themed("none") : gradient(k / 254)));
  const places = scale.places();
  const inner = places.filter((p) => p >= 0 && p <= 1).sort();
  const [low, high] = [quantile(inner, 0.01), quantile(inner, 0.99)];
  const span = high - low || 1;
  coloring.codes = Uint8Array.from(places, (p) => (p > 1.04 || p < -0.04 ? 255 : Math.max(0, Math.min(254, Math.round(254 * (p - low) / span)))));
  for (let k = 0; k <= 4; k++) {
    const swatch = element("span", "", "swatch");
    swatch.style.background = gradient(k / 4);
    const label = element("span", "", "count");
    const value = scale.value(scale.low + (low + (k / 4) * (high - low)) * (scale.high - scale.low));
    label.append(swatch, `${k === 0 ? "\u2264 " : k === 4 ? "\u2265 " : ""}${format(value)}`);
    legend.append(label);
  }
}

function legendButton(key, name, code, color, count) {
  const button = element("button");
  button.type = "button";
  button.title = "Hide or show; with Shift, show only this; with Alt, select";
  const swatch = element("span", "", "swatch");
  swatch.style.background = color;
  button.append(swatch, name === "" ? "(none)" : name, " ", element("span", `${COUNT.format(count)}, ${percent(count, N)}`, "count"));
  button.setAttribute("aria-pressed", String(!hidden[key]?.has(code)));
  button.addEventListener("click", (event) => {
    if (event.altKey) {
      select(Array.from({ length: N }, (_, k) => k).filter((k) => columns[key][k] === code));
      return;
    }
    const off = (hidden[key] = hidden[key] || new Set());
    const others = meta.categories[key].map((_, c) => c).filter((c) => c !== code);
    if (event.shiftKey) {
      const isOnly = !off.has(code) && others.every((c) => off.has(c));
      hidden[key] = new Set(isOnly ? [] : others);
    } else if (!off.delete(code)) off.add(code);
    updateVisible();
    colorBy(key);
    redraw();
  });
  return button;
}

const hidden = {};  // category -> codes that are not drawn

function updateVisible() {
  visible.fill(1);
  for (const [key, codes] of Object.entries(hidden)) {
    if (codes.size) for (let k = 0; k < N; k++) if (codes.has(columns[key][k])) visible[k] = 0;
  }
}
