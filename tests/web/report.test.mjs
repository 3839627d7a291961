// The sampler's report in words: a report that tests/test_web.py had a real run write.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { bytes, headline, rows, seconds } from "../../web/js/report.js";

const { report } = JSON.parse(readFileSync(process.env.AITK_FACTS, "utf8"));

test("a report is read as words, and no part of it as JSON", () => {
  const found = Object.fromEntries(rows(report));
  assert.match(headline(report), /^Done: 96 × 96 in [\d.]+ s$/);
  assert.equal(found.Size, "96 × 96 (asked for: 100 × 100)");
  assert.equal(found.Recipe, "reference pipeline");
  assert.match(found.Model, /^lumina2, tiny, float32$/);
  assert.match(found.LoRA, /^tiny\.safetensors at 0\.5, live, sha256 [0-9a-f]{10}…$/);
  assert.match(found.Time, /encode [\d.]+ s, .*sample/);
  assert.equal(found.Seed, "42");
  for (const [term, text] of rows(report)) assert.ok(!/[{}[\]]|undefined|null|NaN/.test(text), `${term}: ${text}`);
});

test("a batch, a time of the trainer's and parts that differ are told", () => {
  const other = { ...report, batch_size: 3, seed: 7, era: { first: null, last: "2026-07-12", version: "1" }, model: { ...report.model, weights: { transformer: "a", vae: "b" } } };
  const found = Object.fromEntries(rows(other));
  assert.match(headline(other), /^Done: 3 pictures of 96 × 96/);
  assert.equal(found.Seed, "7 and the next 2");
  assert.equal(found.Recipe, "reference pipeline (AI Toolkit until 2026-07-12)");
  assert.match(found.Model, /transformer: a, vae: b/);
  assert.doesNotThrow(() => [rows({}), headline({})]);
});

test("seconds and bytes are short", () => {
  assert.deepEqual([0.04, 9.96, 12.4, 75, 3600].map(seconds), ["0.0 s", "10.0 s", "12 s", "1 min 15 s", "60 min 0 s"]);
  assert.deepEqual([0, 999, 85576, 2.2e9, 3e13].map(bytes), ["0 bytes", "999 bytes", "85.6 KB", "2.2 GB", "30000 GB"]);
});
