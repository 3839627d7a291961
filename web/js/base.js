// @ts-check
// Load AITK Model: whether its files are those that the graph was made with, before anything runs.

import { compareBase, keepOwn, withReport } from "./base_files.js";
import { element } from "./dom.js";
import { inputOf, loaderOf } from "./graph.js";
import { warning, whenever, widgetOf } from "./panel.js";
import { parsed } from "./run.js";
import { baseParts } from "./server.js";
import { say } from "./words.js";

/** @import { Difference } from "./base_files.js" */
/** @import { Report } from "./report.js" */
/** @import { BasePart, Node } from "./types.d.ts" */

const FILES = "aitk_base"; // property of the node: the files that the graph was made with
const CHOICE = ["model", "weights", "repo_id", "text_encoder", "vae"]; // widgets that say which files are meant
const REPORT = "aitk_report"; // of what a sampler sends when it has run

/**
 * @typedef {object} Seen
 * @property {() => void} changed see watchBase
 * @property {string} asked the choice whose files were asked for last
 * @property {Record<string, BasePart>} parts its files on this machine
 * @property {Difference[]} differences between them and the graph's
 * @property {Report | null} report of the last run
 */

/** @type {WeakMap<Node, Seen>} */
const seen = new WeakMap();
let readings = 0; // of the lists of files

/**
 * @param {Node} node that was just made: Load AITK Model
 * @param {() => void} changed called where there is something else to show
 */
export function watchBase(node, changed) {
  /** @type {Seen} */
  const state = { changed, asked: "", parts: {}, differences: [], report: null };
  seen.set(node, state);
  // a graph that is loaded into the node was made with other files
  whenever(node, "onConfigure", () => (state.asked = ""));
}

/**
 * A run may have read a file whole, or downloaded it: then more is known of it.
 *
 * @param {Node} sampler that was just made
 */
export function watchRuns(sampler) {
  whenever(sampler, "onExecuted", (output) => {
    const loader = loaderOf(sampler);
    const state = loader && seen.get(loader);
    const text = output?.[REPORT]?.[0];
    if (!state || !text) return;
    state.report = parsed(String(text));
    state.asked = "";
    state.changed();
  });
}

/** Where the lists of files were read anew: files may have been replaced. */
export function forgetBases() {
  readings += 1;
}

/**
 * Asks for the files where the choice is another one, and compares them with those that the graph was made with. It
 * keeps what tells them: so the next one who opens it, from a picture too, is told where their files are others.
 *
 * @param {Node} node
 */
export async function refreshBase(node) {
  const state = seen.get(node);
  if (!state) return;
  const query = queryOf(node);
  const asked = JSON.stringify([query, readings]);
  if (asked === state.asked) return;
  state.asked = asked;
  // those of the former choice must not be taken for this one's
  state.differences = [];
  const found = query && (await baseParts(query));
  // another file may have been chosen meanwhile
  if (asked !== state.asked) return;
  state.parts = withReport(found ?? {}, state.report);
  if (query && found) {
    const { kept, differences } = compareBase(node.properties[FILES], query, state.parts);
    node.properties[FILES] = kept;
    state.differences = differences;
  }
  state.changed();
}

/**
 * What the panel says of files that are not the graph's.
 *
 * @param {Node} node
 * @returns {globalThis.Node[]}
 */
export function baseRows(node) {
  const state = seen.get(node);
  return state ? state.differences.map((difference) => differenceRow(node, state, difference)) : [];
}

/**
 * @param {Node} node
 * @param {Seen} state
 * @param {Difference} difference
 */
function differenceRow(node, state, difference) {
  const { file, how, made, yours, parts } = difference;
  const keep = () => {
    node.properties[FILES] = keepOwn(node.properties[FILES], parts, state.parts);
    state.differences = state.differences.filter((other) => other !== difference);
    state.changed();
  };
  const button = element("button", { type: "button", title: say("base.keeps"), onclick: keep }, say("card.keep"));
  return warning(say(`base.${how}`, { file, made, yours }), button);
}

/**
 * @param {Node} node
 * @returns {Record<string, string> | null} null where a part of the choice comes over a wire
 */
function queryOf(node) {
  if (CHOICE.some((name) => inputOf(node, name)?.link != null)) return null;
  return Object.fromEntries(CHOICE.map((name) => [name, String(widgetOf(node, name)?.value ?? "")]));
}
