// Axes, colors and numbers.

const COUNT = new Intl.NumberFormat("en");
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const plural = (number, noun) => `${COUNT.format(number)} ${noun}${number === 1 ? "" : "s"}`;

function format(value) {
  if (Number.isNaN(value)) return "n/a";
  if (!Number.isFinite(value)) return value > 0 ? "\u221e" : "\u2212\u221e";
  const size = Math.abs(value);
  const text = size >= 1e5 && size < 1e15 ? COMPACT.format(size) : size >= 1e15 || (size > 0 && size < 1e-3) ? size.toExponential(1) : size >= 100 ? COUNT.format(Math.round(size)) : String(Number(size.toPrecision(3)));
  return (value < 0 ? "\u2212" : "") + text;
}

/** Return a number with three digits, so that numbers in a column align. */
function fixed(value) {
  const size = Math.abs(value);
  return Number.isFinite(value) && size >= 1e-3 && size < 100 ? (value < 0 ? "\u2212" : "") + size.toPrecision(3) : format(value);
}

const percent = (part, whole) => (whole ? `${(100 * part / whole).toFixed(part === whole ? 0 : 1)}%` : "n/a");

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function quantile(sorted, share) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : NaN;
}

function median(values) {
  const sorted = Float32Array.from(values).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** What an axis can show. `sign` is -1 if all values are negative. */
const RANKS = "rank of the loss within a window of the first epoch, 1: lowest loss";
const MEASURES = {
  confidence: { label: "confidence", title: `confidence (${meta.has_ranks ? RANKS : "minus mean perplexity"})`, sign: -1, isLinear: meta.has_ranks, values: () => columns.confidence },
  variability: { label: "variability", title: "variability (standard deviation of perplexity)", sign: 1, values: () => columns.variability },
  tokens: { label: "response length", title: "response length (tokens)", sign: 1, values: () => columns.num_tokens },
  rise: { label: "rise of perplexity", title: "perplexity at the last checkpoint / its lowest", sign: 1, values: () => columns.rise },
};
for (let c = 0; c < meta.checkpoints; c++) {
  MEASURES[`checkpoint ${c + 1}`] = {
    label: `perplexity, checkpoint ${c + 1}`,
    title: `perplexity at checkpoint ${c + 1}`,
    sign: 1,
    values: () => columns.perplexity.subarray(c * N, (c + 1) * N),
  };
}

/** Map values to 0..1 over their finite range. Values that a scale cannot show have a place beyond an end. */
class Scale {
  constructor(measure, mayBeLog) {
    const isLog = mayBeLog && !measure.isLinear;
    this.measure = measure;
    this.isLog = isLog;
    const values = measure.values();
    const sizes = values.filter((v) => Number.isFinite(v) && (!isLog || v * measure.sign > 0)).sort();
    if (isLog && measure.sign < 0) sizes.reverse();
    let [low, high] = sizes.length ? [sizes[0], sizes[sizes.length - 1]] : [measure.sign, measure.sign];
    if (isLog && measure.sign > 0 && sizes.length) low = Math.max(low, high * 1e-12, quantile(sizes, 0.0005) / 3);  // not lost in near zeros
    if (isLog && measure.sign < 0) [low, high] = [Math.min(low, high), Math.max(low, high)];
    this.floor = low;
    this.low = this.raw(low);
    this.high = this.raw(high);
    if (this.high - this.low < 1e-9 * Math.max(1, Math.abs(this.high))) {  // all values are equal
      this.low -= 0.5;
      this.high += 0.5;
    }
    this.beyond = [];  // [place, label] of values that have no place on the scale
  }
  raw(value) {
    if (!this.isLog) return value;
    return this.measure.sign < 0 ? -Math.log10(-value) : Math.log10(value);
  }
  value(raw) {
    if (!this.isLog) return raw;
    return this.measure.sign < 0 ? -(10 ** -raw) : 10 ** raw;
  }
  place(value) {
    return (this.raw(value) - this.low) / (this.high - this.low);
  }
  places() {
    const values = this.measure.values();
    const places = new Float32Array(N);
    const beyond = new Map();
    let isBelow = false;  // whether a value is below the scale, but not 0
    for (let k = 0; k < N; k++) {
      const value = values[k];
      let place = this.place(value);
      if (!Number.isFinite(value)) {
        place = value < 0 ? -0.05 : 1.05;
        beyond.set(place, Number.isNaN(value) ? "n/a" : format(value));
      } else if (this.isLog && this.measure.sign > 0 && value < this.floor) {
        place = -0.05;
        isBelow = isBelow || value !== 0;
        beyond.set(place, isBelow ? `< ${format(this.floor)}` : "0");
      }
      places[k] = place;
    }
    this.beyond = [...beyond];
    return places;
  }
  /** Return [place, label] of ticks between two places. */
  ticks(from, to, most) {
    const span = this.high - this.low;
    const [low, high] = [this.low + from * span, this.low + to * span];
    const [start, end] = [Math.max(low, this.low - 0.02 * span), Math.min(high, this.high + 0.02 * span)];
    let values = [];
    if (this.isLog && end - start > 0.8) {
      const decades = end - start;
      const factors = decades * 3 <= most ? [1, 2, 5] : [1];
      const every = Math.ceil(decades / most);
      for (let power = Math.floor(-Math.abs(Math.max(-start, end)) - 1); power <= Math.ceil(Math.max(Math.abs(start), Math.abs(end))); power++) {
        if (((power % every) + every) % every) continue;
        for (const factor of factors) values.push(this.measure.sign * factor * 10 ** power);
      }
    } else {
      const [a, b] = [this.value(start), this.value(end)].sort((x, y) => x - y);
      const rough = (b - a) / Math.max(1, most);
      const unit = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((f) => f * unit).find((s) => s >= rough) || unit;
      for (let k = Math.ceil(a / step); k * step <= b + step / 1e6; k++) values.push(k * step);
    }
    const ticks = values
      .map((value) => [this.place(value), format(value)])
      .filter(([place]) => place >= from && place <= to && place > -0.03 && place < 1.03);
    return ticks.concat(this.beyond.filter(([place]) => place >= from && place <= to));
  }
}

// Okabe and Ito's palette, which readers with any kind of color vision can tell apart; lighter in the dark
const PALETTE = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d1f"],
  dark: ["#56b4e9", "#f0913a", "#2fc79a", "#e19ac2", "#f2d64b", "#8aa5ff", "#c9a2f0", "#c8a96a"],
};
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const PLAIN = { subset: ["confident", "unconfident", "none"] };  // names with fixed colors

