// @ts-check
// Which weights fit a model, by what the server read in their headers.

const AUTO = "auto"; // on Load AITK Model: the weights tell the model
const DEFAULT = "default"; // the model's own repository

/**
 * A list of weights: those that fit first, then those that nothing is known of, then the others. None is left out.
 *
 * @param {string[]} names as the node lists them
 * @param {Record<string, string[]>} held name -> ids of the models that it may hold; none for other files
 * @param {string | null} model that is chosen; null where that is not told
 */
export function listed(names, held, model) {
  if (model === null) return [...names];
  const place = (/** @type {string} */ name) => {
    if (name === DEFAULT) return 0;
    // a pickle, or a file that came after the answer
    if (!Object.hasOwn(held, name)) return 2;
    return (model === AUTO ? held[name].length > 0 : held[name].includes(model)) ? 1 : 3;
  };
  return [...names].sort((one, other) => place(one) - place(other));
}

/**
 * The models that weights hold where the chosen one is not among them.
 *
 * @param {string} weights
 * @param {Record<string, string[]>} held
 * @param {string} model
 * @returns {string[]}
 */
export function heldBy(weights, held, model) {
  const found = Object.hasOwn(held, weights) ? held[weights] : [];
  return model === AUTO || found.includes(model) ? [] : found;
}
