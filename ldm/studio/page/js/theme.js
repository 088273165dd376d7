// Light or dark: as the system has it, or as the button says.

import { $ } from "./dom.js";
import { recall, remember } from "./local.js";

const NAMES = { auto: "as the system has it", light: "light", dark: "dark" };
const dark = matchMedia("(prefers-color-scheme: dark)");

function show() {
  const theme = recall("theme", "auto");
  document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
  $("theme").title = `Theme: ${NAMES[theme]}`;
}

/** Show the page in its theme from now on. */
export function keepTheme() {
  dark.addEventListener("change", show);
  $("theme").addEventListener("click", () => {
    const order = Object.keys(NAMES);
    remember("theme", order[(order.indexOf(recall("theme", "auto")) + 1) % order.length]);
    show();
  });
  show();
}
