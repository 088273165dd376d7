// The models: which there are, what the chosen one knows, and how the studio is that holds them.

import * as api from "./api.js";
import { $, el } from "./dom.js";

/** Shows the state in the bar and the model's words under the prompt. Emits "word" when one of these is chosen. */
export class Models extends EventTarget {
  constructor(form, marks) {
    super();
    Object.assign(this, { form, marks, all: [], health: null });
    form.addEventListener("model", () => this.showChosen());
  }

  async learn() {
    try {
      this.all = await api.models();
    } catch {
      return; // it comes with the next news
    }
    this.showHealth();
    this.showChosen();
  }

  // ---- how the studio is

  async setHealth(next) {
    const before = this.health, names = (health) => health.workers.map((worker) => worker.model).join();
    this.health = next;
    this.showHealth();
    if (!before || before.status !== next.status || names(before) !== names(next)) await this.learn();
  }

  /** The line is cut. A studio that was started again may ask for another token. */
  async lost() {
    this.health = null;
    this.showHealth("Connection lost, trying again…");
    const why = await api.refusal();
    if (why && !this.health) this.showHealth(why);
  }

  showHealth(trouble = "") {
    const { health } = this, box = $("status"), text = $("status-text");
    if (trouble) {
      box.dataset.state = "lost";
      text.textContent = trouble;
    }
    if (!health) return;
    const worker = health.workers.find((one) => one.state === "busy") ?? health.workers[0] ?? { state: health.status };
    const states = { loading: "loading the model…", restarting: "starting again…", failed: worker.error ?? "failed", ready: "ready", busy: "painting" };
    box.dataset.state = worker.state === "restarting" ? "loading" : worker.state;
    const name = worker.model || this.all.find((one) => one.default)?.name || "";
    text.textContent = `${name ? `${name} · ` : ""}${states[worker.state]}`;
  }

  // ---- what the chosen model knows, and its own defaults

  showChosen() {
    const model = this.all.find((one) => one.name === this.form.model) ?? this.all.find((one) => one.default);
    if (!model) return;
    this.marks.know(model.vocabulary, model.name);
    this.form.useDefaults(model.defaults);
    const kinds = Object.entries(model.knows);
    $("vocabulary").hidden = !kinds.length || !model.vocabulary;
    $("vocabulary-list").replaceChildren(
      ...kinds.flatMap(([kind, words]) => [el("h3", {}, kind), el("div", { class: "chips" }, ...words.map((word) => this.chip(word)))]),
    );
  }

  chip(word) {
    return el("button", { type: "button", onclick: () => this.dispatchEvent(new CustomEvent("word", { detail: word })) }, word);
  }
}
