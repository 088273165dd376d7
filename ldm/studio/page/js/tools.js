// Painting: what a mouse, a pen, fingers and the keyboard do to the mask and to the view.

import * as raster from "./raster.js";

export const TOOLS = ["brush", "eraser", "lasso", "rectangle"];

/** Emits "tool" when tool, size or softness change, and "begin" when the mask is about to be painted on by hand. */
export class Tools extends EventTarget {
  constructor(stage, cursor, outline) {
    super();
    Object.assign(this, { stage, cursor, outline });
    this.mask = null;
    this.tool = "brush";
    this.size = 60; // pixels of the photograph
    this.hardness = 1;
    this.wheel = "size";
    this.painting = true; // false while a prediction is shown: then the pointer pans
    this.pointers = new Map();
    this.action = null;
    this.last = null; // where the last stroke ended: shift draws a straight line from there
    this.space = false;
    this.key = null; // the keyboard's own cursor, in pixels of the photograph
    const { viewport } = stage;
    viewport.addEventListener("pointerdown", (event) => this.down(event));
    viewport.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      viewport.addEventListener(name, (event) => this.up(event));
    }
    viewport.addEventListener("pointerleave", () => this.showCursor(null));
    viewport.addEventListener("wheel", (event) => this.wheeled(event), { passive: false });
    viewport.addEventListener("contextmenu", (event) => event.preventDefault());
    viewport.addEventListener("blur", () => this.showKey(false));
    stage.addEventListener("view", () => {
      this.showCursor(this.at);
      if (this.key) this.showKey(true);
    });
  }

  set(values) {
    Object.assign(this, values);
    this.size = Math.round(Math.min(Math.max(this.size, 1), 4000));
    this.showCursor(this.at);
    this.dispatchEvent(new Event("tool"));
  }

  /** A little larger or smaller, by at least a pixel. */
  resize(steps) {
    const by = Math.max(1, Math.round(this.size * 0.12));
    this.set({ size: this.size + steps * by });
  }

  // ---- pointers

  place(event) {
    const box = this.stage.viewport.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  point(event) {
    const at = this.place(event), { x, y } = this.stage.toPicture(at.x, at.y);
    const pressed = event.pointerType === "pen" && event.pressure > 0 ? 0.15 + 0.85 * event.pressure : 1;
    return { x, y, size: Math.max(1, this.size * pressed) };
  }

  down(event) {
    if (!this.stage.hasPicture) return;
    const { viewport } = this.stage;
    viewport.focus({ preventScroll: true });
    this.showKey(false);
    try {
      viewport.setPointerCapture(event.pointerId);
    } catch {
      // a pointer that a test made up
    }
    this.pointers.set(event.pointerId, this.place(event));
    if (event.pointerType === "touch" && this.pointers.size === 2) {
      this.abandon(); // the first finger did not mean to paint
      this.action = { kind: "pinch" };
      return;
    }
    if (this.action || this.pointers.size > 1) return;
    const pans = event.button === 1 || this.space || (!this.painting && event.button === 0);
    if (pans) {
      this.action = { kind: "pan", id: event.pointerId };
      viewport.classList.add("panning");
    } else if (this.painting && (event.button === 0 || event.button === 2 || event.button === 5)) {
      event.preventDefault();
      this.begin(this.point(event), event.button === 2 || event.button === 5, event.shiftKey, event.pointerId);
    }
  }

  move(event) {
    const at = this.place(event), before = this.pointers.get(event.pointerId);
    this.at = at;
    if (event.pointerType !== "touch") this.showCursor(at);
    if (!before) return;
    if (this.action?.kind === "pinch") {
      this.pinch(event.pointerId, before, at);
    } else if (this.action?.id === event.pointerId) {
      if (this.action.kind === "pan") this.stage.pan(at.x - before.x, at.y - before.y);
      else {
        const events = event.getCoalescedEvents?.() ?? [];
        this.go((events.length ? events : [event]).map((one) => this.point(one)));
      }
    }
    this.pointers.set(event.pointerId, at);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.action?.kind === "pinch") {
      if (!this.pointers.size) this.action = null;
      return;
    }
    if (this.action?.id !== event.pointerId) return;
    this.stage.viewport.classList.remove("panning");
    if (this.action.kind === "stroke" || this.action.kind === "shape") {
      if (event.type === "pointercancel") this.abandon();
      else this.end();
    }
    this.action = null;
  }

  pinch(id, before, at) {
    const other = [...this.pointers].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const from = Math.hypot(before.x - other.x, before.y - other.y), to = Math.hypot(at.x - other.x, at.y - other.y);
    this.stage.pan((at.x - before.x) / 2, (at.y - before.y) / 2);
    if (from > 0) this.stage.zoomTo((this.stage.scale * to) / from, (at.x + other.x) / 2, (at.y + other.y) / 2);
  }

  wheeled(event) {
    event.preventDefault();
    if (!this.stage.hasPicture) return;
    const zooms = event.ctrlKey || event.metaKey || this.space || this.wheel === "zoom" || !this.painting;
    const delta = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
    if (zooms) {
      const at = this.place(event);
      this.stage.zoomTo(this.stage.scale * Math.exp(-delta * (event.ctrlKey && Math.abs(delta) < 30 ? 0.01 : 0.0015)), at.x, at.y);
    } else if (delta) this.resize(delta < 0 ? 1 : -1);
  }

  // ---- strokes and shapes

  begin(point, erases, straight, id) {
    this.dispatchEvent(new Event("begin"));
    const erase = erases !== (this.tool === "eraser"); // the right button turns an eraser into a brush
    if (this.tool === "lasso" || this.tool === "rectangle") {
      this.action = { kind: "shape", id, erase: erases, points: [point] };
      return;
    }
    this.action = { kind: "stroke", id, erase, at: point };
    this.mask.begin();
    if (straight && this.last) {
      this.action.at = { ...this.last, size: point.size };
      this.go([point]);
    } else this.dab(point);
  }

  go(points) {
    const { action } = this;
    if (action.kind === "shape") {
      if (this.tool === "rectangle") action.points = [action.points[0], points.at(-1)];
      else action.points.push(...points);
      this.showOutline();
      return;
    }
    let rect = null;
    for (const point of points) {
      for (const one of raster.dabsBetween(action.at, point)) {
        const where = raster.dabRect(this.mask, one.x, one.y, one.size);
        if (!where) continue;
        this.mask.touch(where);
        raster.dab(this.mask, one.x, one.y, one.size, this.hardness, action.erase);
        rect = raster.union(rect, where);
      }
      action.at = point;
    }
    this.mask.changed(rect);
  }

  dab(point) {
    const where = raster.dabRect(this.mask, point.x, point.y, point.size);
    if (!where) return;
    this.mask.touch(where);
    raster.dab(this.mask, point.x, point.y, point.size, this.hardness, this.action.erase);
    this.mask.changed(where);
  }

  end() {
    const { action } = this;
    if (action.kind === "stroke") {
      this.last = action.at;
      this.mask.commit();
    } else {
      const level = action.erase ? 0 : 255, [first, last] = [action.points[0], action.points.at(-1)];
      let points = action.points;
      if (this.tool === "rectangle") {
        const x0 = Math.floor(Math.min(first.x, last.x)), x1 = Math.ceil(Math.max(first.x, last.x));
        const y0 = Math.floor(Math.min(first.y, last.y)), y1 = Math.ceil(Math.max(first.y, last.y));
        points = [{ x: x0, y: y0 }, { x: x1, y: y0 }, { x: x1, y: y1 }, { x: x0, y: y1 }];
      }
      if (points.length > 2) {
        const rect = raster.clip(this.mask, ...raster.extent(points));
        this.mask.edit(rect, (mask) => raster.polygon(mask, points, level));
      }
      this.outline.setAttribute("d", "");
    }
  }

  abandon() {
    if (this.action?.kind === "stroke") this.mask.abandon();
    this.outline.setAttribute("d", "");
    this.action = null;
  }

  showOutline() {
    const { stage } = this, { points } = this.action;
    const shown = ({ x, y }) => `${(x * stage.scale + stage.x).toFixed(1)} ${(y * stage.scale + stage.y).toFixed(1)}`;
    const [a, b] = [points[0], points.at(-1)];
    const corners = this.tool === "rectangle" ? [a, { x: b.x, y: a.y }, b, { x: a.x, y: b.y }] : points;
    this.outline.setAttribute("d", `M${corners.map(shown).join("L")}Z`);
  }

  // ---- the keyboard

  /** Arrows move a cursor, with shift they paint; Enter dabs, or sets the corners of a rectangle. True if it was used. */
  pressed(event) {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const arrow = arrows[event.key];
    if (!this.stage.hasPicture || event.metaKey) return false;
    if (arrow && event.ctrlKey) {
      this.stage.pan(-arrow[0] * 60, -arrow[1] * 60);
      return true;
    }
    if (!this.painting || event.ctrlKey) return false;
    if (!arrow && event.key !== "Enter") return false;
    const { viewport } = this.stage;
    this.key ??= this.stage.toPicture(viewport.clientWidth / 2, viewport.clientHeight / 2);
    const shapes = this.tool === "lasso" || this.tool === "rectangle";
    if (arrow) {
      const step = event.altKey ? 1 : Math.max(1, shapes ? 16 / this.stage.scale : this.size / 4);
      const from = { ...this.key, size: this.size };
      this.key = {
        x: Math.min(Math.max(this.key.x + arrow[0] * step, 0), this.mask.width - 0.01),
        y: Math.min(Math.max(this.key.y + arrow[1] * step, 0), this.mask.height - 0.01),
      };
      if (this.corner) {
        this.action = { kind: "shape", erase: false, points: this.corner };
        this.go([this.key]);
      } else if (event.shiftKey && !shapes) this.strokeTo(from);
    } else if (!shapes) this.strokeTo({ ...this.key, size: this.size });
    else if (this.tool === "lasso") return true; // a lasso wants a hand
    else if (!this.corner) this.corner = [{ ...this.key }];
    else {
      this.action = { kind: "shape", erase: false, points: [this.corner[0], this.key] };
      this.end();
      this.corner = this.action = null;
    }
    this.showKey(true);
    return true;
  }

  strokeTo(from) {
    this.begin(from, false, false, -1);
    this.go([{ ...this.key, size: this.size }]);
    this.end();
    this.action = null;
  }

  // ---- cursors

  showKey(shown) {
    if (!shown) {
      this.key = this.corner = null;
      if (!this.action) this.outline.setAttribute("d", "");
      this.showCursor(null);
      return;
    }
    const { stage } = this;
    this.showCursor({ x: this.key.x * stage.scale + stage.x, y: this.key.y * stage.scale + stage.y });
  }

  showCursor(at) {
    const { cursor, stage } = this;
    this.at = at;
    const brush = this.tool === "brush" || this.tool === "eraser";
    const shown = at && stage.hasPicture && this.painting && !this.space && (brush || this.key);
    cursor.hidden = !shown;
    stage.viewport.classList.toggle("with-brush", Boolean(shown && brush));
    if (!shown) return;
    const side = brush ? Math.max(3, this.size * stage.scale) : 9;
    cursor.style.width = cursor.style.height = `${side}px`;
    cursor.style.transform = `translate(${at.x - side / 2}px, ${at.y - side / 2}px)`;
    cursor.classList.toggle("erases", this.tool === "eraser");
    cursor.classList.toggle("crossed", Boolean(this.key) || side < 6);
  }
}
