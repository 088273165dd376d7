// The mask at the photograph's own resolution, with undo. What it looks like is `stage.js`, how it is painted `tools.js`.

import { bounds, union } from "./raster.js";

const BLOCK = 128; // pixels a side: what one entry of the history is made of
const HISTORY = 256 * 2 ** 20; // bytes

/** Levels 0 to 255, one a pixel. Emits "change" with the rectangle that changed, and "edit" when an edit is done. */
export class Mask extends EventTarget {
  constructor(width, height) {
    super();
    this.width = width;
    this.height = height;
    this.data = new Uint8Array(width * height);
    this.across = Math.ceil(width / BLOCK);
    this.version = 0;
    this.done = [];
    this.undone = [];
    this.open = null;
  }

  /** Begin an edit, which undo takes back as a whole. */
  begin() {
    this.open = { blocks: new Map(), rect: null };
  }

  /** Say, inside an edit and beforehand, what is about to be drawn into. */
  touch(rect) {
    if (!rect) return;
    const { blocks } = this.open;
    for (let by = Math.floor(rect.y0 / BLOCK); by * BLOCK < rect.y1; by++) {
      for (let bx = Math.floor(rect.x0 / BLOCK); bx * BLOCK < rect.x1; bx++) {
        const key = by * this.across + bx;
        if (!blocks.has(key)) blocks.set(key, this.read(key));
      }
    }
    this.open.rect = union(this.open.rect, rect);
  }

  /** Say that a rectangle has been drawn into, so that it is shown. */
  changed(rect) {
    if (rect) this.dispatchEvent(new CustomEvent("change", { detail: rect }));
  }

  /** End the edit. One that changed nothing leaves no trace. */
  commit() {
    const { blocks, rect } = this.open;
    this.open = null;
    const entry = { rect, blocks: new Map(), bytes: 0 };
    for (const [key, before] of blocks) {
      const after = this.read(key);
      if (same(before, after)) continue;
      entry.blocks.set(key, [before, after]);
      entry.bytes += size(before) + size(after);
    }
    if (!entry.blocks.size) return false;
    this.done.push(entry);
    this.undone = [];
    let held = this.done.reduce((sum, one) => sum + one.bytes, 0);
    while (held > HISTORY && this.done.length > 1) held -= this.done.shift().bytes;
    this.edited();
    return true;
  }

  /** Leave the edit that is open, as if it had never begun. */
  abandon() {
    if (!this.open) return;
    const { blocks, rect } = this.open;
    this.open = null;
    for (const [key, before] of blocks) this.write(key, before);
    this.changed(rect);
  }

  /** An edit of the whole mask or of a part: `draw` returns nothing. */
  edit(rect, draw) {
    if (!rect) return false;
    this.begin();
    this.touch(rect);
    draw(this);
    this.changed(rect);
    return this.commit();
  }

  get whole() {
    return { x0: 0, y0: 0, x1: this.width, y1: this.height };
  }

  undo() {
    return this.step(this.done, this.undone, 0);
  }

  redo() {
    return this.step(this.undone, this.done, 1);
  }

  step(from, to, side) {
    const entry = from.pop();
    if (!entry) return false;
    for (const [key, states] of entry.blocks) this.write(key, states[side]);
    to.push(entry);
    this.changed(entry.rect);
    this.edited();
    return true;
  }

  edited() {
    this.version++;
    this.dispatchEvent(new Event("edit"));
  }

  /** A block's levels; one number for a block of one level. */
  read(key) {
    const { x, y, w, h } = this.place(key);
    const first = this.data[y * this.width + x], levels = new Uint8Array(w * h);
    let uniform = true;
    for (let row = 0; row < h; row++) {
      const start = (y + row) * this.width + x;
      levels.set(this.data.subarray(start, start + w), row * w);
    }
    for (let i = 0; i < levels.length && uniform; i++) uniform = levels[i] === first;
    return uniform ? first : levels;
  }

  write(key, levels) {
    const { x, y, w, h } = this.place(key);
    for (let row = 0; row < h; row++) {
      const start = (y + row) * this.width + x;
      if (typeof levels === "number") this.data.fill(levels, start, start + w);
      else this.data.set(levels.subarray(row * w, (row + 1) * w), start);
    }
  }

  place(key) {
    const x = (key % this.across) * BLOCK, y = Math.floor(key / this.across) * BLOCK;
    return { x, y, w: Math.min(BLOCK, this.width - x), h: Math.min(BLOCK, this.height - y) };
  }

  get isEmpty() {
    return bounds(this) === null;
  }

  /** Whether there are greys: then the run uses levels. */
  get isSoft() {
    for (let i = 0; i < this.data.length; i++) {
      const level = this.data[i];
      if (level !== 0 && level !== 255) return true;
    }
    return false;
  }

  /** Runs of levels, as a few bytes for what people paint: pairs (level, length) of 32-bit numbers. */
  packed() {
    const { data } = this, out = [];
    for (let i = 0; i < data.length; ) {
      const level = data[i], begin = i;
      while (i < data.length && data[i] === level) i++;
      out.push(level, i - begin);
    }
    return { width: this.width, height: this.height, runs: Uint32Array.from(out) };
  }

  /** The mask of `packed`; no undo leads behind it. */
  unpack({ width, height, runs }) {
    if (width !== this.width || height !== this.height) return false;
    for (let i = 0, at = 0; i < runs.length; i += 2) {
      this.data.fill(runs[i], at, at + runs[i + 1]);
      at += runs[i + 1];
    }
    this.version++;
    this.changed(this.whole);
    return true;
  }
}

function same(a, b) {
  if (typeof a === "number" || typeof b === "number") return a === b;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

function size(levels) {
  return typeof levels === "number" ? 8 : levels.length;
}
