// The page: brings the parts together. Each of them knows only itself, and those it is given.

import * as api from "./api.js";
import { $, toast } from "./dom.js";
import { takeFiles } from "./drop.js";
import { Form, sentence } from "./form.js";
import { Input } from "./input.js";
import { Jobs, ended, kindOf } from "./jobs.js";
import { bindKeys } from "./keys.js";
import { forgetOldMasks, recall, remember } from "./local.js";
import { Models } from "./models.js";
import { Runs, bringStageIntoSight } from "./runs.js";
import { SessionStrip } from "./session.js";
import { Stage } from "./stage.js";
import { keepTheme } from "./theme.js";
import { Tools } from "./tools.js";
import { Viewer } from "./viewer.js";
import { Marks } from "./words.js";

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
const input = new Input(stage);
const viewer = new Viewer(stage, tools, jobs, input);
const runs = new Runs(input, form, jobs, strip, viewer);
const models = new Models(form, new Marks($("prompt"), $("marks"), $("prompt-words")));

// ---- photographs

async function openPhoto(file) {
  runs.problem(null);
  const opened = await input.take(file);
  if (!opened) return;
  jobs.look(null);
  strip.use(opened.session, opened.picture.id);
}

input.addEventListener("change", () => {
  const { mask } = input;
  tools.mask = mask;
  tools.last = null;
  viewer.close();
  if (!recall("brush", null)) tools.set({ size: Math.max(8, Math.round(Math.min(mask.width, mask.height) / 8)) });
});

// Its own files: the browser forgets which one it was, so that it can be chosen again.
for (const [id, take] of [["photo-file", openPhoto], ["mask-file", importMask]]) {
  $(id).addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) take(file);
  });
}
takeFiles(openPhoto);
for (const id of ["open-photo", "choose-photo"]) $(id).addEventListener("click", () => $("photo-file").click());

// ---- the mask

function act(name) {
  if (!input.mask || input.waiting) return;
  viewer.close();
  input.act(name);
}

function importMask(file) {
  viewer.close();
  input.importMask(file);
}

function choose(tool) {
  if (viewer.shown) viewer.close();
  tools.set({ tool });
}

$("import-mask").addEventListener("click", () => $("mask-file").click());
$("export-mask").addEventListener("click", () => input.exportMask());
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => choose(button.dataset.tool));
for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => act(button.dataset.do));

tools.addEventListener("tool", () => {
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tools.tool));
  }
  $("brush-size").value = String(Math.round((100 * Math.log(tools.size)) / Math.log(WIDEST)));
  $("brush-size-text").textContent = `${tools.size} px`;
  const soft = Math.round((1 - tools.hardness) * 100);
  $("brush-soft").value = String(soft);
  $("brush-soft-text").textContent = soft > 0 ? `${soft} %` : "off";
  const sized = tools.tool === "brush" || tools.tool === "eraser";
  for (const id of ["brush-size", "brush-soft"]) $(id).parentElement.hidden = !sized;
  $("hint").textContent = HINTS[tools.tool];
  if (input.image) remember("brush", { size: tools.size, hardness: tools.hardness, tool: tools.tool });
});
$("brush-size").addEventListener("input", () => tools.set({ size: Math.max(1, Math.round(WIDEST ** ($("brush-size").value / 100))) }));
$("brush-soft").addEventListener("input", () => tools.set({ hardness: 1 - $("brush-soft").value / 100 }));

// ---- the view

stage.addEventListener("view", () => ($("zoom-text").textContent = `${Math.round(stage.scale * stage.ratio * 100)} %`));
$("zoom-in").addEventListener("click", () => stage.zoomTo(stage.scale * 1.4));
$("zoom-out").addEventListener("click", () => stage.zoomTo(stage.scale / 1.4));
$("zoom-one").addEventListener("click", () => stage.zoomTo(1 / stage.ratio));
$("zoom-fit").addEventListener("click", () => stage.fit());
for (const radio of document.querySelectorAll('[name="wheel"]')) {
  radio.addEventListener("change", () => {
    tools.wheel = radio.value;
    remember("wheel", radio.value);
  });
}
$("show-help").addEventListener("click", () => $("help").showModal());
bindKeys({ stage, tools, viewer, runs, choose, act });

