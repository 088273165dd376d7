// The page: brings the parts together. Each of them knows only itself.

import * as api from "./api.js";
import { $, download, toast } from "./dom.js";
import { Form, sentence } from "./form.js";
import { Jobs, ended, kindOf } from "./jobs.js";
import { forgetOldMasks, keepMask, keptMask, recall, remember } from "./local.js";
import { Mask } from "./mask.js";
import * as png from "./png.js";
import * as raster from "./raster.js";
import { SessionStrip } from "./session.js";
import { Stage } from "./stage.js";
import { Tools } from "./tools.js";
import { Marks } from "./words.js";

const GROW = 4; // screen pixels of a step of growing and shrinking, and at least one of the photograph
const WIDEST = 1600; // pixels of the photograph: where the brush's slider ends
const HINTS = {
  brush: "Right button erases · Shift: straight line · Ctrl wheel zooms",
  eraser: "Right button paints · Shift: straight line · Ctrl wheel zooms",
  lasso: "Draw around it · the right button takes away",
  rectangle: "Drag from corner to corner · the right button takes away",
};

const stage = new Stage($("viewport"));
const tools = new Tools(stage, $("cursor"), $("outline"));
const form = new Form();
const jobs = new Jobs();
const strip = new SessionStrip();
const marks = new Marks($("prompt"), $("marks"), $("prompt-words"));

let image = null; // of the server: {id, width, height, name}
let mask = null;
let sentMask = { version: -1, id: null };
let models = [];
let health = null;
let shown = null; // the prediction on the stage: {job, index, restored, patch}
let view = { comparing: false, split: null };
const versions = new Map(); // of the mask, by the job that was run with it
let opening = 0; // the number of the latest photograph that was asked for
let waiting = false; // for one: until it is there nothing is painted

// ---- photographs

/** Send a file to the studio, begin a session with it, and show it; it is shown before it has been sent. */
async function openPhoto(file) {
  const turn = ++opening;
  problem(null);
  wait(true);
  try {
    const local = file.type.startsWith("image/") ? await createImageBitmap(file).catch(() => null) : null;
    const picture = await api.sendImage(file);
    const own = local && local.width === picture.width && local.height === picture.height && picture.plain;
    const bitmap = own ? local : await api.bitmap(api.viewUrl(picture.id));
    const session = await api.beginSession(picture.id);
    if (turn !== opening) return;
    jobs.look(null);
    strip.use(session, picture.id);
    await showInput(picture, bitmap);
  } catch (error) {
    if (turn === opening) toast(sentence(error.message), true);
  } finally {
    if (turn === opening) wait(false);
  }
}

function wait(on) {
  waiting = on;
  draw();
}

/** Make a picture that the server has the input. */
async function openKept(id, keepView = true) {
  const turn = ++opening;
  wait(true);
  try {
    const picture = await api.picture(id);
    const bitmap = await api.bitmap(picture.plain ? api.imageUrl(id) : api.viewUrl(id));
    if (turn === opening) await showInput(picture, bitmap, keepView);
  } finally {
    if (turn === opening) wait(false);
  }
}

async function showInput(picture, bitmap, keepView = false) {
  image = picture;
  mask = new Mask(bitmap.width, bitmap.height);
  const kept = await keptMask(picture.id);
  sentMask = { version: -1, id: null };
  tools.mask = mask;
  tools.last = null;
  document.body.classList.remove("empty");
  $("drop").hidden = true;
  show(null);
  stage.open(bitmap, mask, keepView);
  if (kept) mask.unpack(kept);
  const mine = mask;
  mask.addEventListener("edit", () => {
    if (mask === mine) maskEdited();
  });
  showUndo();
  if (!recall("brush", null)) tools.set({ size: Math.max(8, Math.round(Math.min(bitmap.width, bitmap.height) / 8)) });
  remember("image", picture.id);
  $("viewport").setAttribute("aria-label", `Canvas, ${picture.name || "photograph"}, ${picture.width} by ${picture.height} pixels. Arrow keys move the cursor, with Shift they paint, Enter dabs.`);
}

