// The keyboard: which key does what, and when it is meant for a field instead.

import { $, isTyping } from "./dom.js";

/** Listen to the keys. `choose` takes a tool, `act` does what a button beside the brush does. */
export function bindKeys({ stage, tools, viewer, runs, choose, act }) {
  const withResult = (action) => () => viewer.shown && action();
  const keys = {
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
    // The plus of a number pad, and of keyboards where it needs no shift, zooms; with shift it grows.
    "+": (event) => (event.shiftKey && event.code !== "NumpadAdd" ? act("grow") : stage.zoomTo(stage.scale * 1.25)),
    "=": () => stage.zoomTo(stage.scale * 1.25),
    "-": () => stage.zoomTo(stage.scale / 1.25),
    _: () => act("shrink"),
    "−": () => act("shrink"),
    c: () => viewer.compare(true),
    s: () => viewer.slide(),
    u: withResult(() => runs.useAsInput()),
    m: withResult(() => runs.more()),
    p: () => (viewer.shown ? runs.reword() : $("prompt").focus()),
    escape: () => viewer.close(),
    "?": () => $("help").showModal(),
  };

  addEventListener("keydown", (event) => {
    const control = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
    if (document.querySelector("dialog[open]")) return;
    const handled = () => event.preventDefault();
    if (control && key === "enter") {
      handled();
      runs.run();
      return;
    }
    if (isTyping(event.target)) return;
    if (control && (key === "z" || key === "y")) {
      handled();
      act(key === "y" || event.shiftKey ? "redo" : "undo");
      return;
    }
    const onCanvas = event.target === $("viewport") || event.target === document.body;
    if (event.key === " " && onCanvas) {
      handled();
      tools.space = true;
      $("viewport").classList.add("can-pan");
    } else if (onCanvas && tools.pressed(event)) handled();
    else if (viewer.shown && (key === "arrowleft" || key === "arrowright") && (onCanvas || event.target.closest(".grid, .resultbar"))) {
      handled();
      viewer.step(key === "arrowleft" ? -1 : 1);
    } else if (!control && !event.altKey && key in keys) {
      handled();
      keys[key](event);
    }
  });
  addEventListener("keyup", (event) => {
    if (event.key === " ") {
      tools.space = false;
      $("viewport").classList.toggle("can-pan", Boolean(viewer.shown));
    }
    if (event.key.toLowerCase() === "c") viewer.compare(false);
  });
  addEventListener("blur", () => {
    tools.space = false;
    viewer.compare(false);
  });
}
