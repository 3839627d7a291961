// @ts-check
// What the pack's part of ComfyUI's server is asked. A graph works without an answer.

// @ts-ignore: ComfyUI serves it
import { api } from "../../../scripts/api.js";

/** @import { BasePart, Card, Facts } from "./types.d.ts" */

let told = false;

/**
 * @param {string} path
 * @param {Record<string, string>} query
 * @returns {Promise<any>}
 */
async function ask(path, query = {}) {
  const answer = await api.fetchApi(`${path}?${new URLSearchParams(query)}`);
  // what refuses says why; a server without these routes says nothing
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok || body.error) throw new Error(body.error ?? `${path} answers with status ${answer.status}`);
  return body;
}

/** @type {Promise<Facts | null> | undefined} */
let facts;

/**
 * What the models state; null where the server does not say, which the console is told once.
 *
 * @returns {Promise<Facts | null>}
 */
export function modelFacts() {
  facts ??= ask("/aitk/models").catch((error) => {
    sayOnce(error);
    return null;
  });
  return facts;
}

/** @type {Record<string, string[]> | null} */
let held = null;
let reading = false;

/**
 * Which models' weights each choice of `weights` holds, by name, as far as the server has read them; null before.
 *
 * @param {() => void} changed called where more is known
 */
export function heldModels(changed) {
  if (!reading) {
    reading = true;
    readOn(changed);
  }
  return held;
}

/** @param {() => void} changed */
async function readOn(changed) {
  for (let more = 1; more; ) {
    const answer = await ask("/aitk/weights").catch(() => null);
    // without an answer the lists stay as they are
    if (!answer) return;
    [held, more] = [answer.weights, answer.more];
    changed();
  }
}

/** Where the lists of files were read anew: what is in them is asked again. */
export function forgetFiles() {
  reading = false;
}

/**
 * The translations of all packs, by language; null where the server does not say.
 *
 * @returns {Promise<Record<string, any> | null>}
 */
export function translations() {
  return ask("/i18n").catch(() => null);
}

/**
 * @param {Record<string, string>} query see nodes/editor/loras.py
 * @returns {Promise<Card | { error: string }>}
 */
export function loraCard(query) {
  return ask("/aitk/lora", query).catch((error) => ({ error: String(error.message ?? error) }));
}

/**
 * @param {string} name of the file
 * @returns {Promise<string | null>} 64 hex digits; null where there is no such file
 */
export async function loraDigest(name) {
  try {
    return (await ask("/aitk/lora/digest", { name })).sha256;
  } catch {
    // its card says why
    return null;
  }
}

/**
 * @param {Record<string, string>} query see nodes/editor/bases.py
 * @returns {Promise<Record<string, BasePart> | null>} by the part's name; null where the choice cannot be opened
 */
export async function baseParts(query) {
  try {
    return (await ask("/aitk/base", query)).parts;
  } catch {
    // the run says why
    return null;
  }
}

/** @param {unknown} error */
export function sayOnce(error) {
  if (told) return;
  told = true;
  console.warn("comfyui-aitk: the editor's helpers are off, graphs run as without them.", error);
}