// ---- the mask

let keeping = 0;

function maskEdited() {
  showUndo();
  if (jobs.active) draw();
  clearTimeout(keeping);
  keeping = setTimeout(keepNow, 250);
}

function keepNow() {
  clearTimeout(keeping);
  keeping = 0;
  if (image) keepMask(image.id, mask.packed());
}

addEventListener("pagehide", () => keeping && keepNow());

function showUndo() {
  document.querySelector('[data-do="undo"]').disabled = !mask?.done.length;
  document.querySelector('[data-do="redo"]').disabled = !mask?.undone.length;
}

const actions = {
  undo: () => mask.undo(),
  redo: () => mask.redo(),
  fill: () => mask.edit(raster.bounds(mask), raster.fillInside) || toast("Draw a closed outline first: what it encloses is filled."),
  invert: () =>
    mask.edit(mask.whole, ({ data }) => {
      for (let i = 0; i < data.length; i++) data[i] = 255 - data[i];
    }),
  clear: () => mask.edit(raster.bounds(mask), (it) => it.data.fill(0)),
  grow: () => growBy(1),
  shrink: () => growBy(-1),
};

function growBy(sign) {
  const box = raster.bounds(mask), pixels = Math.max(1, Math.round(GROW / stage.scale));
  if (!box) return;
  mask.edit(raster.clip(mask, box.x0 - pixels, box.y0 - pixels, box.x1 + pixels, box.y1 + pixels), (it) => raster.grow(it, sign * pixels));
}

function act(name) {
  if (!mask) return;
  show(null);
  actions[name]();
}

async function importMask(file) {
  if (!mask) return toast("Open a photograph first: the mask is brought to its size.", true);
  try {
    const levels = await png.decode(file, mask.width, mask.height);
    show(null);
    mask.edit(mask.whole, ({ data }) => data.set(levels));
  } catch {
    toast("That file is no picture that can be read as a mask: give a PNG, white where it is to be painted.", true);
  }
}

async function exportMask() {
  if (!mask) return toast("There is no mask yet.", true);
  download(await png.encode(mask), `${(image.name || "photograph").replace(/\.[^.]*$/, "")}_mask.png`);
}

// ---- running

async function run(more = {}) {
  problem(null);
  if (!image) return problem("Open a photograph first: drop it on the page, or press Photograph.");
  if (mask.isEmpty) return problem("Paint over what is to change first: nothing is masked yet.");
  try {
    if (!("seed" in more)) form.roll();
    const values = { ...form.values(), ...more };
    if (sentMask.version !== mask.version) {
      const version = mask.version, kept = await api.sendMask(await png.encode(mask));
      sentMask = { version, id: kept.id };
    }
    if (mask.isSoft) values.soft_mask = true;
    const job = await api.submit({ ...values, image: image.id, mask: sentMask.id, session: strip.session?.id ?? null });
    jobs.all.set(job.id, jobs.all.get(job.id) ?? job);
    versions.set(job.id, mask.version);
    show(null);
    jobs.look(job.id);
    bringStageIntoSight();
  } catch (error) {
    problem(error.message);
  }
}

/** Where the page is one narrow column, what has just been asked for is shown above. */
function bringStageIntoSight() {
  if (innerWidth <= 760) $("viewport").scrollIntoView({ block: "center" });
}

function problem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text ? sentence(text) : "";
}

// ---- predictions on the stage

async function show(prediction) {
  if (!prediction) {
    shown = null;
    view = { comparing: false, split: null };
    if (jobs.picked) jobs.pick(null);
  } else {
    const { job, index, restored } = prediction;
    if (!job.results[index]) return; // still forming: its estimate is what is shown
    try {
      const bitmap = await api.bitmap(api.patchUrl(job.id, index, restored));
      if (jobs.picked?.index !== index || jobs.current !== job.id) return;
      shown = { job, index, restored, patch: { bitmap, window: job.window } };
    } catch (error) {
      return toast(sentence(error.message), true);
    }
  }
  draw();
}

