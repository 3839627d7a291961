// The graph inside a JPEG: files that AITK Save Image wrote, and damaged ones.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { COLOURS } from "../../web/js/colours.js";
import { exifTexts, graphIn, jpegTexts } from "../../web/js/picture.js";

const { pictures, types } = JSON.parse(readFileSync(process.env.AITK_FACTS, "utf8"));
const bytesOf = (path) => new Uint8Array(readFileSync(path)).buffer;

test("a JPEG's graph and report are found, letters of any language in them", () => {
  const texts = jpegTexts(bytesOf(pictures.jpg));
  assert.deepEqual(Object.keys(texts).sort(), ["aitk_report", "prompt", "workflow"]);
  const graph = graphIn(bytesOf(pictures.jpg));
  assert.equal(graph.nodes[0].widgets_values[0], "лиса 狐");
  assert.equal(JSON.parse(texts.aitk_report).seed, 42);
});

test("other files, and damaged ones, hold no graph", () => {
  for (const path of [pictures.png, pictures.plain]) assert.equal(graphIn(bytesOf(path)), null);
  const whole = bytesOf(pictures.jpg);
  for (let size = 0; size < 4000; size += 7) assert.doesNotThrow(() => graphIn(whole.slice(0, size)));
  const random = Uint8Array.from({ length: 300 }, (_, at) => (at * 7919) % 256);
  for (let at = 0; at < 250; at++) assert.doesNotThrow(() => exifTexts(new DataView(random.buffer, at)));
});

test("every type of a wire that is the pack's own has a colour", () => {
  assert.deepEqual(Object.keys(COLOURS).sort(), types);
});
