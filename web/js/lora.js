// @ts-check
// Apply AITK LoRA: the file's card, before anything runs.

import { element } from "./dom.js";
import { inputOf, loaderOf } from "./graph.js";
import { addPanel, whenChanged, whenever, widgetOf } from "./panel.js";
import { bytes } from "./report.js";
import { loraCard, loraDigest } from "./server.js";
import { language, say } from "./words.js";

/** @import { Card, Node } from "./types.d.ts" */

export const LORA = "ApplyAITKLoRA";
const FILE = "aitk_file"; // property of the node: the file that the graph was made with
const FILE_NAME = /\.\w+$/; // a template asks for a file in words, which have none of its endings
const COLOURS = { yes: "aitk-good", no: "aitk-bad", maybe: "aitk-warning" };

/** @type {WeakMap<Node, { fill: (...children: globalThis.Node[]) => void, asked: string }>} */
const seen = new WeakMap();

/**
 * @param {Node} node that was just made
 * @param {() => void} changed called where something changed that the card shows
 */
export function watchLora(node, changed) {
  seen.set(node, { fill: addPanel(node), asked: "" });
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
  const asked = JSON.stringify([query, language()]);
  if (asked === state.asked) return;
  state.asked = asked;
  const card = query && (await loraCard(query));
  // another file may have been chosen meanwhile
  if (asked !== state.asked) return;
  const found = card ? rowsOf(card) : [];
  state.fill(...found);
  const digest = query && card && !("error" in card) ? await loraDigest(query.name) : null;
  if (query && digest && asked === state.asked) compareFile(node, query.name, digest, (note) => state.fill(...note, ...found));
}

/**
 * Compares the file with the one that the graph was made with, and keeps its digest in the graph: so the next one who
 * opens it, from a picture too, is told where their file of this name is another.
 *
 * @param {Node} node
 * @param {string} name of the file
 * @param {string} digest its SHA-256
 * @param {(note: globalThis.Node[]) => void} show
 */
function compareFile(node, name, digest, show) {
  const made = node.properties[FILE];
  if (made?.name !== name || typeof made.sha256 !== "string") {
    node.properties[FILE] = { name, sha256: digest };
  } else if (made.sha256 !== digest) {
    const text = say("card.otherFile", { made: made.sha256.slice(0, 10), yours: digest.slice(0, 10) });
    const keep = () => {
      node.properties[FILE] = { name, sha256: digest };
      show([]);
    };
    const button = element("button", { type: "button", title: say("card.keeps"), onclick: keep }, say("card.keep"));
    show([element("div", { class: "aitk-row aitk-bad" }, element("span", {}, text), button)]);
  }
}

/**
 * @param {Node} node
 * @returns {Record<string, string> | null} null where no file is chosen yet, and where its name comes over a wire
 */
function queryOf(node) {
  const name = String(widgetOf(node, "lora_name")?.value ?? "");
  if (!FILE_NAME.test(name) || inputOf(node, "lora_name")?.link != null) return null;
  /** @type {Record<string, string>} */
  const query = { name };
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
  const rank = card.ranks.length ? say("card.rank", { ranks: card.ranks.join(", ") }) : "";
  /** @type {[string, string][]} */
  const rows = [
    [say("card.trainedFor"), card.trained_for || say("card.notTold")],
    [say("card.type"), [card.format, rank].filter(Boolean).join(", ")],
    [say("card.step"), card.step === null ? "" : String(card.step)],
    [say("card.trigger"), card.trigger_word],
    [say("card.trainedWith"), card.trained_with],
    [say("card.size"), bytes(card.size)],
  ];
  const list = element(
    "dl", { class: "aitk-list" },
    ...rows.filter(([, text]) => text).flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]),
  );
  if (!card.fit) return [list];
  const says = say(`card.${card.fit.verdict}`, { model: card.model ?? "" });
  const row = element("div", { class: `aitk-row ${COLOURS[card.fit.verdict]}` }, element("span", {}, `${says} ${card.fit.words}`));
  return [row, list];
}