function draw() {
  const { job } = jobs, index = jobs.picked?.index ?? 0;
  const bitmap = !shown && job && !ended(job) && isUndisturbed(job) ? jobs.estimates.get(job.id)?.[index] : null;
  tools.painting = !shown && !waiting;
  $("viewport").classList.toggle("can-pan", Boolean(shown));
  $("tools").inert = false;
  $("brushbar").hidden = Boolean(shown);
  $("resultbar").hidden = !shown;
  $("split").hidden = view.split === null || !shown;
  const tag = waiting ? "Opening…" : !shown ? (bitmap ? "Forming" : null) : view.comparing ? "Input" : null;
  $("tag").hidden = !tag;
  $("tag").textContent = tag ?? "";
  stage.show({
    patch: shown?.patch ?? null,
    forming: bitmap && job.window ? { bitmap, window: job.window } : null,
    comparing: view.comparing,
    split: shown ? view.split : null,
  });
  placeSplit();
  if (shown) describe();
}

/** Whether a run's estimates may lie over the mask: until that is painted on for the next run. */
function isUndisturbed(job) {
  if (!mask || job.image !== image?.id) return false;
  if (!versions.has(job.id)) versions.set(job.id, mask.version);
  return versions.get(job.id) === mask.version;
}

tools.addEventListener("begin", () => {
  if (jobs.job) versions.set(jobs.job.id, -1);
  draw();
});

function describe() {
  const { job, index, restored } = shown, result = job.results[index], { measures } = result;
  const exact = measures.max_difference === 0;
  const parts = [document.createTextNode("Prediction "), strong(`${index + 1} of ${job.results.length}`), ` · seed ${result.seed}`];
  if (result.distance !== null) parts.push(` · CLIP ${result.distance.toFixed(3)}`);
  if (restored) parts.push(" · background restored");
  const told = document.createElement("span");
  told.className = exact ? "exact" : "inexact";
  told.textContent = exact ? " · outside exact: 0 of 255" : ` · outside differs by up to ${measures.max_difference} of 255`;
  const psnr = measures.band_psnr === "inf" ? "∞" : measures.band_psnr?.toFixed?.(1);
  told.title = `The largest difference from the input outside the mask and its band of ${measures.feather} pixels. ${psnr ? `PSNR of the band ${psnr} dB. ` : ""}Seam ${measures.seam.toFixed(1)}, the input's own ${measures.source_seam.toFixed(1)}.`;
  $("result-about").replaceChildren(...parts, told);
  const saved = job.saved;
  for (const id of ["use", "restore"]) $(id).disabled = !saved;
  for (const id of ["download", "download-run"]) $(id).setAttribute("aria-disabled", String(!saved));
  $("download").href = api.resultUrl(job.id, index, restored);
  $("download-run").href = api.runZipUrl(job.id);
  $("slide").setAttribute("aria-pressed", String(view.split !== null));
}

function strong(text) {
  const element = document.createElement("b");
  element.textContent = text;
  return element;
}

function compare(on) {
  if (!shown || view.comparing === on) return;
  view.comparing = on;
  draw();
}

function slide() {
  if (!shown) return;
  if (view.split === null) {
    // Through the middle of what has changed.
    const { left, width } = shown.patch.window;
    view.split = Math.min(0.95, Math.max(0.05, (left + width / 2) / stage.width));
  } else view.split = null;
  draw();
}

function placeSplit() {
  if (view.split === null) return;
  const x = stage.x + view.split * stage.width * stage.scale;
  $("split").style.transform = `translateX(${x}px)`;
  $("split").setAttribute("aria-valuenow", String(Math.round(view.split * 100)));
}

