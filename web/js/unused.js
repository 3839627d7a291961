// @ts-check
// Which of the sampler's inputs the chosen model and recipe do not use, and why.

/** @import { ModelFacts } from "./types.d.ts" */

/**
 * @typedef {object} Unused
 * @property {string} input
 * @property {"ignored" | "refused"} how ignored: it changes nothing; refused: the run is an error if it is used
 * @property {string} why
 * @property {boolean} used whether it holds something: a text, a wire
 */

/**
 * @param {ModelFacts} model
 * @param {string} name of the recipe
 * @param {Record<string, unknown>} values widget's name -> its value
 * @param {{ control: number, recipe_options: boolean }} wires how many control images, and whether options come in
 * @returns {Unused[]}
 */
export function unusedInputs(model, name, values, wires) {
  const recipe = model.recipes[name];
  if (!recipe) return [];
  const holds = (/** @type {string} */ input) => {
    if (input === "control") return wires.control > 0;
    if (input === "recipe_options") return wires.recipe_options;
    return String(values[input] ?? "").trim() !== "";
  };
  /** @type {Unused[]} */
  const found = [];
  for (const how of /** @type {const} */ (["refused", "ignored"])) {
    for (const [input, why] of Object.entries(recipe[how])) found.push({ input, how, why, used: holds(input) });
  }
  const scale = Number(values.guidance_scale);
  if (recipe.guided_above !== null && scale <= recipe.guided_above) {
    const why = `guidance_scale is ${scale}: a negative prompt is used above ${recipe.guided_above}.`;
    found.push({ input: "negative_prompt", how: "ignored", why, used: holds("negative_prompt") });
  }
  if (recipe.control_images > 0 && wires.control > recipe.control_images) {
    const most = recipe.control_images;
    const other = Object.keys(model.recipes).find((one) => model.recipes[one].control_images >= wires.control);
    const why = `It takes at most ${most} control image${most === 1 ? "" : "s"} in the recipe ‘${name}’; connected: ${wires.control}.`;
    found.push({ input: "control", how: "refused", why: other ? `${why} ‘${other}’ takes them.` : why, used: true });
  }
  return found;
}

/**
 * The recipe that takes what the chosen one refuses; null where there is none.
 *
 * @param {ModelFacts} model
 * @param {string} name of the recipe
 * @param {number} images connected
 */
export function recipeForImages(model, name, images) {
  if (!images || (model.recipes[name]?.control_images ?? 0) >= images) return null;
  return Object.keys(model.recipes).find((one) => model.recipes[one].control_images >= images) ?? null;
}
