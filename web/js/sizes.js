// @ts-check
// The size that a recipe renders: pipelines/pictures/sizes.py, as far as it goes without the weights.

/** @import { SizeRule } from "./types.d.ts" */

/**
 * A side as it is rendered; null where it is an error.
 *
 * @param {number} side pixels, as asked for
 * @param {SizeRule} rule the recipe's
 * @param {number} minimum the smallest side, in pixels
 * @returns {number | null}
 */
export function snapSide(side, rule, minimum) {
  const smallest = rule.small === "render" ? rule.multiple : minimum;
  if (side <= 0 || (side < minimum && rule.small === "error")) return null;
  const snapped = Math.max(smallest, side - (side % rule.floor));
  return snapped % rule.multiple ? null : snapped;
}

/**
 * The sides next to one that are rendered as they are, downwards and upwards.
 *
 * @param {number} side
 * @param {SizeRule} rule
 * @param {number} minimum
 * @returns {[number, number]}
 */
export function nearestSides(side, rule, minimum) {
  const step = leastCommonMultiple(rule.floor, rule.multiple);
  const smallest = rule.small === "render" ? step : Math.ceil(minimum / step) * step;
  const low = Math.max(smallest, Math.floor(side / step) * step);
  return [low, Math.max(smallest, Math.ceil(side / step) * step)];
}

/**
 * What is shown beside a size: what it becomes, and the sizes next to it that are rendered as they are.
 *
 * @param {number} width
 * @param {number} height
 * @param {SizeRule} rule
 * @param {number} minimum
 * @returns {{ rendered: [number, number] | null, nearest: [number, number][] }}
 */
export function sizeFor(width, height, rule, minimum) {
  const sides = [snapSide(width, rule, minimum), snapSide(height, rule, minimum)];
  const [wide, high] = sides;
  const rendered = wide !== null && high !== null ? /** @type {[number, number]} */ ([wide, high]) : null;
  if (rendered && rendered[0] === width && rendered[1] === height) return { rendered, nearest: [] };
  const [lowWidth, upWidth] = nearestSides(width, rule, minimum);
  const [lowHeight, upHeight] = nearestSides(height, rule, minimum);
  /** @type {[number, number][]} */
  const nearest = [[lowWidth, lowHeight], [upWidth, upHeight]];
  const same = lowWidth === upWidth && lowHeight === upHeight;
  return { rendered, nearest: same ? nearest.slice(0, 1) : nearest };
}

/**
 * @param {number} width
 * @param {number} height
 */
export function sizeText(width, height) {
  return `${width} × ${height}`;
}

/**
 * @param {number} a
 * @param {number} b
 */
function leastCommonMultiple(a, b) {
  let [x, y] = [a, b];
  while (y) [x, y] = [y, x % y];
  return (a / x) * b;
}
