// What is seen of the photograph: view, layers, comparison. It draws and never changes anything.
//
// Two canvases lie over each other. The lower shows the picture (input, prediction, or both beside a slider) and is drawn
// anew when the view or the picture changes; the upper shows the mask and is drawn where the mask changes. The mask's
// pixels are kept in tiles, so that a stroke costs what it covers, however large the photograph is.

import { clip } from "./raster.js";

const TILE = 512;
const SMALLEST = 0.02, LARGEST = 40; // screen pixels for a pixel of the photograph
const MARGIN = 24;
const COLOUR = [255, 46, 99]; // of the mask; its canvas is half transparent

const SHADES = Uint32Array.from({ length: 256 }, (_, level) => {
  const bytes = new DataView(new ArrayBuffer(4));
  [...COLOUR, level].forEach((byte, i) => bytes.setUint8(i, byte));
  return new Uint32Array(bytes.buffer)[0];
});

export class Stage extends EventTarget {
  constructor(viewport) {
    super();
    this.viewport = viewport;
    this.photo = viewport.querySelector(".layer-photo");
    this.over = viewport.querySelector(".layer-mask");
    this.context = this.photo.getContext("2d");
    this.overContext = this.over.getContext("2d");
    this.levels = [];
    this.width = this.height = 0;
    this.scale = 1;
    this.x = this.y = 0;
    this.patch = null; // {bitmap, window}: the prediction that is shown
    this.forming = null; // {bitmap, window}: an estimate, shown inside the mask
    this.comparing = false;
    this.split = null; // 0 to 1 of the picture's width, with a slider
    this.fitted = true;
    this.dirty = { photo: false, mask: false };
    this.onChange = (event) => this.maskChanged(event.detail);
    new ResizeObserver(() => this.resize()).observe(viewport);
    this.resize();
  }

  get hasPicture() {
    return this.width > 0;
  }

  /** Show another photograph, and a mask of its size. */
  open(bitmap, mask, keepView = false) {
    for (const level of this.levels) level.close();
    this.levels = [bitmap];
    const same = keepView && bitmap.width === this.width && bitmap.height === this.height;
    this.width = bitmap.width;
    this.height = bitmap.height;
    this.patch = this.forming = null;
    this.mask?.removeEventListener("change", this.onChange);
    this.mask = mask;
    this.tiles = new Map();
    mask.addEventListener("change", this.onChange);
    this.shrink(bitmap);
    if (!same) this.fit();
    this.redraw();
  }

  /** Smaller versions of a large photograph, from which it is drawn when it is seen small. */
  async shrink(bitmap) {
    let last = bitmap;
    while (Math.max(last.width, last.height) > 1600 && this.levels[0] === bitmap) {
      const options = { resizeWidth: last.width >> 1, resizeHeight: last.height >> 1, resizeQuality: "medium" };
      last = await createImageBitmap(last, options);
      if (this.levels[0] !== bitmap) return last.close();
      this.levels.push(last);
    }
    this.redraw("photo");
  }

  // ---- the view

