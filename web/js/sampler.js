// @ts-check
// The sampler: its defaults follow the model, what is not used is grey, the size that is rendered stands beside the
// one that is asked for.

import { element } from "./dom.js";
import { following } from "./follow.js";
import { inputOf, modelOf, sourceOf, wired } from "./graph.js";
import { addPanel, button, greyOut, keepHeights, labelOf, setLabel, setWidget, valuesOf, warning, whenChanged, whenever, widgetOf } from "./panel.js";
import { runRows } from "./run.js";
import { sizeFor, sizeText } from "./sizes.js";
import { recipeForImages, unusedInputs } from "./unused.js";
import { say } from "./words.js";

/** @import { Facts, ModelFacts, Node } from "./types.d.ts" */
/** @import { Unused } from "./unused.js" */

export const SAMPLER = "AITKSampler";
const REPORT = "aitk_report"; // of what the node sends when it has run
const HEIGHTS = { prompt: 96, negative_prompt: 64, system_prompt: 64 }; // pixels; four lines, and two
const NEW = Symbol("a node that was just made"); // its values are the definition's, no workflow's

/**
 * @typedef {object} Seen
 * @property {string | null | typeof NEW | undefined} model that the widgets follow: an id; null without one; undefined
 *     after a workflow was loaded, whose values stay
 * @property {Record<string, unknown>} own the defaults of the node's definition
 * @property {(...children: globalThis.Node[]) => void} fill the panel
 * @property {globalThis.Node[]} run what the panel says of the last run
 * @property {string[] | null} recipes all of them, as the definition lists them
 */

/** @type {WeakMap<Node, Seen>} */
const seen = new WeakMap();

/**
 * @param {Node} node that was just made
 * @param {() => void} changed called where something changed that the panel shows
 */
export function watchSampler(node, changed) {
  const recipes = widgetOf(node, "recipe")?.options.values;
  seen.set(node, {
    model: NEW,
    own: valuesOf(node),
    fill: addPanel(node),
    run: [],
    recipes: Array.isArray(recipes) ? [...recipes] : null,
  });
  keepHeights(node, HEIGHTS);
  for (const widget of node.widgets ?? []) whenChanged(widget, changed);
  whenever(node, "onConfigure", () => {
    const state = seen.get(node);
    if (state) state.model = undefined;
    changed();
  });
  whenever(node, "onConnectionsChange", changed);
  whenever(node, "onExecuted", (output) => {
    const state = seen.get(node);
    const report = output?.[REPORT]?.[0];
    if (state && report) state.run = runRows(String(report));
    changed();
  });
}

/**
 * Brings a sampler up to what stands in its graph.
 *
 * @param {Node} node
 * @param {Facts} facts
 */
export function refreshSampler(node, facts) {
  const state = seen.get(node);
  if (!state) return;
  const id = modelOf(node);
  const model = id === null ? null : facts.models[id] ?? null;
  if (model && state.model !== undefined && state.model !== id) follow(node, state, facts, model);
  state.model = id;
  listRecipes(node, state, model);
  const recipe = String(widgetOf(node, "recipe")?.value);
  const images = controlImages(node);
  const wires = { control: images, recipe_options: inputOf(node, "recipe_options")?.link != null };
  const unused = model ? unusedInputs(model, recipe, valuesOf(node), wires) : [];
  for (const name of ["negative_prompt", "system_prompt"]) {
    const found = unused.find((one) => one.input === name);
    greyOut(node, name, found?.why ?? null, !found?.used);
  }
  const way = model && recipeForImages(model, recipe, images);
  state.fill(
    ...(model?.recipes[recipe] ? [sizeRow(node, model, recipe, facts.minimum_side)] : []),
    ...(model && !model.recipes[recipe] ? [warning(say("recipe.missing", { model: model.title, recipe }))] : []),
    ...unused.filter((one) => one.used).map((one) => unusedRow(node, one, way ?? null)),
    ...state.run,
  );
}

