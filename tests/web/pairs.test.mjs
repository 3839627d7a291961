// What the viewer shows: pairs as AITK Compare Previews sent them.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { inOrder, numbers, pairsOf } from "../../web/js/pairs.js";

const { pairs } = JSON.parse(readFileSync(process.env.AITK_FACTS, "utf8"));

test("pairs are read, the farthest apart first, with numbers in words", () => {
  const shown = pairsOf(pairs);
  assert.deepEqual(shown.pairs.map(({ title }) => title), ["picture 1", "picture 2"]);
  const [far, equal] = inOrder(shown.pairs);
  assert.deepEqual([far.title, equal.title], ["picture 2", "picture 1"]);
  const found = Object.fromEntries(numbers(far.metrics));
  assert.equal(found["Largest difference"], "51 of 255 levels");
  assert.match(found.PSNR, /^[\d.]+ dB$/);
  assert.equal(Object.fromEntries(numbers(equal.metrics))["Values that differ"], "0 %");
  for (const role of ["trainer", "ours", "heat_map"]) assert.equal(far[role].type, "temp");
});

test("a pair that was not compared has no numbers and comes last", () => {
  const alone = { title: "x", words: "", metrics: {}, trainer: null, ours: null, heat_map: null };
  const shown = pairsOf(pairs);
  assert.equal(inOrder([alone, ...shown.pairs]).at(-1), alone);
  assert.deepEqual(numbers(alone.metrics), []);
  assert.equal(pairsOf(undefined), null);
  assert.equal(pairsOf('{"pairs": [], "more": 0}'), null);
});
