// @ts-check
// The sampler's report in a person's words.

import { say } from "./words.js";

/** @import { Key } from "./words.js" */

/**
 * @typedef {Record<string, any>} Report what pipelines/run/report.py writes
 */

/** @type {Record<string, Key>} phase of a run -> its name */
const PHASES = {
  encode: "report.encode", "encode control": "report.encodeControl", prepare: "report.prepare", sample: "report.sample", decode: "report.decode",
};

/**
 * What a run came to, in a line.
 *
 * @param {Report} report
 */
export function headline(report) {
  const [width, height] = report.size?.rendered ?? ["?", "?"];
  const said = { count: report.batch_size, size: `${width} × ${height}`, time: seconds(total(report)) };
  return say(report.batch_size > 1 ? "report.doneSeveral" : "report.done", said);
}

/**
 * The report's rows: `["Seed", "42"]`.
 *
 * @param {Report} report
 * @returns {[string, string][]}
 */
export function rows(report) {
  const { model = {}, size = {} } = report;
  const asked = Array.isArray(size.asked) ? size.asked.join(" × ") : String(size.asked ?? "");
  const rendered = (size.rendered ?? []).join(" × ");
  const { steps = "", denoise, seed = "", batch_size: count } = report;
  /** @type {[string, string][]} */
  const found = [
    [say("report.model"), [model.id, words(model.weights), model.dtype].filter(Boolean).join(", ")],
    [say("report.held"), held(model.quantization)],
    ...(report.loras ?? []).map((/** @type {any} */ lora) => /** @type {[string, string]} */ (["LoRA", loraText(lora)])),
    [say("report.recipe"), era(report)],
    [say("report.size"), asked === rendered ? rendered : say("report.asked", { size: rendered, asked })],
    [say("report.steps"), denoise < 1 ? say("report.denoise", { steps, denoise }) : String(steps)],
    [say("report.guidance"), String(report.guidance_scale ?? "")],
    [say("report.seed"), count > 1 ? say("report.seeds", { seed, count: count - 1 }) : String(seed)],
    [say("report.negative"), report.negative_prompt ?? say("report.notUsed")],
    [say("report.time"), phases(report.seconds)],
    [say("report.memory"), memory(report.peak_memory)],
    [say("report.device"), String(report.device ?? "")],
    [say("report.versions"), ["torch", "diffusers", "transformers"].map((name) => `${name} ${report.versions?.[name] ?? "?"}`).join(", ")],
  ];
  return found.filter(([, text]) => text !== "");
}

/**
 * @param {number} value seconds
 */
export function seconds(value) {
  if (value < 60) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** @param {number} count bytes */
export function bytes(count) {
  const units = ["bytes", "KB", "MB", "GB"];
  const unit = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, count)) / 3));
  const value = count / 1000 ** unit;
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** @param {Report} report */
function total(report) {
  return Object.values(report.seconds ?? {}).reduce((sum, value) => sum + Number(value), 0);
}

/** @param {Report} report */
function era(report) {
  const { first, last } = report.era ?? {};
  if (!first && !last) return String(report.recipe ?? "");
  return `${report.recipe} (${say(first && last ? "report.between" : first ? "report.since" : "report.until", { first, last })})`;
}

/** @param {any} lora */
function loraText(lora) {
  const { name, strength, application, sha256 } = lora;
  return say("report.lora", { name, strength, application: words(application), digest: String(sha256).slice(0, 10) });
}

/** @param {any} value a text, or a text for each part */
function words(value) {
  if (value === null || typeof value !== "object") return value === undefined ? "" : String(value);
  return Object.entries(value).map(([part, text]) => `${part}: ${text}`).join(", ");
}

/** @param {Record<string, string> | undefined} quantization */
function held(quantization) {
  const kept = Object.entries(quantization ?? {}).filter(([, how]) => how !== "none");
  return kept.map(([part, how]) => `${part}: ${how}`).join(", ");
}

/** @param {Record<string, number> | undefined} spent */
function phases(spent) {
  const named = (/** @type {string} */ phase) => (phase in PHASES ? say(PHASES[phase]) : phase);
  return Object.entries(spent ?? {}).map(([phase, value]) => `${named(phase)} ${seconds(value)}`).join(", ");
}

/** @param {Record<string, number> | undefined} peak */
function memory(peak) {
  return Object.entries(peak ?? {}).map(([place, count]) => say("report.peak", { place, amount: bytes(count) })).join(", ");
}