function splitTo(clientX) {
  const box = $("viewport").getBoundingClientRect();
  view.split = Math.min(1, Math.max(0, (clientX - box.left - stage.x) / (stage.width * stage.scale)));
  draw();
}

async function useAsInput() {
  if (!shown?.job.saved) return;
  const { job, index, restored } = shown;
  try {
    const session = strip.session ?? (await api.beginSession(job.image));
    const picture = await api.useResult(job.id, index, restored, session.id);
    await openKept(picture.id);
    strip.use(await api.session(session.id), picture.id);
    toast("It is the input now. Paint over what is to change next.");
  } catch (error) {
    toast(sentence(error.message), true);
  }
}

async function restoreBackground() {
  if (!shown?.job.saved) return;
  try {
    await api.restore(shown.job.id, { index: shown.index });
    toast("The decoder is fitted to this photograph; the result is shown when it is there.");
  } catch (error) {
    toast(sentence(error.message), true);
  }
}

/** Bring the form to a run's values. */
function recallRun(job) {
  form.recall(job.options);
}

function moreLikeThis() {
  const { job } = shown;
  recallRun(job);
  const seed = Math.max(...job.results.map((result) => result.seed)) + 1;
  form.set({ seed });
  runAgain(job, { seed });
}

function reword() {
  const { job } = shown;
  recallRun(job);
  if (!form.locked) $("lock").click(); // the same again: only the words are to change
  $("prompt").focus();
  $("prompt").select();
  if (job.image !== image.id) toast("This run's input is another step of the session: go back to it to reword it.");
}

/** The same photograph and mask as a run's, though others may be on the page now. */
async function runAgain(job, more) {
  problem(null);
  try {
    const next = await api.submit({ ...job.options, ...more, image: job.image, mask: job.mask, session: job.session, model: job.model || null });
    jobs.all.set(next.id, jobs.all.get(next.id) ?? next);
    show(null);
    jobs.look(next.id);
  } catch (error) {
    problem(error.message);
  }
}

// ---- news

api.listen({
  hello: (data) => {
    setHealth(data.health);
    jobs.hello(data.jobs);
    problem(null);
  },
  job: (job) => jobs.update(job),
  progress: (data) => jobs.progress(data),
  preview: (data) => jobs.preview(data),
  queue: (data) => jobs.places(data),
  gone: (data) => jobs.gone(data.jobs),
  session: (data) => strip.news(data),
  health: (data) => setHealth(data),
  lost: () => {
    health = null;
    showHealth();
  },
});

async function setHealth(next) {
  const before = health;
  health = next;
  showHealth();
  const names = next.workers.map((worker) => worker.model).join();
  if (!before || before.workers.map((worker) => worker.model).join() !== names || before.status !== next.status) await learnModels();
}

function showHealth() {
  const box = $("status"), text = $("status-text");
  if (!health) {
    box.dataset.state = "lost";
    text.textContent = "Connection lost, trying again…";
    return;
  }
  const worker = health.workers.find((one) => one.state === "busy") ?? health.workers[0];
  const states = { loading: "loading the model…", restarting: "starting again…", failed: worker.error ?? "failed", ready: "ready", busy: "painting" };
  box.dataset.state = worker.state === "restarting" ? "loading" : worker.state;
  const name = worker.model || models.find((one) => one.default)?.name || "";
  text.textContent = `${name ? `${name} · ` : ""}${states[worker.state]}`;
}

async function learnModels() {
  try {
    models = await api.models();
  } catch {
    return; // it comes with the next news
  }
  showHealth();
  showModel();
}