  resize() {
    const { clientWidth, clientHeight } = this.viewport;
    this.ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.photo, this.over]) {
      canvas.width = Math.max(1, Math.round(clientWidth * this.ratio));
      canvas.height = Math.max(1, Math.round(clientHeight * this.ratio));
    }
    if (this.fitted) this.fit();
    this.draw(); // at once: a canvas that was resized is empty
  }

  fit() {
    if (!this.hasPicture) return;
    const { clientWidth: w, clientHeight: h } = this.viewport;
    const inset = Math.min(MARGIN, w / 20);
    this.scale = clamp(Math.min((w - 2 * inset) / this.width, (h - 2 * inset) / this.height, 8));
    this.x = (w - this.width * this.scale) / 2;
    this.y = (h - this.height * this.scale) / 2;
    this.fitted = true;
    this.moved();
  }

  /** Zoom so that the point (x, y) of the viewport stays where it is; without one, its middle. */
  zoomTo(scale, x = this.viewport.clientWidth / 2, y = this.viewport.clientHeight / 2) {
    if (!this.hasPicture) return;
    const next = clamp(scale), by = next / this.scale;
    this.x = x - (x - this.x) * by;
    this.y = y - (y - this.y) * by;
    this.scale = next;
    this.fitted = false;
    this.keepInSight();
    this.moved();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.keepInSight();
    this.moved();
  }

  keepInSight() {
    const { clientWidth: w, clientHeight: h } = this.viewport, edge = 48;
    this.x = Math.min(Math.max(this.x, edge - this.width * this.scale), w - edge);
    this.y = Math.min(Math.max(this.y, edge - this.height * this.scale), h - edge);
  }

  moved() {
    this.redraw();
    this.dispatchEvent(new Event("view"));
  }

  toPicture(x, y) {
    return { x: (x - this.x) / this.scale, y: (y - this.y) / this.scale };
  }

  // ---- what is shown

  show({ patch = null, forming = null, comparing = false, split = null }) {
    Object.assign(this, { patch, forming, comparing, split });
    this.over.hidden = patch !== null || forming !== null;
    this.redraw();
  }

  redraw(what) {
    if (!what || what === "photo") this.dirty.photo = true;
    if (!what || what === "mask") this.dirty.mask = true;
    this.frame ??= requestAnimationFrame(() => this.draw(true));
  }

  draw(asked = false) {
    if (!asked) this.dirty = { photo: true, mask: true };
    this.frame = undefined;
    const { photo, mask } = this.dirty;
    this.dirty = { photo: false, mask: false };
    if (!this.hasPicture) return;
    if (photo) this.drawPhoto();
    if (mask) this.drawMask(null);
  }

  drawPhoto() {
    const { context } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.photo.width, this.photo.height);
    this.place(context);
    this.drawInput(context);
    if (this.patch && !this.comparing) {
      context.save();
      if (this.split !== null) {
        context.beginPath();
        context.rect(this.width * this.split, 0, this.width, this.height);
        context.clip();
      }
      this.drawWindow(context, this.patch);
      context.restore();
    } else if (this.forming) {
      this.drawForming(context);
    }
  }

  place(context) {
    const k = this.scale * this.ratio;
    context.setTransform(k, 0, 0, k, this.x * this.ratio, this.y * this.ratio);
    context.imageSmoothingEnabled = k < 3;
    context.imageSmoothingQuality = "medium";
  }

  drawInput(context) {
    const k = this.scale * this.ratio;
    let level = 0;
    while (level + 1 < this.levels.length && this.levels[level + 1].width >= this.width * k) level++;
    context.drawImage(this.levels[level], 0, 0, this.width, this.height);
  }

  /** A picture of a window's part that lies in the photograph. The photograph there shows nothing through. */
  drawWindow(context, { bitmap, window: { left, top, width, height } }) {
    const x0 = Math.max(0, left), y0 = Math.max(0, top);
    const x1 = Math.min(this.width, left + width), y1 = Math.min(this.height, top + height);
    context.clearRect(x0, y0, x1 - x0, y1 - y0);
    context.drawImage(bitmap, x0, y0, x1 - x0, y1 - y0);
  }

  /** An estimate of a window, inside the mask alone. */
  drawForming(context) {
    const { bitmap, window: frame } = this.forming;
    const scratch = (this.scratch ??= document.createElement("canvas"));
    scratch.width = this.photo.width;
    scratch.height = this.photo.height;
    const inner = scratch.getContext("2d");
    this.place(inner);
    this.drawTiles(inner, { x0: 0, y0: 0, x1: this.width, y1: this.height });
    inner.globalCompositeOperation = "source-in";
    inner.imageSmoothingEnabled = true;
    inner.imageSmoothingQuality = "high";
    inner.drawImage(bitmap, frame.left, frame.top, frame.width, frame.height);
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(scratch, 0, 0);
    context.restore();
  }

  // ---- the mask's layer

  maskChanged(rect) {
    for (let ty = Math.floor(rect.y0 / TILE); ty * TILE < rect.y1; ty++) {
      for (let tx = Math.floor(rect.x0 / TILE); tx * TILE < rect.x1; tx++) {
        this.paintTile(tx, ty, {
          x0: Math.max(rect.x0, tx * TILE),
          y0: Math.max(rect.y0, ty * TILE),
          x1: Math.min(rect.x1, tx * TILE + TILE, this.width),
          y1: Math.min(rect.y1, ty * TILE + TILE, this.height),
        });
      }
    }
    // With nothing else to draw, only what has changed is drawn, and now: a stroke follows the pointer.
    if (this.dirty.mask || !this.mask) this.redraw("mask");
    else this.drawMask(rect);
  }

  paintTile(tx, ty, part) {
    const key = ty * 65536 + tx, { data, width } = this.mask;
    const w = part.x1 - part.x0, h = part.y1 - part.y0;
    if (w <= 0 || h <= 0) return;
    let tile = this.tiles.get(key);
    if (!tile) {
      tile = document.createElement("canvas");
      tile.width = tile.height = TILE;
      this.tiles.set(key, tile);
    }
    const pixels = new ImageData(w, h), shades = new Uint32Array(pixels.data.buffer);
    for (let y = 0, to = 0; y < h; y++) {
      let from = (part.y0 + y) * width + part.x0;
      for (let x = 0; x < w; x++) shades[to++] = SHADES[data[from++]];
    }
    tile.getContext("2d").putImageData(pixels, part.x0 - tx * TILE, part.y0 - ty * TILE);
  }

  drawMask(rect) {
    const context = this.overContext, k = this.scale * this.ratio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    const shown = this.toPicture(0, 0), end = this.toPicture(this.viewport.clientWidth, this.viewport.clientHeight);
    const sight = { x0: shown.x, y0: shown.y, x1: end.x, y1: end.y };
    context.save();
    if (rect) {
      // A little more, so that what is resampled at the border is drawn anew.
      const pad = 2 / k + 2;
      const x0 = Math.floor((rect.x0 - pad) * k + this.x * this.ratio);
      const y0 = Math.floor((rect.y0 - pad) * k + this.y * this.ratio);
      const x1 = Math.ceil((rect.x1 + pad) * k + this.x * this.ratio);
      const y1 = Math.ceil((rect.y1 + pad) * k + this.y * this.ratio);
      context.beginPath();
      context.rect(x0, y0, x1 - x0, y1 - y0);
      context.clip();
      context.clearRect(x0, y0, x1 - x0, y1 - y0);
      sight.x0 = Math.max(sight.x0, rect.x0 - pad - 1);
      sight.y0 = Math.max(sight.y0, rect.y0 - pad - 1);
      sight.x1 = Math.min(sight.x1, rect.x1 + pad + 1);
      sight.y1 = Math.min(sight.y1, rect.y1 + pad + 1);
    } else {
      context.clearRect(0, 0, this.over.width, this.over.height);
    }
    this.place(context);
    this.drawTiles(context, sight);
    context.restore();
  }

  drawTiles(context, sight) {
    for (const [key, tile] of this.tiles) {
      const tx = key % 65536, ty = Math.floor(key / 65536);
      const rect = clip(this, tx * TILE, ty * TILE, tx * TILE + TILE, ty * TILE + TILE);
      if (!rect || rect.x1 < sight.x0 || rect.x0 > sight.x1 || rect.y1 < sight.y0 || rect.y0 > sight.y1) continue;
      const w = rect.x1 - rect.x0, h = rect.y1 - rect.y0;
      context.drawImage(tile, 0, 0, w, h, rect.x0, rect.y0, w, h);
    }
  }
}

function clamp(scale) {
  return Math.min(LARGEST, Math.max(SMALLEST, scale));
}
