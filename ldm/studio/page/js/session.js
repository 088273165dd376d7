// The session: the photograph, and what became of it step by step, as in figure 17 of the paper.

import * as api from "./api.js";
import { $, el, icon, toast } from "./dom.js";
import { sentence } from "./form.js";
import { recall, remember } from "./local.js";

/** Emits "go" with the step of the strip that was chosen. */
export class SessionStrip extends EventTarget {
  constructor() {
    super();
    this.session = null;
    this.at = null; // the id of the image that is the input now
    $("show-sessions").addEventListener("click", () => this.showEarlier());
  }

  static remembered() {
    return { session: recall("session", null), image: recall("image", null) };
  }

  use(session, image) {
    this.session = session;
    this.at = image;
    remember("session", session?.id);
    remember("image", image);
    this.show();
  }

  news(session) {
    if (session.id !== this.session?.id) return;
    this.session = session;
    this.show();
  }

  show() {
    const { session } = this;
    $("strip").hidden = !session || session.steps.length < 2;
    if (!session) return;
    const numbers = new Map(session.steps.map((step, number) => [step.image, number]));
    $("steps").replaceChildren(
      ...session.steps.map((step, number) => {
        const from = numbers.get(step.parent), name = number === 0 ? "The photograph" : step.prompt || "what fits";
        const button = el("button", { type: "button", class: "step", title: name, "aria-label": `Step ${number}: ${name}`, "aria-current": String(step.image === this.at) }, el("img", { src: thumb(step), alt: "" }));
        button.addEventListener("click", () => this.dispatchEvent(new CustomEvent("go", { detail: step })));
        const get = el("a", { class: "get", href: api.imageUrl(step.image), download: "", title: "Download this step", "aria-label": `Download step ${number}` }, icon("import"));
        return el("li", { "data-from": number > 0 && from !== number - 1 ? String(from) : null }, button, get);
      }),
    );
    $("download-session").href = api.sessionZipUrl(session.id);
    $("steps").querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  async showEarlier() {
    const list = $("session-list");
    list.replaceChildren(el("li", { class: "quiet" }, "…"));
    $("sessions").showModal();
    try {
      const sessions = await api.sessions();
      const items = sessions.map((session) => {
        const last = session.steps.at(-1), when = new Date(session.used * 1000);
        const words = session.steps.slice(1).map((step) => step.prompt || "what fits").join(", then ");
        const button = el("button", { type: "button" }, el("img", { src: thumb(last), alt: "", loading: "lazy" }), el("span", {}, el("b", {}, words || "A photograph"), when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" })));
        button.addEventListener("click", () => {
          $("sessions").close();
          this.use(session, last.image);
          this.dispatchEvent(new CustomEvent("go", { detail: last }));
        });
        return el("li", {}, button);
      });
      list.replaceChildren(...(items.length ? items : [el("li", { class: "quiet" }, "There is none yet.")]));
    } catch (error) {
      $("sessions").close();
      toast(sentence(error.message), true);
    }
  }
}

const thumb = (step) => (step.job ? api.patchUrl(step.job, step.index ?? 0, step.restored) : api.thumbUrl(step.image));
