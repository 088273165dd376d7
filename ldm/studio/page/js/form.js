// What is asked for. The fields are made of the options that the server declares: a new one appears by itself.

import { $, el } from "./dom.js";
import { recall, remember } from "./local.js";

// Names that are shorter, or more usual, than the options' own; and which of them are always in sight.
const LABELS = {
  ddim_steps: "Steps",
  ddim_eta: "Noise of each step",
  scale: "Guidance",
  guidance_interval: "Guidance between",
  skip_steps: "Strength",
  sampler: "Sampler",
  mask_dilation_iterations: "Shrinking",
  feather: "Feather",
  n_samples: "Predictions",
  n_iter: "Batches",
  H: "Height",
  W: "Width",
  force: "Paint unknown words too",
  background_noise: "Noise of the background",
  percentage_of_pixel_blending: "Pixel blending",
  region: "Region",
  context: "Context",
  mask_downsample: "Mask to latent cells",
  fit_mask: "Fit the mask",
  invert_mask: "Edit the unpainted part",
  strip: "Leave out EXIF",
  negative_prompt: "What should not be there?",
  model: "Model",
};
const CHOICES = { ddim: "DDIM", dpmpp_2m: "DPM-Solver++ (2M)", lcm: "LCM" };
const OWN = new Set(["prompt", "n_samples", "seed", "soft_mask"]); // have a place of their own, or follow from the mask
const MAIN = ["negative_prompt"];
const SETTINGS = ["ddim_steps", "scale", "skip_steps", "sampler", "mask_dilation_iterations", "feather"];

const STRENGTH = "how much of what lies under the mask is painted anew: less keeps its layout and colours";

export function label(name) {
  const plain = name.replaceAll("_", " ");
  return LABELS[name] ?? plain[0].toUpperCase() + plain.slice(1);
}

