// The server's API. Whatever goes wrong is an Error whose message a user can read.

const BASE = "/api/v1";

async function call(method, path, body, type) {
  let response;
  try {
    response = await fetch(BASE + path, {
      method,
      headers: { "X-Studio": "page", ...(type ? { "Content-Type": type } : {}) },
      body,
    });
  } catch {
    throw new Error("The studio does not answer. Is it still running? Nothing is lost: try again when it is back.");
  }
  if (response.status === 204) return null;
  let answer = null;
  try {
    answer = await response.json();
  } catch {
    // no JSON: the status must do
  }
  if (!response.ok) throw new Error(answer?.error || `The studio answered with ${response.status}.`);
  return answer;
}

/** Why the studio refuses to answer, where that is so: it may ask for a token. Null where it is fine or away. */
export async function refusal() {
  try {
    const response = await fetch(`${BASE}/health`);
    return response.ok ? null : (await response.json()).error;
  } catch {
    return null;
  }
}

const get = (path) => call("GET", path);
const post = (path, value) => call("POST", path, JSON.stringify(value ?? {}), "application/json");

export const health = () => get("/health");
export const models = () => get("/models");
export const options = () => get("/options");
export const picture = (id) => get(`/images/${id}`);
export const sendImage = (file) =>
  call("POST", `/images?name=${encodeURIComponent(plainName(file.name))}`, file, file.type || "application/octet-stream");
export const sendMask = (blob) => call("POST", "/masks", blob, "image/png");
export const useResult = (job, index, restored, session) =>
  post("/images/from-result", { job, index, restored: restored || null, session });
export const submit = (edit) => post("/jobs", edit);
export const restore = (job, how) => post(`/jobs/${job}/restore`, how);
export const cancel = (id) => post(`/jobs/${id}/cancel`);
export const cancelAll = () => post("/jobs/cancel");
export const forget = (id) => call("DELETE", `/jobs/${id}`);
export const beginSession = (image) => post("/sessions", { image });
export const session = (id) => get(`/sessions/${id}`);
export const sessions = () => get("/sessions");

const query = (restored) => (restored ? `?restored=${restored}` : "");
export const imageUrl = (id) => `${BASE}/images/${id}/file`;
export const viewUrl = (id) => `${BASE}/images/${id}/view`;
export const thumbUrl = (id) => `${BASE}/images/${id}/thumb`;
export const patchUrl = (job, index, restored) => `${BASE}/jobs/${job}/view/${index}${query(restored)}`;
export const resultUrl = (job, index, restored) => `${BASE}/jobs/${job}/results/${index}${query(restored)}`;
export const runZipUrl = (job) => `${BASE}/jobs/${job}/zip`;
export const sessionZipUrl = (id) => `${BASE}/sessions/${id}/zip`;

const HIDDEN_FOR = 30000; // milliseconds, after which a tab that nobody sees gives up its line

/**
 * Listen to all news. `handlers` are functions by the name of the event; "lost" is called when the line is cut. A
 * browser has six lines to a server for all tabs together: one that is hidden for long takes none.
 */
export function listen(handlers) {
  let source = null, leaving = 0;
  const open = () => {
    if (source && source.readyState !== EventSource.CLOSED) return;
    const line = (source = new EventSource(`${BASE}/events`));
    for (const [name, handle] of Object.entries(handlers)) {
      if (name !== "lost") line.addEventListener(name, (event) => handle(JSON.parse(event.data)));
    }
    line.addEventListener("error", () => {
      handlers.lost();
      // A browser gives up after some refusals, as while the studio starts again.
      if (line.readyState === EventSource.CLOSED) setTimeout(open, 1500);
    });
  };
  document.addEventListener("visibilitychange", () => {
    clearTimeout(leaving);
    if (document.visibilityState === "hidden") leaving = setTimeout(() => source.close(), HIDDEN_FOR);
    else open(); // the first news are of all that there is
  });
  open();
}

/** A bitmap of a file of the server's. */
export async function bitmap(url) {
  const response = await fetch(url);
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error || "That picture cannot be had any more.");
  }
  return createImageBitmap(await response.blob());
}

function plainName(name) {
  return (name || "").replace(/[/\\\u0000-\u001f\u007f]/g, " ").slice(-100);
}
