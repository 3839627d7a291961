// @ts-check
// What the sampler shows of its last run, and keeps where the page takes its own text away.

import { element } from "./dom.js";
import { headline, rows } from "./report.js";
import { say } from "./words.js";

/** @import { Report } from "./report.js" */

/**
 * The rows of a report on the node.
 *
 * @param {string} text the report, JSON
 * @returns {globalThis.Node[]} empty where it is none
 */
export function runRows(text) {
  const report = parsed(text);
  if (!report) return [];
  const notes = /** @type {string[]} */ (report.notes ?? []).map((note) =>
    element("div", { class: "aitk-row aitk-warning" }, element("span", {}, String(note))),
  );
  const list = element(
    "dl", { class: "aitk-list" },
    ...rows(report).flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]),
  );
  const copy = element("button", { type: "button", title: say("report.whole"), onclick: () => navigator.clipboard?.writeText(text) }, say("report.copy"));
  const details = element("details", { class: "aitk-report" }, element("summary", {}, headline(report)), list, copy);
  return [...notes, details];
}

/**
 * @param {string} text
 * @returns {Report | null}
 */
export function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" ? value : null;
  } catch {
    // a report of another program
    return null;
  }
}
