// What is asked of the studio: runs, more like them, restorations, and the steps of the session.

import * as api from "./api.js";
import { $, toast } from "./dom.js";
import { sentence } from "./form.js";

/** Brings together what a run is made of: the input, the form, the session, and the list that it then stands in. */
export class Runs {
  constructor(input, form, jobs, strip, viewer) {
    Object.assign(this, { input, form, jobs, strip, viewer });
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    $("use").addEventListener("click", () => this.useAsInput());
    $("restore").addEventListener("click", () => this.restore());
    $("more").addEventListener("click", () => this.more());
    $("reword").addEventListener("click", () => this.reword());
    strip.addEventListener("go", ({ detail: step }) => this.tried(() => this.go(strip.session, step.image)));
  }

  /** What has gone wrong with what was asked for, under the button; null takes it away. */
  problem(text) {
    $("problem").hidden = !text;
    $("problem").textContent = text ? sentence(text) : "";
  }

  async tried(action) {
    try {
      await action();
    } catch (error) {
      toast(sentence(error.message), true);
    }
  }

  // ---- runs

  async run() {
    const { image, mask } = this.input;
    if (!image) return this.problem("Open a photograph first: drop it on the page, or press Photograph.");
    if (mask.isEmpty) return this.problem("Paint over what is to change first: nothing is masked yet.");
    await this.submit(async () => {
      this.form.roll();
      const values = this.form.values();
      if (mask.isSoft) values.soft_mask = true;
      const session = this.strip.session?.id ?? null, { version } = mask;
      const job = await api.submit({ ...values, image: image.id, mask: await this.input.sentMask(), session });
      this.viewer.versions.set(job.id, version);
      return job;
    });
  }

  async submit(ask) {
    this.problem(null);
    try {
      const job = await ask();
      this.jobs.all.set(job.id, this.jobs.all.get(job.id) ?? job);
      this.viewer.close();
      this.jobs.look(job.id);
      bringStageIntoSight();
    } catch (error) {
      this.problem(error.message);
    }
  }

  /** The next seeds, on the same photograph and mask, though others may be on the page now. */
  more() {
    const { job } = this.viewer.shown, seed = Math.max(...job.results.map((result) => result.seed)) + 1;
    this.form.recall({ ...job.options, seed });
    const { image, mask, session, model } = job;
    return this.submit(() => api.submit({ ...job.options, seed, image, mask, session, model: model || null }));
  }

  reword() {
    const { job } = this.viewer.shown;
    this.form.recall(job.options);
    if (!this.form.locked) $("lock").click(); // the same again: only the words are to change
    $("prompt").focus();
    $("prompt").select();
    if (job.image !== this.input.image.id) toast("This run's input is another step of the session: go back to it to reword it.");
  }

  restore() {
    const { job, index } = this.viewer.shown ?? {};
    if (!job?.saved) return null;
    return this.tried(async () => {
      await api.restore(job.id, { index });
      toast("The decoder is fitted to this photograph; the result is shown when it is there.");
    });
  }

  // ---- the session

  useAsInput() {
    const { job, index, restored } = this.viewer.shown ?? {};
    if (!job?.saved) return null;
    return this.tried(async () => {
      const session = this.strip.session ?? (await api.beginSession(job.image));
      const picture = await api.useResult(job.id, index, restored, session.id);
      if (await this.go(await api.session(session.id), picture.id)) toast("It is the input now. Paint over what is to change next.");
    });
  }

  /** Make a picture of a session the input. False where another was opened meanwhile. */
  async go(session, image) {
    const opened = await this.input.openKept(image);
    if (opened) this.strip.use(session, image);
    return opened;
  }

  /** Make the input of a run the input of the page. */
  async goToInputOf(job) {
    const { strip } = this;
    const other = job.session && job.session !== strip.session?.id ? await api.session(job.session).catch(() => null) : null;
    return this.go(other ?? strip.session, job.image);
  }

  /** Look at a run of the list. */
  async look(id) {
    const { jobs } = this;
    jobs.look(id);
    const { job } = jobs;
    if (!job) return;
    if (job.image !== this.input.image?.id && !(await this.goToInputOf(job))) return;
    if (job.results.length) jobs.pick(0, jobs.restorations(job, 0).at(-1)?.kind ?? null);
    else this.viewer.close();
    bringStageIntoSight();
  }
}

/** Where the page is one narrow column, what has just been asked for is shown above. */
export function bringStageIntoSight() {
  if (innerWidth <= 760) $("viewport").scrollIntoView({ block: "center" });
}