/** What the chosen model knows, and its own defaults. */
function showModel() {
  const model = models.find((one) => one.name === form.model) ?? models.find((one) => one.default);
  if (!model) return;
  marks.know(model.vocabulary, model.name);
  form.useDefaults(model.defaults);
  const kinds = Object.entries(model.knows);
  $("vocabulary").hidden = !kinds.length || !model.vocabulary;
  $("vocabulary-list").replaceChildren(
    ...kinds.flatMap(([kind, words]) => {
      const title = document.createElement("h3"), chips = document.createElement("div");
      title.textContent = kind;
      chips.className = "chips";
      for (const word of words) {
        const chip = document.createElement("button");
        chip.type = "button";
        chip.textContent = word;
        chip.addEventListener("click", () => insertWord(word));
        chips.append(chip);
      }
      return [title, chips];
    }),
  );
}

function insertWord(word) {
  const { value, selectionStart: start, selectionEnd: end } = $("prompt");
  const before = value.slice(0, start), after = value.slice(end);
  const text = `${before && !/\s$/.test(before) ? " " : ""}${word}${after && !/^\s/.test(after) ? " " : ""}`;
  $("prompt").setRangeText(text, start, end, "end");
  $("prompt").dispatchEvent(new Event("input"));
}

jobs.addEventListener("pick", ({ detail }) => {
  if (detail.job.image !== image?.id) goTo(detail.job).then(() => show(detail));
  else if (!detail.job.results[detail.index]) draw();
  else show(detail);
});
$("grid").addEventListener("click", bringStageIntoSight);
jobs.addEventListener("open", async ({ detail: id }) => {
  jobs.look(id);
  const { job } = jobs;
  if (!job) return;
  try {
    if (job.image !== image?.id) await goTo(job);
    if (job.results.length) jobs.pick(0, jobs.restorations(job, 0).at(-1)?.kind ?? null);
    else show(null);
    bringStageIntoSight();
  } catch (error) {
    toast(sentence(error.message), true);
  }
});
jobs.addEventListener("forming", () => draw());
jobs.addEventListener("changed", ({ detail: job }) => {
  if (job.id === jobs.current && job.results.length && !shown && !tools.action) {
    // The results are there: the best one, or the one that was looked at while it formed, is shown.
    if (job.image === image?.id && job.id !== changedOnce) {
      changedOnce = job.id;
      const at = jobs.picked?.index;
      jobs.pick(at === undefined ? 0 : Math.min(at, job.results.length - 1));
    }
  } else if (shown && job.id === shown.job.id) {
    shown.job = job;
    describe();
  } else if (job.kind === "restore" && job.state === "done" && fresh(job) && shown?.job.id === job.of && shown.index === job.index) {
    jobs.pick(job.index, kindOf(job.options));
  }
  if (job.id === jobs.current && ended(job)) draw();
});
let changedOnce = null;
const fresh = (job) => Date.now() / 1000 - job.ended < 30;

/** Make the input of a run the input of the page. */
async function goTo(job) {
  if (job.session && job.session !== strip.session?.id) {
    const session = await api.session(job.session).catch(() => null);
    if (session) strip.use(session, job.image);
  }
  await openKept(job.image);
  strip.use(strip.session, job.image);
}

strip.addEventListener("go", async ({ detail: step }) => {
  try {
    await openKept(step.image);
    strip.use(strip.session, step.image);
  } catch (error) {
    toast(sentence(error.message), true);
  }
});

// ---- controls

$("open-photo").addEventListener("click", () => $("photo-file").click());
$("choose-photo").addEventListener("click", () => $("photo-file").click());
for (const [id, take] of [["photo-file", openPhoto], ["mask-file", importMask]]) {
  $(id).addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) take(file);
  });
}
$("import-mask").addEventListener("click", () => $("mask-file").click());
$("export-mask").addEventListener("click", exportMask);
$("show-help").addEventListener("click", () => $("help").showModal());
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
form.addEventListener("model", showModel);

for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => choose(button.dataset.tool));
}
for (const button of document.querySelectorAll("[data-do]")) {
  button.addEventListener("click", () => act(button.dataset.do));
}

function choose(tool) {
  if (shown) show(null);
  tools.set({ tool });
}

