// @ts-check
// AITK Recipe Options: what none of its samplers reads is grey, and what stops their run is told.

import { inputOf, modelOf, optionsOf } from "./graph.js";
import { addPanel, button, greyOut, labelOf, setWidget, valuesOf, warning, whenChanged, whenever, widgetOf } from "./panel.js";
import { whoDoesNotRead } from "./unused.js";
import { say } from "./words.js";

/** @import { Facts, Node } from "./types.d.ts" */
/** @import { User } from "./unused.js" */

/** @type {WeakMap<Node, { own: Record<string, unknown>, fill: (...children: globalThis.Node[]) => void }>} */
const seen = new WeakMap();

/**
 * @param {Node} node that was just made
 * @param {() => void} changed called where something changed that the panel shows
 */
export function watchOptions(node, changed) {
  // a new node's values are the definition's
  seen.set(node, { own: valuesOf(node), fill: addPanel(node) });
  for (const widget of node.widgets ?? []) whenChanged(widget, changed);
  whenever(node, "onConfigure", changed);
  whenever(node, "onConnectionsChange", changed);
}

/**
 * @param {Node} node
 * @param {(User | null)[]} users the samplers that it leads to; null for one whose model or recipe is not told
 */
export function refreshOptions(node, users) {
  const state = seen.get(node);
  if (!state) return;
  /** @type {globalThis.Node[]} */
  const found = [];
  for (const [name, own] of Object.entries(state.own)) {
    // what comes over a wire is not known before the run
    const without = inputOf(node, name)?.link == null ? whoDoesNotRead(name, users) : null;
    const isChanged = widgetOf(node, name)?.value !== own;
    const why = without && say("options.unread", { model: without.user.model.title, recipe: without.user.recipe });
    greyOut(node, name, without?.all ? why : null, !isChanged);
    if (why && isChanged) {
      const back = button(say("options.back"), () => setWidget(node, name, own));
      const row = warning(`${labelOf(node, name)}: ${why} ${say("options.error")}`, back);
      row.classList.add("aitk-bad");
      found.push(row);
    }
  }
  state.fill(...found);
}

/**
 * Which samplers each AITK Recipe Options leads to.
 *
 * @param {Iterable<Node>} samplers
 * @param {Facts} facts
 * @returns {Map<Node, (User | null)[]>}
 */
export function usersOfOptions(samplers, facts) {
  /** @type {Map<Node, (User | null)[]>} */
  const found = new Map();
  for (const sampler of samplers) {
    const options = optionsOf(sampler);
    if (options) found.set(options, [...(found.get(options) ?? []), userOf(sampler, facts)]);
  }
  return found;
}

/**
 * @param {Node} sampler
 * @param {Facts} facts
 * @returns {User | null}
 */
function userOf(sampler, facts) {
  const model = facts.models[modelOf(sampler) ?? ""];
  const recipe = inputOf(sampler, "recipe")?.link == null ? String(widgetOf(sampler, "recipe")?.value) : "";
  return model?.recipes[recipe] ? { model, recipe } : null;
}