/**
 * @param {Node} node
 * @param {Seen} state
 * @param {Facts} facts
 * @param {ModelFacts} model
 */
function follow(node, state, facts, model) {
  const before = typeof state.model === "string" ? facts.models[state.model] ?? null : null;
  for (const [name, value] of Object.entries(following(valuesOf(node), before, model, state.own))) {
    setWidget(node, name, value);
  }
}

/**
 * @param {Node} node
 * @param {Seen} state
 * @param {ModelFacts | null} model
 */
function listRecipes(node, state, model) {
  const widget = widgetOf(node, "recipe");
  if (!widget || !state.recipes) return;
  const wanted = model ? Object.keys(model.recipes) : state.recipes;
  if (String(widget.options.values) !== String(wanted)) widget.options.values = [...wanted];
}

/** @param {Node} node */
function controlImages(node) {
  const link = inputOf(node, "control")?.link;
  const source = node.graph && link != null ? sourceOf(node.graph, link) : null;
  if (link == null) return 0;
  // of a node that is none of ours at least one
  return source?.type === "AITKControlImages" ? wired(source, "IMAGE") : 1;
}

/**
 * @param {Node} node
 * @param {ModelFacts} model
 * @param {string} recipe
 * @param {number} minimum
 */
function sizeRow(node, model, recipe, minimum) {
  const [wide, high] = ["width", "height"].map((name) => widgetOf(node, name));
  const linked = ["width", "height", "latent"].some((name) => inputOf(node, name)?.link != null);
  if (!wide || !high) return element("div");
  const [width, height] = [Number(wide.value), Number(high.value)];
  const { rendered, nearest } = sizeFor(width, height, model.recipes[recipe].size, minimum);
  const snapped = !linked && rendered && nearest.length > 0;
  setLabel(wide, snapped && rendered[0] !== width ? (label) => `${label} → ${rendered[0]}` : null);
  setLabel(high, snapped && rendered[1] !== height ? (label) => `${label} → ${rendered[1]}` : null);
  if (linked) return element("div", { class: "aitk-row" }, say("size.wire"));
  const choose = (/** @type {[number, number]} */ size) => {
    setWidget(node, "width", size[0]);
    setWidget(node, "height", size[1]);
  };
  const asked = sizeText(width, height);
  const text = rendered ? (nearest.length ? `${asked} → ${sizeText(...rendered)}` : asked) : say("size.impossible", { size: asked });
  const buttons = nearest.map((size) =>
    element("button", { type: "button", title: say("size.exact"), onclick: () => choose(size) }, sizeText(...size)),
  );
  const list = element(
    "select", { title: say("size.usual", { model: model.title }), onchange: (/** @type {Event} */ event) => {
      const at = Number(/** @type {HTMLSelectElement} */ (event.target).value);
      choose(model.usual_sizes[at]);
    } },
    element("option", { value: "", disabled: true, selected: true }, say("size.list")),
    ...model.usual_sizes.map((size, at) => element("option", { value: at }, sizeText(...size))),
  );
  return element("div", { class: rendered ? "aitk-row" : "aitk-row aitk-bad" }, element("span", { class: "aitk-size" }, text), ...buttons, list);
}

/**
 * @param {Node} node
 * @param {Unused} one
 * @param {string | null} way a recipe that takes the control images
 */
function unusedRow(node, one, way) {
  const row = warning(`${labelOf(node, one.input)}: ${one.why}`);
  if (one.how === "refused" && one.input === "system_prompt") {
    row.append(button(say("unused.empty"), () => setWidget(node, one.input, "")));
  }
  if (one.input === "control" && way) {
    row.append(button(say("recipe.use", { recipe: way }), () => setWidget(node, "recipe", way)));
  }
  row.classList.toggle("aitk-bad", one.how === "refused");
  return row;
}