const isDark = () => document.documentElement.dataset.theme === "dark";
const themed = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Return a color as a canvas stores it in 32 bits. */
function packed(color) {
  const hex = color.length === 4 ? color.replace(/[^#]/g, "$&$&") : color;
  const number = parseInt(hex.slice(1), 16);
  return (0xff000000 | ((number & 0xff) << 16) | (number & 0xff00) | (number >> 16)) >>> 0;
}

/** Return the color of each name of a category. Names after the eighth share the last. */
function categoryColors(key) {
  const names = meta.categories[key];
  if (PLAIN[key]) return names.map((name) => themed(name));
  const palette = PALETTE[isDark() ? "dark" : "light"];
  return names.map((_, k) => (k < palette.length && (k < palette.length - 1 || names.length === palette.length) ? palette[k] : themed("none")));
}

function gradient(place) {
  const x = Math.min(1, Math.max(0, place)) * (VIRIDIS.length - 1);
  const k = Math.min(VIRIDIS.length - 2, Math.floor(x));
  const channel = (color, c) => parseInt(color.slice(1 + 2 * c, 3 + 2 * c), 16);
  const mixed = [0, 1, 2].map((c) => Math.round(channel(VIRIDIS[k], c) + (x - k) * (channel(VIRIDIS[k + 1], c) - channel(VIRIDIS[k], c))));
  return `#${mixed.map((v) => v.toString(16).padStart(2, "0")).join("")}`;
}
