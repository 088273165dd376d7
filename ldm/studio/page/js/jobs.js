// The runs: what the server says of them, the list of them, and the predictions of the one that is looked at.

import * as api from "./api.js";
import { $, el, icon, seconds, toast } from "./dom.js";
import { sentence } from "./form.js";
import { remember } from "./local.js";

const STAGES = {
  loading: "Loading the model",
  preparing: "Preparing",
  painting: "Painting",
  ranking: "Ranking",
  saving: "Saving",
  restoring: "Restoring the background",
};

/** Emits "changed" with a job, "forming" with the job whose estimates have come, and "pick" with {job, index}. */
export class Jobs extends EventTarget {
  constructor() {
    super();
    this.all = new Map();
    this.estimates = new Map(); // job -> bitmaps by the number of the prediction
    this.current = null; // the id of the edit whose predictions are shown
    this.picked = null;
    this.known = new Promise((resolve) => (this.knows = resolve)); // kept once the server has told what there is
    $("cancel-all").addEventListener("click", () => this.attempt(api.cancelAll()));
    $("cancel-current").addEventListener("click", () => this.active && this.attempt(api.cancel(this.active.id)));
  }

  async attempt(promise) {
    try {
      await promise;
    } catch (error) {
      toast(sentence(error.message), true);
    }
  }

  // ---- news

  hello(jobs) {
    this.all = new Map(jobs.map((job) => [job.id, job]));
    if (this.current && !this.all.has(this.current)) this.current = null;
    this.showAll();
    for (const job of jobs) this.dispatchEvent(new CustomEvent("changed", { detail: job }));
    this.knows();
  }

  update(job) {
    const before = this.all.get(job.id);
    this.all.set(job.id, job);
    if (ended(job)) this.estimates.delete(job.id);
    this.showAll();
    this.dispatchEvent(new CustomEvent("changed", { detail: job }));
    if (job.state === "failed" && before && before.state !== "failed") toast(sentence(job.error ?? "It failed"), true);
  }

  progress({ job: id, ...progress }) {
    const job = this.all.get(id);
    if (!job) return;
    job.progress = progress;
    if (job.state === "queued") job.state = "running";
    this.showProgress();
    this.showHow(job);
  }

  async preview({ job: id, index, image }) {
    const known = this.all.get(id);
    if (!known || ended(known)) return;
    const bitmap = await createImageBitmap(blobOf(image));
    if (ended(this.all.get(id) ?? { state: "done" })) return;
    const held = this.estimates.get(id) ?? [];
    held[index]?.close();
    held[index] = bitmap;
    this.estimates.set(id, held);
    if (id === this.current) this.showEstimates();
    this.dispatchEvent(new CustomEvent("forming", { detail: id }));
  }

  places(places) {
    for (const [id, ahead] of Object.entries(places)) {
      const job = this.all.get(id);
      if (job) {
        job.ahead = ahead;
        this.showHow(job);
      }
    }
  }

  gone(ids) {
    for (const id of ids) this.all.delete(id);
    if (ids.includes(this.current)) this.current = null;
    this.showAll();
  }

  // ---- what is looked at

  get job() {
    return this.all.get(this.current);
  }

  /** The job at work on what is looked at: the edit itself, or a restoration of one of its predictions. */
  get active() {
    const { job } = this;
    if (!job) return null;
    if (!ended(job)) return job;
    return [...this.all.values()].find((one) => one.of === job.id && !ended(one)) ?? null;
  }

  look(id) {
    this.current = id;
    this.picked = null;
    remember("job", id);
    this.showAll();
  }

  pick(index, restored = null) {
    this.picked = index === null ? null : { index, restored };
    this.showPicked();
    if (index !== null) this.dispatchEvent(new CustomEvent("pick", { detail: { job: this.job, index, restored } }));
  }

  /** The ways in which a prediction has been restored. */
  restorations(job, index) {
    const done = [...this.all.values()].filter((one) => one.of === job.id && one.index === index && one.state === "done");
    return done.map((one) => ({ kind: kindOf(one.options), job: one.id }));
  }

  // ---- showing it

  showAll() {
    this.showList();
    this.showCurrent();
  }

  showCurrent() {
    const { job } = this;
    $("current").hidden = !job;
    if (!job) return;
    $("current-about").textContent = job.options.prompt || "what fits";
    const grid = $("grid"), count = job.results.length || (ended(job) ? 0 : (job.options.n_samples ?? 4) * (job.options.n_iter ?? 1));
    const key = `${job.id} ${job.results.length} ${count} ${this.restored(job)}`;
    if (grid.dataset.key !== key) {
      grid.dataset.key = key;
      const items = [];
      for (let index = 0; index < Math.min(count, 256); index++) items.push(el("li", {}, this.shot(job, index)));
      grid.replaceChildren(...items);
      this.showEstimates();
    }
    this.showPicked();
    this.showProgress();
    const notes = job.notes.map((note) => el("li", {}, sentence(note)));
    const failed = [job, ...[...this.all.values()].filter((one) => one.of === job.id)].filter((one) => one.error);
    notes.unshift(...failed.slice(-1).map((one) => el("li", { class: "bad" }, sentence(one.error))));
    if (job.state === "cancelled") notes.unshift(el("li", {}, "It was cancelled."));
    $("notes").replaceChildren(...notes);
  }

