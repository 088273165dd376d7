// The input: the photograph that is painted on, and its mask, which the browser keeps.

import * as api from "./api.js";
import { $, download, toast } from "./dom.js";
import { sentence } from "./form.js";
import { keepMask, keptMask } from "./local.js";
import { Mask } from "./mask.js";
import * as png from "./png.js";
import * as raster from "./raster.js";

const GROW = 4; // screen pixels of a step of growing and shrinking, and at least one of the photograph
const KEEP_AFTER = 250; // milliseconds without an edit

/**
 * `image` is the server's {id, width, height, name}, `mask` a Mask of its size; both are null on an empty page. Emits
 * "change" when there is another input, "edit" when its mask was edited, and "wait" when one is waited for, or no more.
 */
export class Input extends EventTarget {
  constructor(stage) {
    super();
    Object.assign(this, { stage, image: null, mask: null });
    this.sent = { version: -1, id: null }; // the mask as the server has it
    this.asked = 0; // the number of the latest input that was asked for: what comes late is left
    this.waiting = false; // for one: until it is there nothing is painted
    this.keeping = 0;
    addEventListener("pagehide", () => this.keepNow());
  }

  /** Send a file to the studio and show it. The session that begins with it; null where another was opened meanwhile. */
  async openFile(file) {
    return this.whileWaiting(async () => {
      const local = file.type.startsWith("image/") ? await createImageBitmap(file).catch(() => null) : null;
      const picture = await api.sendImage(file);
      const own = local && local.width === picture.width && local.height === picture.height && picture.plain;
      const bitmap = own ? local : await api.bitmap(api.viewUrl(picture.id));
      return { picture, bitmap, session: await api.beginSession(picture.id) };
    });
  }

  /** Make a picture that the server has the input. False where another was opened meanwhile. */
  async openKept(id) {
    const opened = await this.whileWaiting(async () => {
      const picture = await api.picture(id);
      return { picture, bitmap: await api.bitmap(picture.plain ? api.imageUrl(id) : api.viewUrl(id)), keepView: true };
    });
    return opened !== null;
  }

  async whileWaiting(fetch) {
    const turn = ++this.asked;
    this.wait(true);
    try {
      const found = await fetch();
      const kept = await keptMask(found.picture.id);
      if (turn !== this.asked) return null;
      this.show(found, kept);
      return found;
    } catch (error) {
      if (turn !== this.asked) return null; // nobody waits for it
      throw error;
    } finally {
      if (turn === this.asked) this.wait(false);
    }
  }

  wait(on) {
    this.waiting = on;
    this.dispatchEvent(new Event("wait"));
  }

  show({ picture, bitmap, keepView = false }, kept) {
    this.keepNow(); // the mask of the input before
    const mask = new Mask(bitmap.width, bitmap.height);
    Object.assign(this, { image: picture, mask, sent: { version: -1, id: null } });
    document.body.classList.remove("empty");
    $("drop").hidden = true;
    this.stage.open(bitmap, mask, keepView);
    if (kept) mask.unpack(kept);
    mask.addEventListener("edit", () => mask === this.mask && this.edited());
    const name = picture.name || "photograph";
    $("viewport").setAttribute("aria-label", `Canvas, ${name}, ${picture.width} by ${picture.height} pixels. Arrow keys move the cursor, with Shift they paint, Enter dabs.`);
    this.dispatchEvent(new Event("change"));
    this.showUndo();
  }

  // ---- the mask

  edited() {
    this.showUndo();
    clearTimeout(this.keeping);
    this.keeping = setTimeout(() => this.keepNow(), KEEP_AFTER);
    this.dispatchEvent(new Event("edit"));
  }

  keepNow() {
    if (!this.keeping) return;
    clearTimeout(this.keeping);
    this.keeping = 0;
    keepMask(this.image.id, this.mask.packed());
  }

  showUndo() {
    document.querySelector('[data-do="undo"]').disabled = !this.mask?.done.length;
    document.querySelector('[data-do="redo"]').disabled = !this.mask?.undone.length;
  }

  /** What the buttons beside the brush do, by their names. */
  act(name) {
    const { mask } = this;
    if (name === "undo") mask.undo();
    else if (name === "redo") mask.redo();
    else if (name === "clear") mask.edit(raster.bounds(mask), (it) => it.data.fill(0));
    else if (name === "grow") this.growBy(1);
    else if (name === "shrink") this.growBy(-1);
    else if (name === "invert") {
      mask.edit(mask.whole, ({ data }) => {
        for (let i = 0; i < data.length; i++) data[i] = 255 - data[i];
      });
    } else if (name === "fill" && !mask.edit(raster.bounds(mask), raster.fillInside)) {
      toast("Draw a closed outline first: what it encloses is filled.");
    }
  }

  growBy(sign) {
    const { mask } = this, box = raster.bounds(mask), pixels = Math.max(1, Math.round(GROW / this.stage.scale));
    if (!box) return;
    const reach = raster.clip(mask, box.x0 - pixels, box.y0 - pixels, box.x1 + pixels, box.y1 + pixels);
    mask.edit(reach, (it) => raster.grow(it, sign * pixels));
  }

  async importMask(file) {
    const { mask } = this;
    if (!mask) return toast("Open a photograph first: the mask is brought to its size.", true);
    try {
      const levels = await png.decode(file, mask.width, mask.height);
      mask.edit(mask.whole, ({ data }) => data.set(levels));
    } catch {
      toast("That file is no picture that can be read as a mask: give a PNG, white where it is to be painted.", true);
    }
  }

  async exportMask() {
    if (!this.mask) return toast("There is no mask yet.", true);
    download(await png.encode(this.mask), `${(this.image.name || "photograph").replace(/\.[^.]*$/, "")}_mask.png`);
  }

  /** The id of the mask as it is now, which is sent where the server has not got it. */
  async sentMask() {
    const { mask } = this, { version } = mask;
    if (this.sent.version === version) return this.sent.id;
    const { id } = await api.sendMask(await png.encode(mask));
    if (mask === this.mask) this.sent = { version, id };
    return id;
  }

  /** Open a photograph, and say what is wrong with it in a toast. */
  async take(file) {
    try {
      return await this.openFile(file);
    } catch (error) {
      toast(sentence(error.message), true);
      return null;
    }
  }
}