/** A sentence of the server's as it is for this page: options by the names that they have here. */
export function sentence(text) {
  const named = text.replace(/`(\w+)(?:=([^`]*))?`/g, (_, name, value) => (value === undefined ? `“${label(name)}”` : `“${label(name)} ${value}”`));
  const upper = (named[0] ?? "").toUpperCase() + named.slice(1);
  return /[.!?]$/.test(upper) ? upper : `${upper}.`;
}

/** The form. `values()` is what the API takes; emits "model" when another model is chosen. */
export class Form extends EventTarget {
  constructor() {
    super();
    this.fields = new Map();
    this.kept = recall("values", {});
    this.locked = recall("locked", false);
    $("prompt").value = this.kept.prompt ?? "";
    $("n_samples").value = this.kept.n_samples ?? "";
    $("seed").value = this.kept.seed ?? dice();
    for (const id of ["prompt", "n_samples", "seed"]) $(id).addEventListener("input", () => this.keep());
    $("dice").addEventListener("click", () => this.set({ seed: dice() }));
    $("lock").addEventListener("click", () => {
      this.locked = !this.locked;
      remember("locked", this.locked);
      this.showLock();
    });
    for (const button of document.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => {
        const now = Number.parseInt($("n_samples").value, 10) || 4;
        this.set({ n_samples: Math.max(1, Math.min(64, now + Number(button.dataset.step))) });
      });
    }
    $("reset").addEventListener("click", () => {
      for (const field of this.fields.values()) field.set(null);
      this.keep();
    });
    $("settings").open = recall("settings-open", false);
    $("settings").addEventListener("toggle", () => remember("settings-open", $("settings").open));
    this.showLock();
  }

  /** Make the fields of the options as GET options tells them. */
  build(options, models) {
    this.options = new Map(options.map((option) => [option.name, option]));
    const shared = this.options.get("n_samples");
    if (!$("n_samples").value) $("n_samples").value = shared?.default ?? 4;
    $("n_samples").title = shared?.help ?? "";
    $("seed").title = this.options.get("seed")?.help ?? "";
    const make = (name) => {
      const option = this.options.get(name);
      if (!option) return null;
      const field = name === "skip_steps" ? new Strength(option, this) : new Field(option);
      this.fields.set(name, field);
      if (this.kept[name] !== undefined) field.set(this.kept[name]);
      field.element.addEventListener("input", () => this.keep());
      return field.element;
    };
    $("main-fields").replaceChildren(...MAIN.map(make).filter(Boolean));
    const settings = SETTINGS.map(make).filter(Boolean);
    if (models.filter((model) => model.available).length > 1) settings.unshift(this.modelField(models));
    $("settings-fields").replaceChildren(...settings);
    const groups = new Map();
    for (const { name, group } of options) {
      if (OWN.has(name) || this.fields.has(name)) continue;
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(make(name));
    }
    $("all-fields").replaceChildren(
      ...[...groups].flatMap(([title, elements]) => [el("h3", {}, title[0].toUpperCase() + title.slice(1)), ...elements]),
    );
  }

  modelField(models) {
    const select = el("select", { id: "option-model" }, ...models.filter((one) => one.available).map((one) => el("option", { value: one.default ? "" : one.name }, one.name)));
    select.value = this.kept.model ?? "";
    if (select.selectedIndex < 0) select.value = "";
    select.addEventListener("input", () => {
      this.keep();
      this.dispatchEvent(new Event("model"));
    });
    return el("div", { class: "field" }, el("label", { for: "option-model" }, "Model"), select);
  }

  get model() {
    return $("option-model")?.value || null;
  }

  /** Say what null means for a model: its own defaults. */
  useDefaults(defaults) {
    this.defaults = defaults;
    for (const [name, field] of this.fields) field.showDefault(defaults[name]);
  }

  /** What is asked for, under the options' names. Throws an Error with a sentence. */
  values() {
    const values = { prompt: $("prompt").value.trim() };
    for (const name of ["n_samples", "seed"]) values[name] = whole(name, $(name).value);
    for (const [name, field] of this.fields) {
      const value = field.value();
      if (value !== null && value !== this.options.get(name).default) values[name] = value;
    }
    if (this.model) values.model = this.model;
    return values;
  }

  /** Bring the form to the values of a run; what they leave out is the default. */
  recall(values) {
    this.set({ prompt: "", n_samples: this.options.get("n_samples").default, seed: this.options.get("seed").default, ...values }, true);
  }

  set(values, all = false) {
    for (const id of ["prompt", "n_samples", "seed"]) if (id in values) $(id).value = values[id];
    for (const [name, field] of this.fields) if (all || name in values) field.set(values[name] ?? null);
    $("prompt").dispatchEvent(new Event("input"));
    this.keep();
  }

  /** Before a run: another seed, unless it is to stay. */
  roll() {
    if (!this.locked) this.set({ seed: dice() });
  }

  keep() {
    this.kept = { prompt: $("prompt").value, n_samples: $("n_samples").value, seed: $("seed").value, model: this.model ?? "" };
    for (const [name, field] of this.fields) {
      const value = field.raw();
      if (value !== null) this.kept[name] = value;
    }
    remember("values", this.kept);
  }

  showLock() {
    const button = $("lock");
    button.setAttribute("aria-pressed", String(this.locked));
    button.querySelector("use").setAttribute("href", this.locked ? "#i-lock" : "#i-unlock");
    button.title = this.locked ? "The seed stays from run to run" : "Each run takes another seed";
  }
}

/** One option: its label, its control, its sentence. */
class Field {
  constructor(option) {
    this.option = option;
    const id = `option-${option.name}`, help = el("p", { class: "help", id: `${id}-help` }, capital(option.help, option.choices));
    this.control = this.make(id);
    this.control.setAttribute("aria-describedby", help.id);
    const name = el("label", { for: id }, label(option.name));
    this.element = option.type === "switch" ? el("div", { class: "field switch" }, this.control, name, help) : el("div", { class: "field" }, name, this.control, help);
    this.set(null);
    this.showDefault();
  }

  make(id) {
    const { type, choices, optional } = this.option;
    if (type === "switch") return el("input", { id, type: "checkbox" });
    if (type === "choice") {
      const options = choices.map((choice) => el("option", { value: choice }, CHOICES[choice] ?? choice[0].toUpperCase() + choice.slice(1)));
      if (optional) options.unshift(el("option", { value: "" }, "As the model has it"));
      return el("select", { id }, ...options);
    }
    if (type === "text") return el("textarea", { id, rows: 1, spellcheck: "false", dir: "auto" });
    return el("input", { id, form: "form", inputmode: type === "integer" ? "numeric" : "decimal" });
  }

  showDefault(own) {
    const { type, shown, default: fallback } = this.option;
    if (type === "integer" || type === "number" || type === "numbers") {
      this.control.placeholder = own ?? fallback ?? shown.replace(/^the model's, or else /, "") ?? "";
    }
  }

  set(value) {
    const { type, default: fallback } = this.option;
    if (type === "switch") this.control.checked = value ?? fallback ?? false;
    else if (type === "choice") this.control.value = value ?? fallback ?? "";
    else this.control.value = Array.isArray(value) ? value.join(" ") : (value ?? "");
    this.control.setAttribute("aria-invalid", "false");
  }

  /** What is to be remembered: null is the default. */
  raw() {
    if (this.option.type === "switch") return this.control.checked === this.option.default ? null : this.control.checked;
    return this.control.value === "" || this.control.value === this.option.default ? null : this.control.value;
  }

  value() {
    const { name, type, low, high } = this.option, text = this.control.value.trim();
    if (type === "switch") return this.control.checked;
    if (text === "") return null;
    if (type === "integer" || type === "number") return numeric(this, name, text, type, low, high);
    return text;
  }
}

/** `skip_steps` as painters think of it: how strong the edit is, in percent. */
class Strength extends Field {
  constructor(option, form) {
    super({ ...option, help: STRENGTH });
    this.form = form;
  }

  make(id) {
    this.output = el("output", { for: id });
    const slider = el("input", { id, type: "range", min: 5, max: 100, step: 1, value: 100 });
    slider.addEventListener("input", () => this.show());
    return slider;
  }

  show() {
    this.element?.querySelector("label").append(this.output);
    this.output.textContent = `${this.control.value} %`;
  }

  /** How many steps the form asks for now, or would, while what is typed is no number. */
  get steps() {
    const given = Number.parseInt(this.form?.fields.get("ddim_steps")?.raw(), 10);
    return given > 0 ? given : (this.form?.defaults?.ddim_steps ?? 50);
  }

  set(value) {
    this.control.value = value ? 100 - Math.round((100 * Number(value)) / this.steps) : 100;
    this.show();
  }

  showDefault() {
    this.show();
  }

  raw() {
    return this.value() || null;
  }

  value() {
    return Math.min(this.steps - 1, Math.round((this.steps * (100 - Number(this.control.value))) / 100));
  }
}

function numeric(field, name, text, type, low, high) {
  const value = Number(text.replace(",", ".")), whole = type === "integer";
  const fits = Number.isFinite(value) && (!whole || Number.isInteger(value)) && value >= (low ?? -Infinity) && value <= (high ?? Infinity);
  field.control.setAttribute("aria-invalid", String(!fits));
  if (fits) return value;
  const span = low === null ? "" : high === null || high > 2 ** 53 ? ` of at least ${low}` : ` from ${low} to ${high}`;
  throw new Error(`“${label(name)}” is ${text}: give ${whole ? "a whole number" : "a number"}${span}.`);
}

function whole(name, text) {
  const value = Number(text);
  if (/^\d+$/.test(text.trim()) && Number.isSafeInteger(value) && (name === "seed" || value > 0)) return value;
  throw new Error(`“${label(name)}” is “${text}”: give a whole number${name === "seed" ? "" : " of at least 1"}.`);
}

function dice() {
  return crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
}

/** A sentence; one that begins with a choice keeps it as it is written. */
function capital(text, choices) {
  const begun = choices.some((choice) => text.startsWith(choice)) ? text : (text[0] ?? "").toUpperCase() + text.slice(1);
  return begun && !/[.!?]$/.test(begun) ? `${begun}.` : begun;
}
