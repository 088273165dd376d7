// Small things for building the page. Text is always text: nothing here, or anywhere on the page, parses HTML.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text, null children are left out. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else if (value === true) element.setAttribute(key, "");
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

/** Whether keys that are pressed in an element are text. */
export const isTyping = (target) => Boolean(target.closest?.("textarea, select, input:not([type=range]):not([type=checkbox]):not([type=radio])"));

/** A line that comes and goes. */
export function toast(text, bad = false) {
  const element = el("p", { class: bad ? "toast bad" : "toast" }, text);
  $("toasts").append(element);
  setTimeout(() => element.remove(), bad ? 9000 : 3500);
}

export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** 75 -> "1:15", 8 -> "8 s". */
export function seconds(value) {
  if (value < 60) return `${Math.max(1, Math.round(value))} s`;
  const minutes = Math.floor(value / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${minutes}:${String(Math.round(value % 60)).padStart(2, "0")} min`;
}
