// Unpack what the page holds: numbers as typed arrays, and texts that are decoded when they are shown.

const at = (id) => document.getElementById(id);
const meta = JSON.parse(at("meta").textContent);
const N = meta.examples;
const ARRAYS = { f4: Float32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
const columns = {};  // name -> typed array, one value for each example

function bytesOf(id) {
  const element = at(id);
  const text = element.textContent;
  element.remove();
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const padding = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
  const bytes = new Uint8Array(text.length / 4 * 3 - padding);
  for (let from = 0, to = 0; from < text.length; from += 1 << 20) {
    const part = atob(text.slice(from, from + (1 << 20)));
    for (let k = 0; k < part.length; k++) bytes[to++] = part.charCodeAt(k);
  }
  return bytes;
}

function addColumns(bytes, layout) {
  let from = 0;
  for (const [name, kind, length] of layout) {
    const Array = ARRAYS[kind];
    const size = length * Array.BYTES_PER_ELEMENT;
    columns[name] = new Array(bytes.slice(from, from + size).buffer);  // a copy, because its start must be aligned
    from += size;
  }
}

async function gunzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Leave time to draw, if much has passed since the last pause. */
async function pause() {
  if (performance.now() - pause.last > 12) await new Promise((resolve) => setTimeout(resolve));
  pause.last = performance.now();
}
pause.last = 0;

const texts = {
  fields: ["id", "instruction", "response"],
  ready: false,
  unpack(bytes) {
    const lengths = new Uint32Array(bytes.slice(0, 12 * N).buffer);
    this.lengths = lengths;
    this.starts = new Float64Array(3 * N);  // may exceed 32 bits
    let from = 12 * N;
    for (let k = 0; k < 3 * N; k++) {
      this.starts[k] = from;
      if (lengths[k] !== 0xffffffff) from += lengths[k];
    }
    this.bytes = bytes;
    this.decoder = new TextDecoder();
    this.ready = true;
  },
  /** Return a text, or null if it is missing. `most` limits its bytes. */
  get(field, example, most = Infinity) {
    const k = this.fields.indexOf(field) * N + example;
    if (!this.ready || this.lengths[k] === 0xffffffff) return null;
    const from = this.starts[k];
    return this.decoder.decode(this.bytes.subarray(from, from + Math.min(this.lengths[k], most)));
  },
  size(field, example) {
    const length = this.lengths[this.fields.indexOf(field) * N + example];
    return length === 0xffffffff ? 0 : length;
  },
  /** Return the texts of some examples, joined. */
  range(field, first, end) {
    const k = this.fields.indexOf(field) * N;
    return this.decoder.decode(this.bytes.subarray(this.starts[k + first], this.starts[k + end - 1] + this.size(field, end - 1)));
  },
  /** Return a text on one line, for tables. */
  line(field, example) {
    const text = this.get(field, example, 600);
    return text === null ? (this.ready ? "(missing)" : "") : text === "" ? "(empty)" : text.replace(/\s+/g, " ");
  },
};

const HELD_OUT = meta.categories.part ? meta.categories.part.indexOf("val") : -1;  // code of held-out examples
if (meta.categories.part) meta.categories.part = meta.categories.part.map((name) => ({ train: "training", val: "held out" })[name] || name);
const isHeldOut = (example) => Boolean(columns.part) && columns.part[example] === HELD_OUT;
const nameOf = (key, example) => (columns[key] ? meta.categories[key][columns[key][example]] : "");
const perplexityOf = (example, checkpoint) => columns.perplexity[checkpoint * N + example];