  restored(job) {
    return [...this.all.values()].filter((one) => one.of === job.id && one.state === "done").length;
  }

  shot(job, index) {
    const result = job.results[index];
    if (!result) {
      const button = el("button", { type: "button", class: "shot forming", "data-index": index, "aria-label": `Prediction ${index + 1}, forming` }, el("span", { class: "frame" }, el("canvas", { width: 1, height: 1 })), el("span", { class: "cap" }, el("span", {}, "…")));
      button.addEventListener("click", () => this.pick(index));
      return button;
    }
    const score = result.distance === null ? "" : result.distance.toFixed(3);
    const restored = this.restorations(job, index).at(-1);
    const image = el("img", { src: api.patchUrl(job.id, index), alt: "", loading: "lazy", decoding: "async" });
    const button = el(
      "button",
      { type: "button", class: "shot", "data-index": index, "aria-label": `Prediction ${index + 1}, seed ${result.seed}${score ? `, CLIP distance ${score}` : ""}${index === 0 && score ? ", the best" : ""}`, title: "CLIP distance: lower is better" },
      el("span", { class: "frame" }, image),
      restored ? el("span", { class: "mark" }, "restored") : null,
      el("span", { class: "cap" }, el("span", {}, el("b", {}, String(index + 1)), ` · seed ${result.seed}`), el("span", {}, score)),
    );
    button.addEventListener("click", () => this.pick(index, restored?.kind ?? null));
    return button;
  }

  showEstimates() {
    const held = this.estimates.get(this.current) ?? [];
    for (const button of $("grid").querySelectorAll(".forming")) {
      const bitmap = held[Number(button.dataset.index)];
      if (!bitmap) continue;
      const canvas = button.querySelector("canvas");
      if (canvas.width !== bitmap.width) Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
    }
  }

  showPicked() {
    for (const button of $("grid").querySelectorAll(".shot")) {
      button.setAttribute("aria-current", String(this.picked?.index === Number(button.dataset.index)));
    }
  }

  showProgress() {
    const { active } = this;
    $("progress").hidden = !active;
    if (!active) return;
    const { progress } = active;
    const share = progress?.total ? progress.step / progress.total : 0;
    $("progress-fill").style.width = `${(progress?.stage === "saving" || progress?.stage === "ranking" ? 1 : share) * 100}%`;
    $("progress-text").textContent = how(active);
  }

  showList() {
    const jobs = [...this.all.values()].filter((job) => job.kind === "edit" || !ended(job)).reverse();
    $("jobs-section").hidden = !jobs.length;
    $("cancel-all").hidden = !jobs.some((job) => !ended(job));
    $("jobs").replaceChildren(...jobs.slice(0, 100).map((job) => this.line(job)));
  }

  line(job) {
    const picture = job.results.length ? el("img", { src: api.patchUrl(job.id, 0), alt: "", loading: "lazy" }) : icon(job.kind === "restore" ? "restore" : "brush");
    const title = job.kind === "restore" ? `Restore: ${this.all.get(job.of)?.options.prompt || "a prediction"}` : job.options.prompt || "what fits";
    const button = el("button", { type: "button", class: "job", "aria-current": String(job.id === this.current), "data-job": job.id }, el("span", { class: "pic" }, picture), el("span", { class: "what", dir: "auto" }, title), el("span", { class: `how${job.state === "failed" ? " bad" : ""}` }, how(job)));
    button.addEventListener("click", () => this.dispatchEvent(new CustomEvent("open", { detail: job.of ?? job.id })));
    const end = ended(job) ? null : el("button", { type: "button", class: "icon", "aria-label": `Cancel ${title}`, title: "Cancel" }, icon("close"));
    end?.addEventListener("click", () => this.attempt(api.cancel(job.id)));
    return el("li", {}, button, end);
  }

  showHow(job) {
    const line = document.querySelector(`[data-job="${job.id}"] .how`);
    if (line) line.textContent = how(job);
  }
}

export const ended = (job) => job.state === "done" || job.state === "failed" || job.state === "cancelled";

/** The name of the way in which a restoration restores, as the server has it. */
export function kindOf({ reconstruction_type: type = "optimization", optimization_mode: mode }) {
  return type === "optimization" && mode === "latents" ? "optimization_latents" : type;
}

function how(job) {
  if (job.state === "queued") return job.ahead ? `${job.ahead} before it` : "Next";
  if (job.state === "running") {
    const { stage = "preparing", step = 0, total = 0, seconds_left: left = null } = job.progress ?? {};
    const steps = total && stage !== "saving" ? ` ${step} of ${total}` : "";
    return `${STAGES[stage]}${steps}${left === null || left === undefined || !steps ? "" : ` · ${seconds(left)} left`}`;
  }
  if (job.state === "failed") return sentence(job.error ?? "failed");
  if (job.state === "cancelled") return "Cancelled";
  const count = job.results.length;
  return `${count} prediction${count === 1 ? "" : "s"} · ${seconds(job.ended - job.started)}`;
}

function blobOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/webp" });
}
