// The prediction on the stage: its picture, the comparison with the input, and what is known of it.

import * as api from "./api.js";
import { $, el, toast } from "./dom.js";
import { sentence } from "./form.js";
import { ended } from "./jobs.js";

/** `shown` is {job, index, restored, patch}, or null while the mask is worked on. */
export class Viewer {
  constructor(stage, tools, jobs, input) {
    Object.assign(this, { stage, tools, jobs, input, shown: null, comparing: false, split: null });
    this.versions = new Map(); // of the mask, by the job that was run with it
    stage.addEventListener("view", () => this.placeSplit());
    tools.addEventListener("begin", () => {
      if (jobs.job) this.versions.set(jobs.job.id, -1);
      this.draw();
    });
    input.addEventListener("wait", () => this.draw());
    input.addEventListener("edit", () => jobs.active && this.draw());
    $("slide").addEventListener("click", () => this.slide());
    $("back-to-mask").addEventListener("click", () => this.close());
    this.bindCompare($("compare"));
    this.bindSplit($("split"));
  }

  /** Back to the mask. */
  close() {
    Object.assign(this, { shown: null, comparing: false, split: null });
    if (this.jobs.picked) this.jobs.pick(null);
    this.draw();
  }

  async show({ job, index, restored }) {
    if (!job.results[index]) return; // still forming: its estimate is what is shown
    const { picked } = this.jobs;
    try {
      const bitmap = await api.bitmap(api.patchUrl(job.id, index, restored));
      const { job: now } = this.jobs; // as the run is now: it may have been saved meanwhile, or lost
      if (this.jobs.picked !== picked || !now?.results[index]) return;
      this.shown = { job: now, index, restored, patch: { bitmap, window: now.window } };
    } catch (error) {
      toast(sentence(error.message), true);
      return;
    }
    this.draw();
  }

  draw() {
    const { jobs, shown, comparing, split, input } = this, { job } = jobs, index = jobs.picked?.index ?? 0;
    const bitmap = !shown && job && !ended(job) && this.isUndisturbed(job) ? jobs.estimates.get(job.id)?.[index] : null;
    this.tools.painting = !shown && !input.waiting;
    $("viewport").classList.toggle("can-pan", Boolean(shown));
    $("brushbar").hidden = Boolean(shown);
    $("resultbar").hidden = !shown;
    $("split").hidden = split === null || !shown;
    const tag = input.waiting ? "Opening…" : !shown ? (bitmap ? "Forming" : null) : comparing ? "Input" : null;
    $("tag").hidden = !tag;
    $("tag").textContent = tag ?? "";
    this.stage.show({
      patch: shown?.patch ?? null,
      forming: bitmap && job.window ? { bitmap, window: job.window } : null,
      comparing,
      split: shown ? split : null,
    });
    this.placeSplit();
    if (shown) this.describe();
  }

  /** Whether a run's estimates may lie over the mask: until that is painted on for the next run. */
  isUndisturbed(job) {
    const { mask, image } = this.input;
    if (!mask || job.image !== image.id) return false;
    if (!this.versions.has(job.id)) this.versions.set(job.id, mask.version);
    return this.versions.get(job.id) === mask.version;
  }

  describe() {
    const { job, index, restored } = this.shown, result = job.results[index], { measures } = result;
    const exact = measures.max_difference === 0;
    const parts = ["Prediction ", el("b", {}, `${index + 1} of ${job.results.length}`), ` · seed ${result.seed}`];
    if (result.distance !== null) parts.push(` · CLIP ${result.distance.toFixed(3)}`);
    if (restored) parts.push(" · background restored");
    const psnr = measures.band_psnr === "inf" ? "∞" : measures.band_psnr?.toFixed?.(1);
    const title = `The largest difference from the input outside the mask and its band of ${measures.feather} pixels. ${psnr ? `PSNR of the band ${psnr} dB. ` : ""}Seam ${measures.seam.toFixed(1)}, the input's own ${measures.source_seam.toFixed(1)}.`;
    const told = exact ? " · outside exact: 0 of 255" : ` · outside differs by up to ${measures.max_difference} of 255`;
    $("result-about").replaceChildren(...parts, el("span", { class: exact ? "exact" : "inexact", title }, told));
    for (const id of ["use", "restore"]) $(id).disabled = !job.saved;
    for (const id of ["download", "download-run"]) $(id).setAttribute("aria-disabled", String(!job.saved));
    $("download").href = api.resultUrl(job.id, index, restored);
    $("download-run").href = api.runZipUrl(job.id);
    $("slide").setAttribute("aria-pressed", String(this.split !== null));
  }

  /** The prediction so many further on. */
  step(by) {
    const { job, index } = this.shown, count = job.results.length, next = (index + by + count) % count;
    this.jobs.pick(next, this.jobs.restorations(job, next).at(-1)?.kind ?? null);
  }

  // ---- before and after

  compare(on) {
    if (!this.shown || this.comparing === on) return;
    this.comparing = on;
    this.draw();
  }

  slide() {
    if (!this.shown) return;
    if (this.split === null) {
      // Through the middle of what has changed.
      const { left, width } = this.shown.patch.window;
      this.splitAt((left + width / 2) / this.stage.width, 0.05);
    } else {
      this.split = null;
      this.draw();
    }
  }

  splitAt(share, margin = 0) {
    this.split = Math.min(1 - margin, Math.max(margin, share));
    this.draw();
  }

  placeSplit() {
    if (this.split === null) return;
    const x = this.stage.x + this.split * this.stage.width * this.stage.scale;
    $("split").style.transform = `translateX(${x}px)`;
    $("split").setAttribute("aria-valuenow", String(Math.round(this.split * 100)));
  }

  bindCompare(button) {
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      this.compare(true);
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture", "keyup"]) button.addEventListener(name, () => this.compare(false));
    button.addEventListener("keydown", (event) => (event.key === " " || event.key === "Enter") && this.compare(true));
    button.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  bindSplit(handle) {
    handle.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      handle.setPointerCapture(event.pointerId);
    });
    handle.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const { left } = $("viewport").getBoundingClientRect();
      this.splitAt((event.clientX - left - this.stage.x) / (this.stage.width * this.stage.scale));
    });
    handle.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      this.splitAt(this.split + by);
    });
  }
}
