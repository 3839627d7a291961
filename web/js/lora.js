// @ts-check
// Apply AITK LoRA: the file's card, before anything runs.

import { element } from "./dom.js";
import { inputOf, loaderOf } from "./graph.js";
import { addPanel, whenChanged, whenever, widgetOf } from "./panel.js";
import { bytes } from "./report.js";
import { loraCard } from "./server.js";

/** @import { Card, Node } from "./types.d.ts" */

export const LORA = "ApplyAITKLoRA";
const COLOURS = { yes: "aitk-good", no: "aitk-bad", maybe: "aitk-warning" };

/** @type {WeakMap<Node, { fill: (...children: globalThis.Node[]) => void, asked: string, card: globalThis.Node[], notes: globalThis.Node[] }>} */
const seen = new WeakMap();

/**
 * @param {Node} node that was just made
 * @param {() => void} changed called where something changed that the card shows
 */
export function watchLora(node, changed) {
  seen.set(node, { fill: addPanel(node), asked: "", card: [], notes: [] });
  for (const widget of node.widgets ?? []) whenChanged(widget, changed);
  whenever(node, "onConfigure", changed);
  whenever(node, "onConnectionsChange", changed);
}

/**
 * Asks for the card where the file or the model is another one.
 *
 * @param {Node} node
 */
export async function refreshLora(node) {
  const state = seen.get(node);
  if (!state) return;
  const query = queryOf(node);
  const asked = JSON.stringify(query);
  if (asked === state.asked) return;
  state.asked = asked;
  const found = query ? rowsOf(await loraCard(query)) : [];
  // another file may have been chosen meanwhile
  if (asked !== state.asked) return;
  state.card = found;
  state.fill(...state.card, ...state.notes);
}

/**
 * What the node says beside the card.
 *
 * @param {Node} node
 * @param {globalThis.Node[]} notes
 */
export function noteOnLora(node, notes) {
  const state = seen.get(node);
  if (!state) return;
  state.notes = notes;
  state.fill(...state.card, ...state.notes);
}

/**
 * @param {Node} node
 * @returns {Record<string, string> | null} null where the file's name comes over a wire
 */
function queryOf(node) {
  const name = widgetOf(node, "lora_name")?.value;
  if (!name || inputOf(node, "lora_name")?.link != null) return null;
  /** @type {Record<string, string>} */
  const query = { name: String(name) };
  const loader = loaderOf(node);
  for (const input of loader ? ["model", "weights", "text_encoder", "vae"] : []) {
    const value = loader && widgetOf(loader, input)?.value;
    if (loader && value && inputOf(loader, input)?.link == null) query[input] = String(value);
  }
  return query;
}

/**
 * @param {Card | { error: string }} card
 * @returns {globalThis.Node[]}
 */
function rowsOf(card) {
  if ("error" in card) return [element("div", { class: "aitk-row aitk-bad" }, element("span", {}, card.error))];
  const rank = card.ranks.length ? `rank ${card.ranks.join(", ")}` : "";
  /** @type {[string, string][]} */
  const rows = [
    ["Trained for", card.trained_for || "not told"],
    ["Type", [card.format, rank].filter(Boolean).join(", ")],
    ["Step", card.step === null ? "" : String(card.step)],
    ["Trigger word", card.trigger_word],
    ["Trained with", card.trained_with],
    ["Size", bytes(card.size)],
  ];
  const list = element(
    "dl", { class: "aitk-list" },
    ...rows.filter(([, text]) => text).flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]),
  );
  if (!card.fit) return [list];
  const says = { yes: `Fits ${card.model}.`, no: `Does not fit ${card.model}.`, maybe: `May fit ${card.model}.` }[card.fit.verdict];
  const row = element("div", { class: `aitk-row ${COLOURS[card.fit.verdict]}` }, element("span", {}, `${says} ${card.fit.words}`));
  return [row, list];
}