// ---- the runs that are looked at

jobs.addEventListener("pick", ({ detail }) => {
  const { job, index, restored } = detail;
  if (job.image !== input.image?.id) {
    // Another input closes the viewer, and nothing is picked then: once more, unless another run is looked at by now.
    runs.tried(async () => (await runs.goToInputOf(job)) && jobs.current === job.id && jobs.pick(index, restored));
  } else if (!job.results[index]) viewer.draw();
  else viewer.show(detail);
});
$("grid").addEventListener("click", bringStageIntoSight);
jobs.addEventListener("open", ({ detail: id }) => runs.tried(() => runs.look(id)));
jobs.addEventListener("forming", () => viewer.draw());

const isFresh = (job) => Date.now() / 1000 - job.ended < 30;
let shownOnce = null; // the id of the run whose best prediction has been shown by itself
jobs.addEventListener("changed", ({ detail: job }) => {
  const { shown } = viewer;
  if (job.id === shownOnce && !job.results.length) shownOnce = null; // lost before they were saved: it may begin anew
  if (job.id === jobs.current && job.results.length && !shown && !tools.action) {
    // The results are there: the best one, or the one that was looked at while it formed, is shown.
    if (job.image === input.image?.id && job.id !== shownOnce) {
      shownOnce = job.id;
      jobs.pick(Math.min(jobs.picked?.index ?? 0, job.results.length - 1));
    }
  } else if (shown && job.id === shown.job.id) {
    if (!job.results[shown.index]) viewer.close();
    else {
      shown.job = job;
      viewer.describe();
    }
  } else if (job.kind === "restore" && job.state === "done" && isFresh(job) && shown?.job.id === job.of && shown.index === job.index) {
    jobs.pick(job.index, kindOf(job.options));
  }
  if (job.id === jobs.current && ended(job)) viewer.draw();
});

// ---- news

api.listen({
  hello: (data) => {
    models.setHealth(data.health);
    jobs.hello(data.jobs);
    runs.problem(null);
  },
  job: (job) => jobs.update(job),
  progress: (data) => jobs.progress(data),
  preview: (data) => jobs.preview(data),
  queue: (data) => jobs.places(data),
  gone: (data) => {
    jobs.gone(data.jobs);
    if (!data.jobs.includes(viewer.shown?.job.id)) return;
    viewer.close();
    toast("The run that was shown has been removed.");
  },
  session: (data) => strip.news(data),
  health: (data) => models.setHealth(data),
  lost: () => models.lost(),
});

models.addEventListener("word", ({ detail: word }) => {
  const { value, selectionStart: start, selectionEnd: end } = $("prompt");
  const before = value.slice(0, start), after = value.slice(end);
  const text = `${before && !/\s$/.test(before) ? " " : ""}${word}${after && !/^\s/.test(after) ? " " : ""}`;
  $("prompt").setRangeText(text, start, end, "end");
  $("prompt").dispatchEvent(new Event("input"));
});

// ---- the beginning

async function begin() {
  document.body.classList.add("empty");
  keepTheme();
  tools.set(recall("brush", {}));
  tools.wheel = recall("wheel", "size");
  document.querySelector(`[name="wheel"][value="${tools.wheel}"]`).checked = true;
  const { session, image } = SessionStrip.remembered();
  const [options] = await Promise.all([api.options(), models.learn()]);
  form.build(options.edit, models.all);
  models.showChosen();
  if (!image || input.asked) return;
  const before = recall("job", null);
  try {
    await runs.go(session ? await api.session(session).catch(() => null) : null, image);
  } catch {
    strip.use(null, null); // it has been removed since: there is nothing to go on with
    return;
  }
  await jobs.known;
  const job = jobs.all.get(before);
  if (!job || jobs.current || job.image !== input.image.id) return;
  if (job.results.length) shownOnce = job.id; // it has been seen
  jobs.look(job.id);
  viewer.draw();
}

begin().catch((error) => toast(sentence(error.message), true));
forgetOldMasks();
