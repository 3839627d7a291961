// @ts-check
// Which of the sampler's widgets follow when another model is chosen.

/** @import { ModelFacts } from "./types.d.ts" */

/**
 * The values that change: of widgets that still stand at a default, the former model's or the node's own. What a user
 * typed stays.
 *
 * @param {Record<string, unknown>} values widget's name -> its value
 * @param {ModelFacts | null} before the model until now; null where there was none
 * @param {ModelFacts} after the model that was chosen
 * @param {Record<string, unknown>} own widget's name -> the default of the node's definition
 * @returns {Record<string, unknown>}
 */
export function following(values, before, after, own) {
  /** @type {Record<string, unknown>} */
  const changes = {};
  for (const [name, value] of Object.entries(after.defaults)) {
    const untouched = [own[name], /** @type {Record<string, unknown>} */ (before?.defaults ?? {})[name]];
    if (name in values && values[name] !== value && untouched.includes(values[name])) changes[name] = value;
  }
  const recipe = values.recipe;
  if (typeof recipe === "string" && !(recipe in after.recipes)) changes.recipe = Object.keys(after.recipes)[0];
  return changes;
}
