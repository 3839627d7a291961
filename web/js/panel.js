// @ts-check
// A panel below a node's widgets, as high as what stands in it; in the classic canvas and in Vue nodes.

import { element } from "./dom.js";
import { inputOf } from "./graph.js";
import { say } from "./words.js";

/** @import { Node, Widget } from "./types.d.ts" */

const NAME = "aitk_panel";
const NEXT_FRAME = 50; // milliseconds
const MARGIN = 4; // pixels around it

/**
 * Adds a panel as the last widget of a node, so that saved workflows, which know widgets by position, are not changed.
 *
 * @param {Node} node
 * @returns {(...children: globalThis.Node[]) => void} puts these in the place of what stood in it
 */
export function addPanel(node) {
  const content = element("div", { class: "aitk-content" });
  const outer = element("div", { class: "aitk-panel" }, content);
  let height = 0;
  const whole = () => (height ? height + 2 * MARGIN : 0);
  const widget = node.addDOMWidget(NAME, NAME, outer, {
    serialize: false,
    hideOnZoom: false,
    margin: MARGIN,
    getMinHeight: whole,
    getMaxHeight: whole,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  new ResizeObserver(() => {
    if (content.offsetHeight === height) return;
    height = content.offsetHeight;
    outer.style.minHeight = `${height}px`;
    node.setDirtyCanvas(true, true);
    // the classic canvas makes a node higher while it draws it, and shows that in the next frame alone
    setTimeout(() => node.setDirtyCanvas(true, true), NEXT_FRAME);
  }).observe(content);
  return (...children) => content.replaceChildren(...children);
}

/**
 * Keeps text boxes from shrinking to a line in the classic canvas, which shares a node's height among them and what
 * appears below them, such as the notes of a run.
 *
 * @param {Node} node
 * @param {Record<string, number>} heights widget's name -> pixels
 */
export function keepHeights(node, heights) {
  for (const widget of node.widgets ?? []) {
    if (widget.name in heights && widget.element) widget.options.getMinHeight = () => heights[widget.name];
  }
}

/**
 * @param {Node} node
 * @param {string} name
 * @returns {Widget | undefined}
 */
export function widgetOf(node, name) {
  return (node.widgets ?? []).find((widget) => widget.name === name);
}

/**
 * Widgets' values by name, without what the editor adds.
 *
 * @param {Node} node
 */
export function valuesOf(node) {
  return Object.fromEntries((node.widgets ?? []).filter(({ name }) => !name.startsWith("$$") && name !== NAME).map(({ name, value }) => [name, value]));
}

/**
 * Sets a widget as a user does.
 *
 * @param {Node} node
 * @param {string} name
 * @param {unknown} value
 */
export function setWidget(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value, undefined, node);
  node.setDirtyCanvas(true, true);
}

/**
 * Greys a widget, or takes that back. Its tooltip says why; in the classic canvas a text box has neither that nor a
 * label, and its placeholder says it.
 *
 * @param {Node} node
 * @param {string} name
 * @param {string | null} why it is not used; null where it is
 * @param {boolean} locked whether it takes no input either
 */
export function greyOut(node, name, why, locked) {
  const widget = widgetOf(node, name);
  if (!widget) return;
  widget.disabled = why !== null && locked;
  const label = labelOf(node, name);
  setLabel(widget, why === null ? null : () => say("unused.label", { label }));
  setTooltip(widget, why);
  if (widget.element instanceof HTMLTextAreaElement) {
    widget.element.placeholder = why === null ? name : say("unused.box", { label, why });
    widget.element.title = why ?? "";
    widget.element.classList.toggle("aitk-unused", why !== null);
  }
}

/** @type {WeakMap<Widget, string | undefined>} what stood there before the extension's own label */
const labels = new WeakMap();
/** @type {WeakMap<Widget, string | undefined>} and before its own tooltip */
const tooltips = new WeakMap();

/**
 * What a user reads beside an input: a translation, or a name that somebody gave it.
 *
 * @param {Node} node
 * @param {string} name
 */
export function labelOf(node, name) {
  const widget = widgetOf(node, name);
  const shown = widget && (labels.has(widget) ? labels.get(widget) : widget.label);
  const input = inputOf(node, name);
  return shown ?? input?.label ?? input?.localized_name ?? name;
}

/**
 * @param {Widget} widget
 * @param {string | null} text of ours; null puts back what was there
 */
function setTooltip(widget, text) {
  if (text !== null && !tooltips.has(widget)) tooltips.set(widget, widget.tooltip);
  if (tooltips.has(widget)) widget.tooltip = text ?? tooltips.get(widget);
  if (text === null) tooltips.delete(widget);
}

/**
 * Shows a label of ours on a widget; null puts back the one that was there: a user's, a translation's.
 *
 * @param {Widget} widget
 * @param {((label: string) => string) | null} made of the label that was there
 */
export function setLabel(widget, made) {
  if (made === null) {
    if (labels.has(widget)) widget.label = labels.get(widget);
    labels.delete(widget);
    return;
  }
  if (!labels.has(widget)) labels.set(widget, widget.label);
  widget.label = made(labels.get(widget) ?? widget.name);
}

/**
 * A row that says something amiss.
 *
 * @param {string} text
 * @param {...globalThis.Node} buttons
 */
export function warning(text, ...buttons) {
  return element("div", { class: "aitk-row aitk-warning" }, element("span", {}, text), ...buttons);
}

/**
 * @param {string} text
 * @param {() => void} act
 */
export function button(text, act) {
  return element("button", { type: "button", onclick: act }, text);
}

/**
 * Calls `after` where the node's own method of this name has run; of this node alone.
 *
 * @param {Node} node
 * @param {"onConfigure" | "onConnectionsChange" | "onExecuted" | "onRemoved"} name
 * @param {(...given: any[]) => void} after
 */
export function whenever(node, name, after) {
  const before = node[name];
  node[name] = function (/** @type {any[]} */ ...given) {
    const result = before?.apply(this, /** @type {any} */ (given));
    after(...given);
    return result;
  };
}

/**
 * Calls `after` where a widget's value was changed.
 *
 * @param {Widget} widget
 * @param {() => void} after
 */
export function whenChanged(widget, after) {
  const before = widget.callback;
  widget.callback = function (/** @type {any[]} */ ...given) {
    const result = before?.apply(this, /** @type {any} */ (given));
    after();
    return result;
  };
}
