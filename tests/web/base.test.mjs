// Whether a model's files are those that a graph was made with: what is kept, told and taken.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { compareBase, keepOwn, withReport } from "../../web/js/base_files.js";

// what /aitk/base answers of the tiny model, and the report of its run: written by tests/test_web.py
const { base, report } = JSON.parse(readFileSync(process.env.AITK_FACTS, "utf8"));
const QUERY = { model: "lumina2", weights: "tiny", repo_id: "", text_encoder: "default", vae: "default" };
const { parts } = base;
const first = compareBase(undefined, QUERY, parts).kept;
const copy = (value) => structuredClone(value);

// the parts with other facts of a file
function other(facts, names = ["vae"], place = 0) {
  const made = copy(parts);
  for (const name of names) Object.assign(made[name].files[place], facts);
  return made;
}

test("what is seen first is kept, without any name that the workflow does not say", () => {
  assert.equal(first.model, "lumina2");
  assert.deepEqual(Object.keys(first.parts).sort(), ["text_encoder", "transformer", "vae"]);
  for (const { choice, files } of Object.values(first.parts)) {
    assert.equal(choice, "tiny");
    for (const file of files) assert.deepEqual(Object.keys(file), ["bytes", "sampled", "sha256"]);
  }
  assert.ok(!/\.safetensors|[/\\]/.test(JSON.stringify(first)));
  assert.deepEqual(compareBase(copy(first), QUERY, parts), { kept: first, differences: [] });
});

test("another size is told with both sizes, and to the byte where they look alike", () => {
  const [{ bytes }] = parts.vae.files;
  const [found] = compareBase(first, QUERY, other({ bytes: 335e6, sha256: null })).differences;
  assert.deepEqual([found.how, found.yours, found.parts], ["size", "335 MB", ["vae"]]);
  assert.equal(found.file, "tiny: vae/diffusion_pytorch_model.safetensors");
  const [near] = compareBase(first, QUERY, other({ bytes: bytes + 1 })).differences;
  assert.deepEqual([near.how, near.made, near.yours], ["size", `${bytes} bytes`, `${bytes + 1} bytes`]);
});

test("another content of one size is told by the whole file, or by pieces of it", () => {
  const differs = (facts, made = first) => compareBase(made, QUERY, other(facts)).differences.map(({ how }) => how);
  assert.deepEqual(differs({ sha256: "0".repeat(64) }), ["content"]);
  assert.deepEqual(differs({ sha256: null, sampled: "0" }), ["content"]);
  // nobody read either file whole
  const unread = compareBase(undefined, QUERY, other({ sha256: null })).kept;
  assert.deepEqual(differs({ sampled: "0" }, unread), ["content"]);
  assert.deepEqual(differs({}, unread), []);
  assert.deepEqual(differs({ sha256: null }), []);
});

test("where the files are the same, all that is known of them is kept", () => {
  const unread = compareBase(undefined, QUERY, other({ sha256: null })).kept;
  assert.ok(!("sha256" in unread.parts.vae.files[0]));
  assert.deepEqual(compareBase(unread, QUERY, parts).kept, first);
  assert.deepEqual(compareBase(first, QUERY, other({ sha256: null })).kept, first);
});

test("a difference stays told until the own file is taken, and others stay told then", () => {
  const mine = other({ sha256: "0".repeat(64) }, ["vae", "transformer"]);
  const told = compareBase(first, QUERY, mine);
  assert.deepEqual(told.kept, first);
  assert.deepEqual(compareBase(told.kept, QUERY, mine).differences, told.differences);
  const [one, two] = told.differences;
  const taken = keepOwn(told.kept, one.parts, mine);
  assert.deepEqual(compareBase(taken, QUERY, mine).differences, [two]);
  assert.deepEqual(compareBase(keepOwn(taken, two.parts, mine), QUERY, mine).differences, []);
});

test("a file of several parts is told once, and files of one part together", () => {
  const file = { name: "all.safetensors", bytes: 10, sampled: "a" };
  const whole = (facts) => Object.fromEntries(["transformer", "vae"].map((part) => [part, { choice: "x/all.safetensors", source: "x/all.safetensors", files: [{ ...file, ...facts }] }]));
  const query = { ...QUERY, weights: "x/all.safetensors" };
  const { kept } = compareBase(undefined, query, whole({}));
  const found = compareBase(kept, query, whole({ sampled: "b" })).differences;
  assert.deepEqual(found.map(({ file, parts }) => [file, parts]), [["x/all.safetensors", ["transformer", "vae"]]]);

  const shards = (sampled, count = 4) => ({ transformer: { choice: "tiny", source: "tiny", files: [...Array(count).keys()].map((at) => ({ name: `m-${at}`, bytes: 12 / count, sampled })) } });
  const made = compareBase(undefined, QUERY, shards("a")).kept;
  assert.deepEqual(compareBase(made, QUERY, shards("b")).differences.map(({ file }) => file), ["tiny: transformer/m-0, m-1, …"]);
  // the same bytes, divided otherwise
  assert.deepEqual(compareBase(made, QUERY, shards("a", 2)).differences.map(({ how }) => how), ["content"]);
});

test("another choice is the user's, and only what it says is forgotten", () => {
  const mine = other({ sha256: "0".repeat(64) }, ["vae", "transformer"]);
  mine.vae.choice = mine.vae.source = "ae.safetensors";
  const { kept, differences } = compareBase(first, { ...QUERY, vae: "ae.safetensors" }, mine);
  assert.deepEqual(differences.map(({ parts }) => parts), [["transformer"]]);
  assert.equal(kept.parts.vae.choice, "ae.safetensors");
  assert.deepEqual(compareBase(first, { ...QUERY, model: "zimage" }, mine).differences, []);
  // a part that is not on this machine yet is compared when it comes, and no name stays that the workflow left
  assert.deepEqual(compareBase(first, QUERY, {}).kept, first);
  assert.deepEqual(compareBase(first, { ...QUERY, weights: "else" }, {}).kept.parts, {});
});

test("what is no such property is taken for none", () => {
  for (const made of [null, 1, "x", [], { model: "lumina2" }, { model: "lumina2", parts: null }, { model: "lumina2", parts: { vae: 1, transformer: { choice: "tiny", files: [null] }, text_encoder: { choice: "tiny", files: {} } } }]) {
    assert.deepEqual(compareBase(made, QUERY, parts), { kept: first, differences: [] });
  }
});

test("a run's report tells the digests of its files, and none of others", () => {
  const unread = other({ sha256: null }, Object.keys(parts));
  assert.deepEqual(withReport(unread, report), parts);
  assert.deepEqual(withReport(parts, null), parts);
  assert.deepEqual(withReport(unread, {}), unread);
  const elsewhere = { ...report, model: { ...report.model, weights: "another" } };
  assert.deepEqual(withReport(unread, elsewhere), unread);
  const larger = other({ sha256: null, bytes: 1 }, Object.keys(parts));
  assert.deepEqual(withReport(larger, report), larger);
});
