// @ts-check
// Load AITK Model: the weights that hold the chosen model come first in the list, and others are named.

import { baseRows } from "./base.js";
import { heldBy, listed } from "./fitting.js";
import { inputOf } from "./graph.js";
import { addPanel, button, setWidget, warning, whenChanged, whenever, widgetOf } from "./panel.js";
import { say } from "./words.js";

/** @import { Facts, Node, Widget } from "./types.d.ts" */

/** @type {WeakMap<Node, { fill: (...children: globalThis.Node[]) => void, given: string[], ours: string[] | null }>} */
const seen = new WeakMap();

/**
 * @param {Node} node that was just made
 * @param {() => void} changed called where something changed that the panel shows
 */
export function watchLoader(node, changed) {
  seen.set(node, { fill: addPanel(node), given: [], ours: null });
  for (const widget of node.widgets ?? []) whenChanged(widget, changed);
  whenever(node, "onConfigure", changed);
  whenever(node, "onConnectionsChange", changed);
}

/**
 * @param {Node} node
 * @param {Facts} facts
 * @param {Record<string, string[]> | null} held see heldModels
 */
export function refreshLoader(node, facts, held) {
  const state = seen.get(node);
  const widget = widgetOf(node, "weights");
  if (!state || !widget) return;
  const rows = held ? heldRows(node, state, widget, facts, held) : [];
  state.fill(...rows, ...baseRows(node));
}

/**
 * Lists the weights that fit first.
 *
 * @param {Node} node
 * @param {{ given: string[], ours: string[] | null }} state
 * @param {Widget} widget of the weights
 * @param {Facts} facts
 * @param {Record<string, string[]>} held see heldModels
 * @returns {globalThis.Node[]} what the panel says of those that are chosen
 */
function heldRows(node, state, widget, facts, held) {
  const known = inputOf(node, "model")?.link == null;
  const id = known ? String(widgetOf(node, "model")?.value) : null;
  const values = widget.options.values;
  if (Array.isArray(values)) {
    // another list than ours: the node's own, or one that was read anew
    if (values !== state.ours) state.given = [...values];
    const wanted = listed(state.given, held, id);
    if (String(wanted) !== String(values)) widget.options.values = state.ours = wanted;
  }
  const weights = inputOf(node, "weights")?.link == null ? String(widget.value) : "";
  // of a model that this version of the pack does not have nothing is said
  const model = id === null ? undefined : facts.models[id];
  const others = id === null ? [] : heldBy(weights, held, id).filter((other) => other in facts.models);
  return model && others.length ? [otherRow(node, weights, others, model.title, facts)] : [];
}

/**
 * @param {Node} node
 * @param {string} weights
 * @param {string[]} others the models that they hold
 * @param {string} model that is chosen: its title
 * @param {Facts} facts
 */
function otherRow(node, weights, others, model, facts) {
  const found = others.map((other) => facts.models[other].title).join(" / ");
  const text = say("weights.other", { weights, found, model });
  const buttons = others.map((other) => button(say("weights.use", { model: other }), () => setWidget(node, "model", other)));
  const row = warning(text, ...buttons);
  row.classList.add("aitk-bad");
  return row;
}
