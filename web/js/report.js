// @ts-check
// The sampler's report in a person's words.

/**
 * @typedef {Record<string, any>} Report what pipelines/run/report.py writes
 */

/**
 * What a run came to, in a line.
 *
 * @param {Report} report
 */
export function headline(report) {
  const [width, height] = report.size?.rendered ?? ["?", "?"];
  const count = report.batch_size > 1 ? `${report.batch_size} pictures of ` : "";
  return `${count}${width} × ${height} in ${seconds(total(report))}`;
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
  /** @type {[string, string][]} */
  const found = [
    ["Model", [model.id, words(model.weights), model.dtype].filter(Boolean).join(", ")],
    ["Held as", held(model.quantization)],
    ...(report.loras ?? []).map((/** @type {any} */ lora) => /** @type {[string, string]} */ (["LoRA", loraText(lora)])),
    ["Recipe", era(report)],
    ["Size", asked === rendered ? rendered : `${rendered} (asked for: ${asked})`],
    ["Steps", report.denoise < 1 ? `${report.steps}, denoise ${report.denoise}` : String(report.steps ?? "")],
    ["Guidance", String(report.guidance_scale ?? "")],
    ["Seed", report.batch_size > 1 ? `${report.seed} and the next ${report.batch_size - 1}` : String(report.seed ?? "")],
    ["Negative", report.negative_prompt ?? "not used"],
    ["Time", phases(report.seconds)],
    ["Memory", memory(report.peak_memory)],
    ["Device", String(report.device ?? "")],
    ["Versions", ["torch", "diffusers", "transformers"].map((name) => `${name} ${report.versions?.[name] ?? "?"}`).join(", ")],
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
  const time = first || last ? ` (AI Toolkit ${first ? `since ${first}` : ""}${first && last ? " " : ""}${last ? `until ${last}` : ""})` : "";
  return `${report.recipe ?? ""}${time}`;
}

/** @param {any} lora */
function loraText(lora) {
  return `${lora.name} at ${lora.strength}, ${words(lora.application)}, sha256 ${String(lora.sha256).slice(0, 10)}…`;
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
  return Object.entries(spent ?? {}).map(([phase, value]) => `${phase} ${seconds(value)}`).join(", ");
}

/** @param {Record<string, number> | undefined} peak */
function memory(peak) {
  return Object.entries(peak ?? {}).map(([place, count]) => `${place} ${bytes(count)} at most`).join(", ");
}
