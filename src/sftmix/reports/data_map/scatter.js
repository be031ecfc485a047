// The map: points written into one image, a grid in screen space for hover and selection.

const CELL_BITS = 4;
const CELL = 1 << CELL_BITS;  // pixels of a cell of the grid
const MARGIN = { left: 70, right: 24, top: 10, bottom: 38 };
const scatter = {
  canvas: at("points"), overlay: at("overlay"), tool: "pan", view: { x0: -0.08, x1: 1.08, y0: -0.08, y1: 1.08 },
  hovered: -1, pinned: -1, path: [], pending: false, scale: {}, places: {},
};
const visible = new Uint8Array(N).fill(1);
const screenX = new Int32Array(N);
const screenY = new Int32Array(N);
const cellOf = new Uint32Array(N);
const stride = [7919, 104729].find((p) => p < N && N % p !== 0) || 1;  // points are drawn in a mixed order

function setAxis(axis, name) {
  const scale = new Scale(MEASURES[name], at("log").checked);
  scatter.scale[axis] = scale;
  scatter.places[axis] = scale.places();
}

function showAll() {
  const { scale } = scatter;
  const ends = (axis) => {
    const places = scale[axis].beyond.map(([place]) => place);
    return [places.some((p) => p < 0) ? -0.1 : -0.04, places.some((p) => p > 1) ? 1.1 : 1.04];
  };
  const [x0, x1] = ends("x");
  const [y0, y1] = ends("y");
  scatter.view = { x0, x1, y0, y1 };
  redraw();
}

function redraw() {
  if (scatter.pending) return;
  scatter.pending = true;
  requestAnimationFrame(() => {
    scatter.pending = false;
    draw();
  });
}

/** Fit the canvases to their place and return the plot in device pixels. */
function fit() {
  const box = at("plot").getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  for (const canvas of [scatter.canvas, scatter.overlay]) {
    const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  }
  scatter.ratio = ratio;
  const frame = {
    left: Math.round(MARGIN.left * ratio), top: Math.round(MARGIN.top * ratio),
    width: Math.max(1, Math.round((box.width - MARGIN.left - MARGIN.right) * ratio)),
    height: Math.max(1, Math.round((box.height - MARGIN.top - MARGIN.bottom) * ratio)),
  };
  scatter.frame = frame;
  return frame;
}

function draw() {
  const start = performance.now();
  const { width, height, left, top } = fit();
  const context = scatter.canvas.getContext("2d", { alpha: false });
  if (!scatter.image || scatter.image.width !== width || scatter.image.height !== height) {
    scatter.image = context.createImageData(width, height);
    scatter.pixels = new Uint32Array(scatter.image.data.buffer);
  }
  place(width, height);
  const pixels = scatter.pixels;
  pixels.fill(packed(themed("paper")));
  const zoom = 1 / (scatter.view.x1 - scatter.view.x0);
  const base = N > 60000 ? 1.25 : N > 15000 ? 2 : N > 3000 ? 3 : 5;
  const size = Math.max(1, Math.round(base * scatter.ratio * Math.min(2.5, Math.sqrt(Math.max(1, zoom)))));
  if (selection.count) {
    paint(pixels, width, height, size, packed(themed("dim")), 0);
    paint(pixels, width, height, selection.count > 5000 ? size : Math.max(size, 3), null, 1);
  } else {
    paint(pixels, width, height, size, null, -1);
  }
  context.fillStyle = themed("paper");
  context.fillRect(0, 0, scatter.canvas.width, scatter.canvas.height);
  drawAxes(context, true);
  context.putImageData(scatter.image, left, top);
  drawAxes(context, false);
  drawOverlay();
  performance.clearMeasures("draw");
  performance.measure("draw", { start });
  if (!scatter.painted) {
    scatter.painted = true;
    performance.mark("painted");
  }
}

/** Compute the pixel of each point and sort the points by cells of the grid (counting sort). */
function place(width, height) {
  const { view, places: { x, y } } = scatter;
  const scaleX = width / (view.x1 - view.x0);
  const scaleY = height / (view.y1 - view.y0);
  const across = Math.ceil(width / CELL);
  const cells = across * Math.ceil(height / CELL);
  const starts = new Uint32Array(cells + 1);
  for (let k = 0; k < N; k++) {
    const px = Math.floor((x[k] - view.x0) * scaleX);
    const py = Math.floor((view.y1 - y[k]) * scaleY);
    if (visible[k] === 0 || !(px >= 0 && py >= 0 && px < width && py < height)) {
      screenX[k] = -1;
      cellOf[k] = cells;
      continue;
    }
    screenX[k] = px;
    screenY[k] = py;
    cellOf[k] = (py >> CELL_BITS) * across + (px >> CELL_BITS);
    starts[cellOf[k] + 1]++;
  }
  for (let c = 0; c < cells; c++) starts[c + 1] += starts[c];
  const order = new Uint32Array(starts[cells]);
  const next = starts.slice();
  for (let k = 0; k < N; k++) if (cellOf[k] < cells) order[next[cellOf[k]]++] = k;
  scatter.grid = { across, down: Math.ceil(height / CELL), starts, order };
}

