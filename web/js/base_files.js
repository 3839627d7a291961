// @ts-check
// Whether a model's files are those that a graph was made with. Sizes and digests are compared, and no file is read.

import { bytes } from "./report.js";

/** @import { BaseFile, BasePart } from "./types.d.ts" */
/** @import { Report } from "./report.js" */

/**
 * @typedef {Pick<BaseFile, "bytes" | "sampled" | "sha256">} KeptFile
 * @typedef {{ choice: string, files: KeptFile[] }} KeptPart
 * @typedef {{ model: string, parts: Record<string, KeptPart> }} Kept what a graph keeps: of names those alone that it
 *     says anyway
 */

/**
 * @typedef {object} Difference
 * @property {string} file for people
 * @property {"size" | "content"} how
 * @property {string} made size of the one that the graph was made with
 * @property {string} yours size of the own one
 * @property {string[]} parts that it holds
 */

const MOST_NAMES = 2; // of files that differ alike; a model may have thirty

/**
 * Compares the files of this machine with what a graph keeps.
 *
 * @param {unknown} made the graph's property; other people write graphs
 * @param {Record<string, string>} query the workflow's `model`, `weights`, `repo_id`, `text_encoder` and `vae`
 * @param {Record<string, BasePart>} parts of this machine
 * @returns {{ kept: Kept, differences: Difference[] }} `kept`: what the graph keeps from now on. Where it was made with
 *     the same files that is all that is known of them; where with others, what it kept; and of another choice the own.
 */
export function compareBase(made, query, parts) {
  const before = partsOf(made, query);
  /** @type {Kept} */
  const kept = { model: query.model, parts: { ...before } };
  /** @type {Map<string, Difference>} */
  const found = new Map();
  for (const [part, own] of Object.entries(parts)) {
    const old = before[part];
    const difference = old?.choice === own.choice ? differenceOf(old.files, own, part) : null;
    if (!difference) {
      kept.parts[part] = old?.choice === own.choice ? { ...old, files: own.files.map((file, at) => known(file, old.files[at])) } : keptPart(own);
      continue;
    }
    // a file that holds several parts is told once
    const same = found.get(JSON.stringify(difference));
    if (same) same.parts.push(part);
    else found.set(JSON.stringify(difference), { ...difference, parts: [part] });
  }
  return { kept, differences: [...found.values()] };
}

/**
 * What a graph keeps where a user takes their own files for some parts.
 *
 * @param {Kept} kept
 * @param {string[]} names of the parts
 * @param {Record<string, BasePart>} parts of this machine
 * @returns {Kept}
 */
export function keepOwn(kept, names, parts) {
  return { ...kept, parts: { ...kept.parts, ...Object.fromEntries(names.map((name) => [name, keptPart(parts[name])])) } };
}

/**
 * The files of this machine with the digests that a run's report tells.
 *
 * @param {Record<string, BasePart>} parts
 * @param {Report | null} report of a run, which may have had other files: those of its parts say nothing
 * @returns {Record<string, BasePart>}
 */
export function withReport(parts, report) {
  const { weights, files } = report?.model ?? {};
  if (!Array.isArray(files)) return parts;
  return Object.fromEntries(
    Object.entries(parts).map(([part, own]) => {
      const ran = files.filter((file) => file.parts?.includes(part));
      const same =
        (typeof weights === "string" ? weights : weights?.[part]) === own.source &&
        ran.length === own.files.length &&
        own.files.every(({ name, bytes: size }, at) => ran[at].name === name && ran[at].bytes === size);
      return [part, same ? { ...own, files: own.files.map((file, at) => ({ ...file, sha256: file.sha256 ?? ran[at].sha256 })) } : own];
    }),
  );
}

/**
 * @param {any} made
 * @param {Record<string, string>} query
 * @returns {Record<string, KeptPart>} those that can be understood and are of this choice
 */
function partsOf(made, query) {
  if (made?.model !== query.model || typeof made.parts !== "object") return {};
  const chosen = [query.weights, query.repo_id.trim(), query.text_encoder, query.vae];
  const whole = (/** @type {any} */ file) => typeof file?.bytes === "number";
  const fits = (/** @type {any} */ part) => chosen.includes(part?.choice) && Array.isArray(part.files) && part.files.every(whole);
  return Object.fromEntries(Object.entries(made.parts ?? {}).filter(([, part]) => fits(part)));
}

/**
 * @param {BasePart} part
 * @returns {KeptPart}
 */
function keptPart({ choice, files }) {
  return { choice, files: files.map((file) => known(file)) };
}

/**
 * All that is known of a file: here, and by the graph.
 *
 * @param {KeptFile} own
 * @param {KeptFile} [made]
 * @returns {KeptFile}
 */
function known(own, made) {
  const sha256 = own.sha256 ?? made?.sha256;
  return { bytes: own.bytes, sampled: own.sampled, ...(sha256 ? { sha256 } : {}) };
}

/**
 * @param {KeptFile[]} made
 * @param {BasePart} own
 * @param {string} part
 * @returns {Omit<Difference, "parts"> | null}
 */
function differenceOf(made, own, part) {
  const paired = made.length === own.files.length;
  const places = [...own.files.keys()].filter((at) => !paired || !alike(made[at], own.files[at]));
  // of files that are divided otherwise all are others
  if (paired && !places.length) return null;
  const names = places.map((at) => own.files[at].name);
  const theirs = total(paired ? places.map((at) => made[at]) : made);
  const ours = total(places.map((at) => own.files[at]));
  const units = bytes(theirs) === bytes(ours) ? (/** @type {number} */ count) => `${count} bytes` : bytes;
  const file = nameOf(own, part, names);
  return { file, how: theirs === ours ? "content" : "size", made: units(theirs), yours: units(ours) };
}

/**
 * @param {KeptFile} made
 * @param {KeptFile} own
 */
function alike(made, own) {
  if (made.bytes !== own.bytes) return false;
  // the whole file says more than pieces of it
  if (made.sha256 && own.sha256) return made.sha256 === own.sha256;
  return !made.sampled || !own.sampled || made.sampled === own.sampled;
}

/** @param {KeptFile[]} files */
function total(files) {
  return files.reduce((sum, file) => sum + file.bytes, 0);
}

/**
 * @param {BasePart} own
 * @param {string} part
 * @param {string[]} names
 */
function nameOf({ source }, part, names) {
  if (names.length === 1 && `/${source}`.endsWith(`/${names[0]}`)) return source;
  const shown = names.slice(0, MOST_NAMES).join(", ");
  return `${source}: ${part}/${shown}${names.length > MOST_NAMES ? ", …" : ""}`;
}
