// @ts-check
// The extension's words in the page's language, as far as they are translated; else in English.

import { ENGLISH } from "./english.js";

/** @typedef {keyof typeof ENGLISH} Key */

let current = "en";
/** @type {Record<string, Record<string, string>>} */
let own = {};

/**
 * Takes the words of a language.
 *
 * @param {string} locale of the page: `zh-TW`
 * @param {Record<string, any> | null} translations of all packs, by language: what ComfyUI answers to `/i18n`; null
 *     where it does not answer
 */
export function learn(locale, translations) {
  current = locale;
  // `zh-CN` is shown in `zh`, as the page does
  own = (translations?.[locale] ?? translations?.[locale.split("-")[0]])?.aitk ?? {};
}

/** The language that was learned last; English before. */
export function language() {
  return current;
}

/**
 * A text with values in the places of their names.
 *
 * @param {Key} key
 * @param {Record<string, string | number>} values
 */
export function say(key, values = {}) {
  const [group, name] = key.split(".");
  const text = own[group]?.[name];
  const said = typeof text === "string" ? text : ENGLISH[key];
  return said.replace(/\{(\w+)\}/g, (whole, place) => (place in values ? String(values[place]) : whole));
}
