// @ts-check
// Which of the sampler's inputs, and which recipe options, the chosen model and recipe do not use, and why.

import { say } from "./words.js";

/** @import { ModelFacts, RecipeFacts } from "./types.d.ts" */

/**
 * @typedef {object} Unused
 * @property {string} input
 * @property {"ignored" | "refused"} how ignored: it changes nothing; refused: the run is an error if it is used
 * @property {string} why
 * @property {boolean} used whether it holds something: a text, a wire
 *
 * @typedef {object} User whose recipe options they are
 * @property {ModelFacts} model
 * @property {string} recipe
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
  const said = { model: model.title, recipe: name };
  /** @type {Unused[]} */
  const found = [];
  const add = (/** @type {string} */ input, /** @type {Unused["how"]} */ how, /** @type {string} */ why, used = holds(values, input)) => found.push({ input, how, why, used });
  if (!model.system_prompt) add("system_prompt", "refused", say("unused.noPlace", said));
  const images = whyNoImages(model, name, wires.control);
  if (images) add("control", "refused", images, wires.control > 0);
  if (!recipe.options.length) {
    const others = Object.values(model.recipes).some((one) => one.options.length);
    add("recipe_options", "refused", say(others ? "unused.recipeNoOptions" : "unused.noOptions", said), wires.recipe_options);
  }
  const negative = whyNoNegative(model, recipe, Number(values.guidance_scale));
  if (negative) add("negative_prompt", "ignored", negative);
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

/**
 * The first of those that take the options and does not read one; null where all read it, or where it is not told.
 *
 * @param {string} option
 * @param {(User | null)[]} users null for one whose model or recipe is not known before the run
 * @returns {{ user: User, all: boolean } | null} all: whether none of them reads it
 */
export function whoDoesNotRead(option, users) {
  const without = users.filter((user) => user && !user.model.recipes[user.recipe]?.options.includes(option));
  const [user] = without;
  return user ? { user, all: without.length === users.length } : null;
}

/**
 * @param {ModelFacts} model
 * @param {string} name of the recipe
 * @param {number} count of the images
 */
function whyNoImages(model, name, count) {
  const most = model.recipes[name].control_images;
  if (most && count <= most) return null;
  const said = { model: model.title, recipe: name, most, count };
  const other = Object.keys(model.recipes).find((one) => model.recipes[one].control_images >= Math.max(1, count));
  const anywhere = Object.values(model.recipes).some((one) => one.control_images);
  const why = say(most ? "unused.tooMany" : anywhere ? "unused.recipeNoImages" : "unused.noImages", said);
  return other ? `${why} ${say("unused.other", { recipe: other })}` : why;
}

/**
 * @param {ModelFacts} model
 * @param {RecipeFacts} recipe
 * @param {number} scale
 */
function whyNoNegative(model, recipe, scale) {
  if (model.guidance === "embedded") return say("unused.builtIn", { model: model.title });
  return scale <= recipe.guided_above ? say("unused.scale", { scale, above: recipe.guided_above }) : null;
}

/**
 * @param {Record<string, unknown>} values
 * @param {string} name
 */
function holds(values, name) {
  return String(values[name] ?? "").trim() !== "";
}
