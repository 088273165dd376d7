// Words of a prompt that the model does not know, marked while they are typed. The splitting is that of its tokenizer:
// lower case, without accents, letters and digits.

import { el } from "./dom.js";

const WORD = /[\p{L}\p{N}\p{M}]+/gu;

/** The unknown words of a prompt as {start, end, word}; none where the model reads any word. */
export function unknownWords(prompt, vocabulary) {
  if (!vocabulary) return [];
  const found = [];
  for (const match of prompt.matchAll(WORD)) {
    const word = match[0].toLowerCase().normalize("NFD").replace(/\p{M}/gu, "");
    if (!vocabulary.has(word)) found.push({ start: match.index, end: match.index + match[0].length, word: match[0] });
  }
  return found;
}

/** Keep the marks behind a textarea as its text is. */
export class Marks {
  constructor(textarea, marks, told) {
    Object.assign(this, { textarea, marks, told, vocabulary: null, model: "the model" });
    textarea.addEventListener("input", () => this.show());
    textarea.addEventListener("scroll", () => (marks.scrollTop = textarea.scrollTop));
  }

  know(vocabulary, model) {
    this.vocabulary = vocabulary ? new Set(vocabulary) : null;
    this.model = model;
    this.show();
  }

  show() {
    const text = this.textarea.value, unknown = unknownWords(text, this.vocabulary), parts = [];
    let at = 0;
    for (const { start, end } of unknown) {
      parts.push(text.slice(at, start), el("mark", {}, text.slice(start, end)));
      at = end;
    }
    this.marks.replaceChildren(...parts, text.slice(at), "\u200b");
    const words = [...new Set(unknown.map(({ word }) => `“${word}”`))];
    this.told.textContent = words.length ? `${this.model} does not know ${words.slice(0, 4).join(", ")} and paints without.` : "";
  }
}
