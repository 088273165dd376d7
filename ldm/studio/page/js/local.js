// What this browser remembers: settings in its storage, of each tab and of all, masks (too large for that) in IndexedDB.

const PREFIX = "studio.";

/**
 * A remembered value, or a fallback: this tab's own, or that of the tab used last. A browser that keeps nothing, as in
 * private windows, is no reason to fail.
 */
export function recall(name, fallback) {
  try {
    const text = sessionStorage.getItem(PREFIX + name) ?? localStorage.getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

export function remember(name, value) {
  try {
    for (const storage of [sessionStorage, localStorage]) storage.setItem(PREFIX + name, JSON.stringify(value ?? null));
  } catch {
    // full, or not allowed
  }
}

let opening = null;

function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("studio", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("masks");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

function masks(mode, use) {
  return database().then(
    (db) =>
      new Promise((resolve, reject) => {
        const transaction = db.transaction("masks", mode);
        const request = use(transaction.objectStore("masks"));
        transaction.oncomplete = () => resolve(request.result);
        transaction.onerror = () => reject(transaction.error);
      }),
  );
}

/** Keep the mask of a photograph: `packed` of a Mask. */
export async function keepMask(image, packed) {
  try {
    await masks("readwrite", (store) => store.put({ ...packed, used: Date.now() }, image));
  } catch {
    // not kept: it is still on the page
  }
}

export async function keptMask(image) {
  try {
    return await masks("readonly", (store) => store.get(image));
  } catch {
    return undefined;
  }
}

/** Forget masks that nobody has painted on for long. */
export async function forgetOldMasks(days = 60) {
  try {
    const keys = await masks("readonly", (store) => store.getAllKeys());
    for (const key of keys) {
      const kept = await keptMask(key);
      if (!kept?.used || kept.used < Date.now() - days * 86400000) await masks("readwrite", (store) => store.delete(key));
    }
  } catch {
    // another time
  }
}
