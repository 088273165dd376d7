// Photographs that are dropped on the page or pasted into it.

import { $, isTyping } from "./dom.js";

const hasFile = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");

/** Call `take` with each file that comes. */
export function takeFiles(take) {
  let inside = 0; // elements that what is dragged has entered and not left
  const show = (count) => {
    inside = Math.max(0, count);
    $("dropping").hidden = !inside;
  };
  addEventListener("dragenter", (event) => hasFile(event) && show(inside + 1));
  addEventListener("dragleave", () => show(inside - 1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    show(0);
    const [file] = event.dataTransfer.files;
    if (file) take(file);
  });
  addEventListener("paste", (event) => {
    const items = [...(event.clipboardData?.items ?? [])], file = items.find((item) => item.kind === "file");
    // An office program's text comes with a picture of it: in a field it is the text that is meant.
    if (!file || (isTyping(event.target) && items.some((item) => item.type === "text/plain"))) return;
    event.preventDefault();
    take(file.getAsFile());
  });
  // The page's own pictures are no photographs to be dropped on it.
  addEventListener("dragstart", (event) => event.target.localName === "img" && event.preventDefault());
}
