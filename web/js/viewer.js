// @ts-check
// Pairs of pictures in a dialog: a slider over both, side by side, or the heat map, with the numbers.

import { element } from "./dom.js";
import { inOrder, numbers, pairsOf } from "./pairs.js";
import { addPanel, whenever } from "./panel.js";
import { say } from "./words.js";

/** @import { Api, Node } from "./types.d.ts" */
/** @import { Pair, Shown } from "./pairs.js" */

export const COMPARING = ["AITKComparePreviews", "AITKReplayPreviews"];
const KEY = "aitk_pairs"; // of what the nodes send when they have run
const NAMES = { trainer: () => "AI Toolkit", ours: () => say("viewer.ours"), heat_map: () => say("viewer.heat") };
const MODES = /** @type {const} */ (["slider", "side", "heat"]);

/** @typedef {typeof MODES[number]} Mode */

/**
 * @param {Node} node that was just made
 * @param {Api} api
 */
export function watchComparison(node, api) {
  const fill = addPanel(node);
  whenever(node, "onExecuted", (output) => {
    const shown = pairsOf(output?.[KEY]?.[0]);
    if (!shown) return;
    const count = shown.pairs.length === 1 ? shown.pairs[0].words : say("viewer.count", { count: shown.pairs.length });
    const button = element("button", { type: "button", onclick: () => open(shown, api) }, say("viewer.compare"));
    fill(element("div", { class: "aitk-row" }, element("span", {}, count), button));
  });
}

/**
 * @param {Shown} shown
 * @param {Api} api
 */
function open(shown, api) {
  const pairs = inOrder(shown.pairs);
  const state = { at: 0, mode: /** @type {Mode} */ ("slider"), cut: 50 };
  const title = element("h2");
  const words = element("p");
  const stage = element("div", { class: "aitk-stage" });
  const list = element("dl", { class: "aitk-list" });
  const choice = element(
    "select", { "aria-label": say("viewer.pair"), onchange: (/** @type {Event} */ event) => show(Number(/** @type {HTMLSelectElement} */ (event.target).value)) },
    ...pairs.map((pair, at) => element("option", { value: at }, pair.title)),
  );
  const modes = MODES.map((mode) => element("button", { type: "button", onclick: () => { state.mode = mode; show(state.at); } }, say(`viewer.${mode}`)));
  const dialog = /** @type {HTMLDialogElement} */ (element(
    "dialog", { class: "aitk-viewer aitk-panel", "aria-label": say("viewer.title") },
    element("header", {}, title, choice, ...modes, element("button", { type: "button", "aria-label": say("viewer.close"), onclick: () => dialog.close() }, "✕")),
    words, stage, list,
    ...(shown.more ? [element("p", {}, say("viewer.more", { count: shown.more }))] : []),
  ));

  /** @param {number} at */
  function show(at) {
    const pair = pairs[at];
    state.at = at;
    title.textContent = pair.title;
    words.textContent = pair.words;
    /** @type {HTMLSelectElement} */ (choice).value = String(at);
    modes.forEach((button, place) => button.setAttribute("aria-pressed", String(MODES[place] === state.mode)));
    list.replaceChildren(...numbers(pair.metrics).flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]));
    stage.replaceChildren(...views(pair, state, api));
  }

  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("keydown", (event) => {
    // the editor has keys of its own
    event.stopPropagation();
    const by = { j: 1, k: -1 }[event.key];
    if (by && pairs[state.at + by]) show(state.at + by);
  });
  document.body.append(dialog);
  show(0);
  dialog.showModal();
}

/**
 * @param {Pair} pair
 * @param {{ mode: Mode, cut: number }} state
 * @param {Api} api
 */
function views(pair, state, api) {
  if (state.mode === "heat") return [framed(pair, "heat_map", api)];
  if (state.mode === "side" || !pair.trainer || !pair.ours) {
    return [framed(pair, "trainer", api), framed(pair, "ours", api), framed(pair, "heat_map", api)];
  }
  const front = picture(pair, "trainer", api);
  front.classList.add("aitk-front");
  const box = element("div", { class: "aitk-slider" }, picture(pair, "ours", api), front, element("span", { class: "aitk-left" }, NAMES.trainer()), element("span", { class: "aitk-right" }, NAMES.ours()));
  const range = /** @type {HTMLInputElement} */ (element("input", {
    type: "range", min: 0, max: 100, step: 0.5, value: state.cut, "aria-label": say("viewer.part", { name: NAMES.trainer() }),
  }));
  const move = (/** @type {number} */ value) => {
    state.cut = Math.min(100, Math.max(0, value));
    range.value = String(state.cut);
    box.style.setProperty("--cut", `${state.cut}%`);
  };
  const follow = (/** @type {PointerEvent} */ event) => {
    const place = box.getBoundingClientRect();
    move((100 * (event.clientX - place.left)) / place.width);
  };
  range.addEventListener("input", () => move(Number(range.value)));
  box.addEventListener("pointerdown", (event) => {
    box.setPointerCapture(event.pointerId);
    follow(event);
  });
  box.addEventListener("pointermove", (event) => {
    if (box.hasPointerCapture(event.pointerId)) follow(event);
  });
  move(state.cut);
  return [box, range];
}

/**
 * @param {Pair} pair
 * @param {keyof typeof NAMES} role
 * @param {Api} api
 */
function framed(pair, role, api) {
  return element("figure", {}, element("figcaption", {}, NAMES[role]()), picture(pair, role, api));
}

/**
 * @param {Pair} pair
 * @param {keyof typeof NAMES} role
 * @param {Api} api
 */
function picture(pair, role, api) {
  const file = pair[role];
  if (!file) return element("p", {}, say("viewer.absent", { name: NAMES[role]() }));
  const query = new URLSearchParams({ filename: file.filename, subfolder: file.subfolder, type: file.type });
  return element("img", { src: api.apiURL(`/view?${query}`), alt: `${NAMES[role]()}, ${pair.title}`, draggable: "false" });
}