tools.addEventListener("tool", () => {
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tools.tool));
  }
  $("brush-size").value = String(Math.round((100 * Math.log(tools.size)) / Math.log(WIDEST)));
  $("brush-size-text").textContent = `${tools.size} px`;
  $("brush-soft").value = String(Math.round((1 - tools.hardness) * 100));
  $("brush-soft-text").textContent = tools.hardness >= 1 ? "off" : `${Math.round((1 - tools.hardness) * 100)} %`;
  const sized = tools.tool === "brush" || tools.tool === "eraser";
  for (const id of ["brush-size", "brush-soft"]) $(id).parentElement.hidden = !sized;
  $("hint").textContent = HINTS[tools.tool];
  if (image) remember("brush", { size: tools.size, hardness: tools.hardness, tool: tools.tool });
});
$("brush-size").addEventListener("input", () => tools.set({ size: Math.max(1, Math.round(WIDEST ** ($("brush-size").value / 100))) }));
$("brush-soft").addEventListener("input", () => tools.set({ hardness: 1 - $("brush-soft").value / 100 }));

stage.addEventListener("view", () => {
  $("zoom-text").textContent = `${Math.round(stage.scale * stage.ratio * 100)} %`;
  placeSplit();
});
$("zoom-in").addEventListener("click", () => stage.zoomTo(stage.scale * 1.4));
$("zoom-out").addEventListener("click", () => stage.zoomTo(stage.scale / 1.4));
$("zoom-one").addEventListener("click", () => stage.zoomTo(1 / stage.ratio));
$("zoom-fit").addEventListener("click", () => stage.fit());

$("back-to-mask").addEventListener("click", () => show(null));
$("slide").addEventListener("click", slide);
$("use").addEventListener("click", useAsInput);
$("restore").addEventListener("click", restoreBackground);
$("more").addEventListener("click", moreLikeThis);
$("reword").addEventListener("click", reword);
$("compare").addEventListener("pointerdown", (event) => {
  $("compare").setPointerCapture(event.pointerId);
  compare(true);
});
for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) $("compare").addEventListener(name, () => compare(false));
$("compare").addEventListener("keydown", (event) => (event.key === " " || event.key === "Enter") && compare(true));
$("compare").addEventListener("keyup", () => compare(false));
$("compare").addEventListener("contextmenu", (event) => event.preventDefault());
$("split").addEventListener("pointerdown", (event) => {
  event.stopPropagation();
  $("split").setPointerCapture(event.pointerId);
});
$("split").addEventListener("pointermove", (event) => event.buttons && splitTo(event.clientX));
$("split").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
  if (!by) return;
  event.preventDefault();
  event.stopPropagation();
  view.split = Math.min(1, Math.max(0, view.split + by));
  draw();
});
for (const radio of document.querySelectorAll('[name="wheel"]')) {
  radio.addEventListener("change", () => {
    tools.wheel = radio.value;
    remember("wheel", radio.value);
  });
}

// ---- dropping and pasting

const files = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
let dragged = 0;
addEventListener("dragenter", (event) => {
  if (files(event) && ++dragged) $("dropping").hidden = false;
});
addEventListener("dragleave", () => {
  if (--dragged <= 0) $("dropping").hidden = !(dragged = 0);
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragged = 0;
  $("dropping").hidden = true;
  const [file] = event.dataTransfer.files;
  if (file) openPhoto(file);
});
addEventListener("paste", (event) => {
  const item = [...(event.clipboardData?.items ?? [])].find((one) => one.kind === "file");
  if (!item) return;
  event.preventDefault();
  openPhoto(item.getAsFile());
});

// ---- keys