/** Write points into the image. `only` is 1 or 0 for points in or out of the selection, -1 for all. */
function paint(pixels, width, height, size, plain, only) {
  const { codes, colors } = coloring;
  const half = size >> 1;
  const blend = only < 0 ? N > 5000 : only > 0 && selection.count > 5000;  // so that dense places look denser
  const round = size > 3 ? (size / 2) ** 2 : 0;
  const { mask } = selection;
  for (let n = 0, k = 0; n < N; n++) {
    k += stride;
    while (k >= N) k -= N;
    if (screenX[k] < 0 || (only >= 0 && mask[k] !== only)) continue;
    const color = plain === null ? colors[codes[k]] : plain;
    const x0 = screenX[k] - half;
    const y0 = screenY[k] - half;
    const x1 = Math.min(width, x0 + size);
    const y1 = Math.min(height, y0 + size);
    for (let y = Math.max(0, y0); y < y1; y++) {
      for (let x = Math.max(0, x0); x < x1; x++) {
        if (round > 0 && (x - x0 + 0.5 - size / 2) ** 2 + (y - y0 + 0.5 - size / 2) ** 2 > round) continue;
        const p = y * width + x;
        pixels[p] = blend ? 0xff000000 | (((pixels[p] & 0xfefefe) >>> 1) + ((color & 0xfefefe) >>> 1)) : color;
      }
    }
  }
}

function drawAxes(context, isBelow) {
  const { frame: { left, top, width, height }, view, ratio, scale } = scatter;
  context.font = `${11 * ratio}px system-ui, sans-serif`;
  context.lineWidth = ratio;
  context.textBaseline = "middle";
  const toX = (p) => left + ((p - view.x0) / (view.x1 - view.x0)) * width;
  const toY = (p) => top + ((view.y1 - p) / (view.y1 - view.y0)) * height;
  const line = (x0, y0, x1, y1, dash) => {
    context.setLineDash(dash || []);
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
    context.setLineDash([]);
  };
  if (!isBelow) {
    const split = splitAt();
    for (const [axis, measure] of [["x", scale.x.measure], ["y", scale.y.measure]]) {
      if (measure !== MEASURES.confidence || !Number.isFinite(split)) continue;
      const p = scale[axis].place(split);
      context.strokeStyle = themed("ink");
      context.fillStyle = themed("ink");
      if (axis === "y" && p > view.y0 && p < view.y1) {
        line(left, toY(p), left + width, toY(p), [5 * ratio, 4 * ratio]);
        context.textAlign = "right";
        const label = `median ${format(split)}`;
        context.fillStyle = themed("paper");
        context.fillRect(left + width - context.measureText(label).width - 8 * ratio, toY(p) - 15 * ratio, context.measureText(label).width + 7 * ratio, 14 * ratio);
        context.fillStyle = themed("ink");
        context.fillText(label, left + width - 4 * ratio, toY(p) - 8 * ratio);
      } else if (axis === "x" && p > view.x0 && p < view.x1) line(toX(p), top, toX(p), top + height, [5 * ratio, 4 * ratio]);
    }
    return;
  }
  context.fillStyle = themed("quiet");
  context.strokeStyle = themed("line");
  context.strokeRect(left - 0.5, top - 0.5, width + 1, height + 1);
  context.textAlign = "center";
  let last = -Infinity;
  for (const [p, label] of scale.x.ticks(view.x0, view.x1, width / (70 * ratio)).sort((a, b) => a[0] - b[0])) {
    line(toX(p), top + height, toX(p), top + height + 4 * ratio);
    const half = context.measureText(label).width / 2;
    if (toX(p) - half < last + 6 * ratio) continue;
    context.fillText(label, toX(p), top + height + 12 * ratio);
    last = toX(p) + half;
  }
  context.textAlign = "right";
  last = Infinity;
  for (const [p, label] of scale.y.ticks(view.y0, view.y1, height / (45 * ratio)).sort((a, b) => a[0] - b[0])) {
    line(left - 4 * ratio, toY(p), left, toY(p));
    if (toY(p) > last - 13 * ratio) continue;
    context.fillText(label, left - 7 * ratio, toY(p));
    last = toY(p);
  }
  context.fillStyle = themed("ink");
  context.textAlign = "center";
  const titleOf = ({ measure, isLog }) => measure.title + (isLog ? ", log scale" : "");
  context.fillText(titleOf(scale.x), left + width / 2, top + height + 28 * ratio);
  context.save();
  context.translate(8 * ratio, top + height / 2);
  context.rotate(-Math.PI / 2);
  context.fillText(titleOf(scale.y), 0, 0);
  context.restore();
}

