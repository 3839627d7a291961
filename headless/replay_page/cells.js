"use strict";

// What the page knows of cells, apart from the document: order, filter, words.

// best first; the sign tells verdicts apart where colours do not
const VERDICTS = [
  { name: "identical", sign: "=" },
  { name: "kernel noise", sign: "\u2248" },
  { name: "same picture", sign: "~" },
  { name: "different", sign: "\u2260" },
  { name: "not rendered", sign: "\u2013" },
  { name: "no preview", sign: "?" },
];

const METRICS = [
  { key: "max", label: "Max", about: "largest difference, in levels of 0 to 255", text: (value) => few(value) },
  { key: "mean", label: "Mean", about: "mean difference, in levels of 0 to 255", text: (value) => few(value) },
  { key: "share", label: "Differ", about: "share of the values that differ", text: (value) => `${few(100 * value)} %` },
  { key: "psnr", label: "PSNR", about: "peak signal to noise, in dB; more is nearer", text: (value) => `${few(value)} dB` },
  { key: "ssim", label: "SSIM", about: "structural similarity; 1 is equal", text: (value) => few(value) },
  { key: "lpips", label: "LPIPS", about: "distance as people see it; 0 is equal", text: (value) => few(value) },
];

// three digits, and no more than there are
function few(value) {
  if (!Number.isFinite(value)) return "\u221e";
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(1);
  return String(Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3)));
}

// equal pictures have an endless PSNR, which the report cannot hold
function metricOf(cell, key) {
  const value = cell.metrics[key];
  return key === "psnr" && value === null && cell.metrics.max === 0 ? Infinity : value;
}

function metricText(cell, metric) {
  const value = metricOf(cell, metric.key);
  return value === null ? "\u2013" : metric.text(value);
}

function checkpointText(cell) {
  return `Step ${cell.step}${cell.final ? " (final)" : ""}`;
}

function strengthText(cell) {
  return cell.strength === null ? "no LoRA" : String(cell.strength);
}

// the texts of all strengths that are there, the weakest first
function strengthTexts(cells) {
  const rising = [...cells].sort((a, b) => (a.strength ?? -Infinity) - (b.strength ?? -Infinity) || 0);
  return [...new Set(rising.map(strengthText))];
}

// `many`: whether the grid has more than one strength
function columnText(cell, many) {
  return `${cell.step}${cell.final ? " final" : ""}${many && cell.strength !== null ? ` \u00d7 ${cell.strength}` : ""}`;
}

function cellText(cell, many) {
  const strength = many && cell.strength !== null ? `, strength ${cell.strength}` : "";
  return `${checkpointText(cell)}, sample ${cell.index}${strength}`;
}

function manyStrengths(cells) {
  return new Set(cells.map((cell) => cell.strength).filter((strength) => strength !== null)).size > 1;
}

// the values of `of`, each once, in the order of their first cells by step
function each(cells, of) {
  const inOrder = [...cells].sort((a, b) => a.step - b.step || a.final - b.final || a.strength - b.strength);
  return [...new Set(inOrder.map(of))];
}

function fits(cell, filter) {
  const words = filter.prompt.toLowerCase().split(/\s+/).filter(Boolean);
  const text = `${cell.prompt}\n${cell.negative ?? ""}`.toLowerCase();
  return (
    (filter.verdicts.size === 0 || filter.verdicts.has(cell.verdict)) &&
    (filter.checkpoint === "" || filter.checkpoint === checkpointText(cell)) &&
    (filter.strength === "" || filter.strength === strengthText(cell)) &&
    words.every((word) => text.includes(word))
  );
}

// how far to scroll so that what lies from `start` to `end` is between `first` and `last`
function beyond(start, end, first, last) {
  if (start < first) return start - first;
  return Math.max(0, end - last);
}

function valueOf(cell, key) {
  if (key === "verdict") return VERDICTS.findIndex((verdict) => verdict.name === cell.verdict);
  return key in cell.metrics ? metricOf(cell, key) : cell[key];
}

// cells without the value come last, either way; equal ones keep their order
function inOrderOf(cells, key, falling) {
  return [...cells].sort((one, other) => {
    const [a, b] = [valueOf(one, key), valueOf(other, key)];
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "string" ? a.localeCompare(b) : a === b ? 0 : a - b;
    return falling ? -order : order;
  });
}