const KEYS = {
  b: () => choose("brush"),
  e: () => choose("eraser"),
  l: () => choose("lasso"),
  r: () => choose("rectangle"),
  f: () => act("fill"),
  i: () => act("invert"),
  delete: () => act("clear"),
  backspace: () => act("clear"),
  "[": () => tools.resize(-1),
  "]": () => tools.resize(1),
  0: () => stage.fit(),
  1: () => stage.zoomTo(1 / stage.ratio),
  "+": (event) => (event.shiftKey && event.code !== "NumpadAdd" && shiftedPlus(event) ? act("grow") : stage.zoomTo(stage.scale * 1.25)),
  "=": () => stage.zoomTo(stage.scale * 1.25),
  "-": () => stage.zoomTo(stage.scale / 1.25),
  _: () => act("shrink"),
  "−": () => act("shrink"),
  c: () => compare(true),
  s: slide,
  u: () => shown && useAsInput(),
  m: () => shown && moreLikeThis(),
  p: () => (shown ? reword() : $("prompt").focus()),
  escape: () => show(null),
  "?": () => $("help").showModal(),
};

// On a keyboard where plus has no shift of its own, as many European ones, it zooms; with it, it grows.
const shiftedPlus = (event) => event.code === "Equal" || event.shiftKey;

const typing = (target) => target.closest("textarea, select, input:not([type=range]):not([type=checkbox]):not([type=radio])");

addEventListener("keydown", (event) => {
  const control = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
  if (document.querySelector("dialog[open]")) return;
  if (control && key === "enter") {
    event.preventDefault();
    run();
    return;
  }
  if (typing(event.target)) return;
  if (control && (key === "z" || key === "y")) {
    event.preventDefault();
    act(key === "y" || event.shiftKey ? "redo" : "undo");
    return;
  }
  const onCanvas = event.target === $("viewport") || event.target === document.body;
  if (event.key === " " && onCanvas) {
    event.preventDefault();
    tools.space = true;
    $("viewport").classList.add("can-pan");
    return;
  }
  if (onCanvas && tools.pressed(event)) {
    event.preventDefault();
    return;
  }
  if (shown && (event.key === "ArrowLeft" || event.key === "ArrowRight") && (onCanvas || event.target.closest(".grid, .resultbar"))) {
    event.preventDefault();
    const count = shown.job.results.length, next = (shown.index + (event.key === "ArrowLeft" ? count - 1 : 1)) % count;
    jobs.pick(next, jobs.restorations(shown.job, next).at(-1)?.kind ?? null);
    return;
  }
  if (control || event.altKey || !(key in KEYS)) return;
  event.preventDefault();
  KEYS[key](event);
});
addEventListener("keyup", (event) => {
  if (event.key === " ") {
    tools.space = false;
    $("viewport").classList.toggle("can-pan", Boolean(shown));
  }
  if (event.key.toLowerCase() === "c") compare(false);
});
addEventListener("blur", () => {
  tools.space = false;
  compare(false);
});

// ---- theme

const dark = matchMedia("(prefers-color-scheme: dark)");

function showTheme() {
  const theme = recall("theme", "auto");
  document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
  $("theme").title = `Theme: ${{ auto: "as the system has it", light: "light", dark: "dark" }[theme]}`;
}
dark.addEventListener("change", showTheme);
$("theme").addEventListener("click", () => {
  const order = ["auto", "light", "dark"];
  remember("theme", order[(order.indexOf(recall("theme", "auto")) + 1) % 3]);
  showTheme();
});

// ---- the beginning

async function begin() {
  document.body.classList.add("empty");
  showTheme();
  tools.set(recall("brush", {}));
  tools.wheel = recall("wheel", "size");
  document.querySelector(`[name="wheel"][value="${tools.wheel}"]`).checked = true;
  const { session, image: before } = SessionStrip.remembered();
  const [options] = await Promise.all([api.options(), learnModels()]);
  form.build(options.edit, models);
  showModel();
  if (!before) return;
  try {
    strip.use(session ? await api.session(session).catch(() => null) : null, before);
    await openKept(before);
  } catch {
    strip.use(null, null); // it has been removed since: there is nothing to go on with
  }
}

begin().catch((error) => toast(sentence(error.message), true));
forgetOldMasks();