/** Return the median of the confidence over the examples to train on: where a split by confidence divides them. */
function splitAt() {
  if (scatter.split === undefined) {
    if (HELD_OUT >= 0 && !columns.part) return NaN;
    scatter.split = median(columns.confidence.filter((_, k) => !isHeldOut(k)));
  }
  return scatter.split;
}

function drawOverlay() {
  const context = scatter.overlay.getContext("2d");
  const { frame: { left, top }, ratio } = scatter;
  context.clearRect(0, 0, scatter.overlay.width, scatter.overlay.height);
  for (const [example, radius] of [[scatter.pinned, 7], [scatter.hovered, 5]]) {
    if (example < 0 || screenX[example] < 0) continue;
    for (const [color, wide] of [[themed("paper"), 4], [themed("ink"), 2]]) {
      context.strokeStyle = color;
      context.lineWidth = wide * ratio;
      context.beginPath();
      context.arc(left + screenX[example] + 0.5, top + screenY[example] + 0.5, radius * ratio, 0, 2 * Math.PI);
      context.stroke();
    }
  }
  if (scatter.path.length > 1) {
    context.beginPath();
    for (const [x, y] of scatter.path) context.lineTo(left + x, top + y);
    context.closePath();
    context.strokeStyle = themed("accent");
    context.lineWidth = 1.5 * ratio;
    context.stroke();
    context.globalAlpha = 0.12;
    context.fillStyle = themed("accent");
    context.fill();
    context.globalAlpha = 1;
  }
}

/** Return the example nearest to a place of the plot in device pixels, or -1. */
function nearest(x, y) {
  const { across, down, starts, order } = scatter.grid;
  const reach = 12 * scatter.ratio;
  const around = Math.ceil(reach / CELL);
  const [cx, cy] = [Math.floor(x / CELL), Math.floor(y / CELL)];
  let [best, least] = [-1, reach * reach];
  for (let row = Math.max(0, cy - around); row <= Math.min(down - 1, cy + around); row++) {
    for (let column = Math.max(0, cx - around); column <= Math.min(across - 1, cx + around); column++) {
      const cell = row * across + column;
      for (let k = starts[cell]; k < starts[cell + 1]; k++) {
        const distance = (screenX[order[k]] - x) ** 2 + (screenY[order[k]] - y) ** 2;
        if (distance < least) [best, least] = [order[k], distance];
      }
    }
  }
  return best;
}

/** Return the visible examples inside a polygon of the plot. The edges that cross a row of pixels are found once. */
function inside(path) {
  const crossings = new Map();
  const crossingsOf = (y) => {
    const found = [];
    for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
      const [ax, ay] = path[a];
      const [bx, by] = path[b];
      if (ay > y !== by > y) found.push(((bx - ax) * (y - ay)) / (by - ay) + ax);
    }
    return found;
  };
  const found = [];
  for (const k of scatter.grid.order) {
    const y = screenY[k];
    if (!crossings.has(y)) crossings.set(y, crossingsOf(y));
    let isIn = false;
    for (const x of crossings.get(y)) if (screenX[k] < x) isIn = !isIn;
    if (isIn) found.push(k);
  }
  return found;
}

function zoomAt(factor, x, y) {
  const { view, frame } = scatter;
  const [px, py] = [view.x0 + (x / frame.width) * (view.x1 - view.x0), view.y1 - (y / frame.height) * (view.y1 - view.y0)];
  const span = (view.x1 - view.x0) * factor;
  if (span > 3 || span < 1e-5) return;
  scatter.view = {
    x0: px - (px - view.x0) * factor, x1: px + (view.x1 - px) * factor,
    y0: py - (py - view.y0) * factor, y1: py + (view.y1 - py) * factor,
  };
  redraw();
}

function moveBy(dx, dy) {
  const { view, frame } = scatter;
  const [x, y] = [(dx / frame.width) * (view.x1 - view.x0), (dy / frame.height) * (view.y1 - view.y0)];
  scatter.view = { x0: view.x0 - x, x1: view.x1 - x, y0: view.y0 + y, y1: view.y1 + y };
  redraw();
}
