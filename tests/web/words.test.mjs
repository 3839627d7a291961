// The extension's words: English, and those of a language as ComfyUI answers them.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

import { ENGLISH } from "../../web/js/english.js";
import { language, learn, say } from "../../web/js/words.js";

const WEB = new URL("../../web/js/", import.meta.url);
const words = (size) => ({ aitk: { size: { impossible: size } } });

test("a language's words are said, and English where it has none", () => {
  assert.equal(say("size.impossible", { size: "1 × 1" }), "1 × 1 cannot be rendered");
  learn("zh-TW", { "zh-TW": words("{size}!"), zh: words("{size}?") });
  assert.equal(say("size.impossible", { size: "1 × 1" }), "1 × 1!");
  assert.equal(say("size.list"), "Sizes");
  assert.equal(language(), "zh-TW");
  // the page shows this one in its language without a country
  learn("zh-CN", { zh: words("{size}?") });
  assert.equal(say("size.impossible", { size: "1" }), "1?");
  for (const [locale, answer] of [["en", null], ["fr", {}], ["fr", { fr: { aitk: "x" } }], ["fr", { fr: { aitk: { size: 1 } } }]]) {
    learn(locale, answer);
    assert.equal(say("size.impossible", { size: "1" }), "1 cannot be rendered");
  }
});

test("what stands in a value is said as it is", () => {
  assert.equal(say("size.impossible", { size: "{size} $& {list}" }), "{size} $& {list} cannot be rendered");
  assert.equal(say("weights.other", { weights: "a", found: "b" }), "a holds b, not {model}.");
});

test("every text of the table is said somewhere", () => {
  const code = readdirSync(WEB).filter((name) => name.endsWith(".js") && name !== "english.js").map((name) => readFileSync(new URL(name, WEB), "utf8")).join("\n");
  // keys that are made of a word that a node or the server sends
  const made = [...code.matchAll(/say\(`(\w+)\.\$/g)].map(([, group]) => `${group}.`);
  const unsaid = Object.keys(ENGLISH).filter((key) => !code.includes(`"${key}"`) && !made.some((group) => key.startsWith(group)));
  assert.deepEqual(unsaid, []);
});
