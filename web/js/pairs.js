// @ts-check
// Pairs of pictures that a comparing node sends: nodes/page_pairs.py.

import { say } from "./words.js";

/** @import { Key } from "./words.js" */

/**
 * @typedef {{ filename: string, subfolder: string, type: string }} Place of a picture on ComfyUI's server
 * @typedef {object} Pair
 * @property {string} title
 * @property {string} words
 * @property {Record<string, number | null>} metrics empty where the two were not compared
 * @property {Place | null} trainer
 * @property {Place | null} ours
 * @property {Place | null} heat_map
 * @typedef {{ pairs: Pair[], more: number }} Shown
 */

/** @typedef {(value: number) => string} InWords */

/** @type {(key: Key) => InWords} */
const worded = (key) => (value) => say(key, { value: short(value) });

/** @type {[string, () => string, InWords][]} */
const METRICS = [
  ["max", () => say("viewer.max"), worded("viewer.ofLevels")],
  ["mean", () => say("viewer.mean"), worded("viewer.levels")],
  ["share", () => say("viewer.share"), (value) => `${short(100 * value)} %`],
  ["psnr", () => "PSNR", (value) => `${short(value)} dB`],
  ["ssim", () => "SSIM", worded("viewer.oneIsEqual")],
  ["lpips", () => "LPIPS", worded("viewer.zeroIsEqual")],
];

/**
 * @param {unknown} text JSON
 * @returns {Shown | null}
 */
export function pairsOf(text) {
  if (typeof text !== "string") return null;
  const found = JSON.parse(text);
  return Array.isArray(found.pairs) && found.pairs.length ? found : null;
}

/**
 * The farthest apart first: what one wants to look at. Those that were not compared come last.
 *
 * @param {Pair[]} pairs
 */
export function inOrder(pairs) {
  const apart = (/** @type {Pair} */ pair) => pair.metrics.mean ?? -1;
  return [...pairs].sort((one, other) => apart(other) - apart(one));
}

/**
 * What was measured, in words.
 *
 * @param {Pair["metrics"]} metrics
 * @returns {[string, string][]}
 */
export function numbers(metrics) {
  return METRICS.flatMap(([key, label, text]) => {
    const value = metrics[key];
    return value === null || value === undefined ? [] : [/** @type {[string, string]} */ ([label(), text(value)])];
  });
}

/** @param {number} value */
function short(value) {
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(1);
  return String(Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3)));
}
