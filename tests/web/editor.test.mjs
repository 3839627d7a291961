// The editor extension's plain modules, run by node's own test runner: `python3 tasks.py test tests/test_web.py`.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { following } from "../../web/js/follow.js";
import { heldBy, listed } from "../../web/js/fitting.js";
import { allNodes, inputOf, loaderOf, modelOf, optionsOf, wired } from "../../web/js/graph.js";
import { nearestSides, sizeFor, snapSide } from "../../web/js/sizes.js";
import { recipeForImages, unusedInputs, whoDoesNotRead } from "../../web/js/unused.js";

// what /aitk/models answers, and sides that Python snapped: written by tests/test_web.py
const { facts, snapped } = JSON.parse(readFileSync(process.env.AITK_FACTS, "utf8"));
const { models, minimum_side: minimum } = facts;

// a graph of nodes `[id, type, {input: [type, from, slot]}]`, as the page holds them; ids may be texts
function graphOf(nodes, { text = false, inside = {}, root = null } = {}) {
  const id = (value) => (text ? String(value) : value);
  const links = new Map();
  const graph = { nodes: [], outputs: [], links, getNodeById: (wanted) => graph.nodes.find((node) => String(node.id) === String(wanted)), getLink: (wanted) => links.get(wanted) };
  graph.rootGraph = root ?? graph;
  for (const [number, type, inputs = {}] of nodes) {
    const node = { id: id(number), type, graph, inputs: [], subgraph: inside[number] };
    for (const [name, [kind, from, slot = 0]] of Object.entries(inputs)) {
      const link = from === null ? null : links.size + 1;
      if (link !== null) links.set(link, { origin_id: id(from), origin_slot: slot });
      node.inputs.push({ name, type: kind, link });
    }
    graph.nodes.push(node);
  }
  return graph;
}
const PIPELINE = "AITK_PIPELINE";

for (const text of [false, true]) {
  test(`a loader is found through LoRAs, reroutes and another sampler, ids as ${text ? "texts" : "numbers"}`, () => {
    const graph = graphOf([
      [1, "LoadAITKModel"],
      [2, "ApplyAITKLoRA", { pipeline: [PIPELINE, 1] }],
      [3, "Reroute", { "": ["*", 2] }],
      [4, "AITKSampler", { control: ["AITK_CONTROL", null], pipeline: [PIPELINE, 3] }],
      [5, "AITKSampler", { latent: ["LATENT", 4, 4], pipeline: [PIPELINE, 4, 1] }],
      [6, "AITKSampler", { pipeline: [PIPELINE, null] }],
    ], { text });
    const [loader, , , , last, alone] = graph.nodes;
    assert.equal(loaderOf(last), loader);
    assert.equal(loaderOf(alone), null);
  });
}

test("a loader is found into a subgraph and out of one", () => {
  const root = graphOf([]);
  const within = graphOf([[1, "LoadAITKModel"]], { root });
  within.links.set(9, { origin_id: 1, origin_slot: 0 });
  within.outputs = [{ name: "pipeline", type: PIPELINE, linkIds: [9] }];
  const sampling = graphOf([[1, "AITKSampler", { pipeline: [PIPELINE, -10] }]], { root });
  const outer = graphOf([[1, "a"], [2, "b", { pipeline: [PIPELINE, 1] }]], { inside: { 1: within, 2: sampling }, root });
  root.nodes.push(...outer.nodes);
  assert.equal(loaderOf(sampling.nodes[0]), within.nodes[0]);
  assert.deepEqual([...allNodes(root)].map((node) => node.type), ["a", "LoadAITKModel", "b", "AITKSampler"]);
});

test("a sampler's recipe options are found beside its model, through a reroute", () => {
  const graph = graphOf([
    [1, "LoadAITKModel"],
    [2, "AITKRecipeOptions"],
    [3, "Reroute", { "": ["*", 2] }],
    [4, "AITKSampler", { pipeline: [PIPELINE, 1], recipe_options: ["AITK_RECIPE_OPTIONS", 3] }],
    [5, "AITKSampler", { pipeline: [PIPELINE, 1], recipe_options: ["AITK_RECIPE_OPTIONS", null] }],
  ]);
  const [loader, options, , sampler, alone] = graph.nodes;
  loader.widgets = [{ name: "model", value: "zimage" }];
  assert.deepEqual([optionsOf(sampler), optionsOf(alone)], [options, null]);
  assert.equal(modelOf(sampler), "zimage");
});

test("a circle of wires ends", () => {
  const graph = graphOf([[1, "ApplyAITKLoRA", { pipeline: [PIPELINE, 2] }], [2, "ApplyAITKLoRA", { pipeline: [PIPELINE, 1] }]]);
  assert.equal(loaderOf(graph.nodes[0]), null);
});

test("only wired inputs of a type are counted", () => {
  const [, node] = graphOf([[1, "x"], [2, "AITKControlImages", { a: ["IMAGE", 1], b: ["IMAGE", null], c: ["INT", 1] }]]).nodes;
  assert.equal(wired(node, "IMAGE"), 1);
  assert.equal(inputOf(node, "b").link, null);
});

test("sizes snap as Python snaps them", () => {
  assert.ok(snapped.length > 100);
  for (const { rule, side, expected } of snapped) assert.equal(snapSide(side, rule, minimum), expected, `${side} by ${JSON.stringify(rule)}`);
});

test("the nearest sides are rendered as they are", () => {
  for (const { rule, side } of snapped) {
    for (const near of nearestSides(side, rule, minimum)) assert.equal(snapSide(near, rule, minimum), near);
  }
  const rule = models.lumina2.recipes["reference pipeline"].size;
  assert.deepEqual(sizeFor(1000, 1024, rule, minimum), { rendered: [992, 1024], nearest: [[992, 1024], [1024, 1024]] });
  assert.deepEqual(sizeFor(1024, 1024, rule, minimum), { rendered: [1024, 1024], nearest: [] });
  const strict = models.lumina2.recipes["trainer preview"].size;
  assert.equal(sizeFor(1000, 1000, strict, minimum).rendered, null);
});

const OWN = { steps: 25, guidance_scale: 4, width: 1024, height: 1024, seed: 42, recipe: "reference pipeline" };

test("defaults follow the model, and what was typed stays", () => {
  const turbo = models["zimage:turbo"];
  assert.deepEqual(following(OWN, models.lumina2, turbo, OWN), { steps: 8, guidance_scale: 1 });
  assert.deepEqual(following({ ...OWN, steps: 11 }, models.lumina2, turbo, OWN), { guidance_scale: 1 });
  // and back, from the former model's
  const now = { ...OWN, steps: 8, guidance_scale: 1.5 };
  assert.deepEqual(following(now, turbo, models.zimage, OWN), { steps: 30 });
  assert.deepEqual(following(now, null, models.zimage, OWN), {});
});

test("a recipe that the model does not have becomes its first, and another one stays", () => {
  const name = (recipe, model) => following({ ...OWN, recipe }, models.lumina2, models[model], OWN).recipe;
  assert.equal(name("sd-scripts", "flux2"), "reference pipeline");
  assert.equal(name("trainer preview", "flux2"), undefined);
});

const NONE = { control: 0, recipe_options: false };
const unused = (model, recipe, values = {}, wires = {}) =>
  unusedInputs(models[model], recipe, { guidance_scale: 4, ...values }, { ...NONE, ...wires }).map(({ input, how, used }) => `${input} ${how}${used ? " used" : ""}`);

test("what a model or a recipe does not use is told with its reason", () => {
  assert.deepEqual(unused("lumina2", "sd-scripts"), ["control refused"]);
  assert.ok(unused("flux2", "trainer preview", { negative_prompt: "x" }).includes("negative_prompt ignored used"));
  assert.ok(unused("flux2_klein_4b", "trainer preview", { system_prompt: "x" }).includes("system_prompt refused used"));
  assert.ok(unused("flux2_klein_4b", "trainer preview", { system_prompt: " " }).includes("system_prompt refused"));
  assert.deepEqual(unused("nothing" in models ? "" : "flux2", "no such recipe"), []);
});

test("a negative prompt is not used at a guidance that guides nothing", () => {
  const turbo = (recipe) => unused("zimage:turbo", recipe, { guidance_scale: 1, negative_prompt: "x" });
  assert.ok(turbo("trainer preview").includes("negative_prompt ignored used"));
  assert.ok(!turbo("reference pipeline").some((one) => one.startsWith("negative_prompt")));
});

test("too many control images are told before the run, and which recipe takes them", () => {
  assert.ok(unused("flux2", "reference pipeline", {}, { control: 1 }).includes("control refused used"));
  assert.ok(unused("omnigen2", "trainer preview", {}, { control: 2 }).includes("control refused used"));
  assert.ok(!unused("omnigen2", "trainer preview", {}, { control: 1 }).some((one) => one.startsWith("control")));
  assert.equal(recipeForImages(models.flux2, "reference pipeline", 1), "trainer preview");
  assert.equal(recipeForImages(models.omnigen2, "trainer preview", 2), "reference pipeline");
  assert.equal(recipeForImages(models.lumina2, "trainer preview", 1), null);
});

test("a recipe option that no sampler reads is told, with whose recipe it is", () => {
  const lumina = (recipe) => ({ model: models.lumina2, recipe });
  const [option] = models.lumina2.recipes["sd-scripts"].options;
  const [plain] = Object.keys(models.zimage.recipes);
  const other = { model: models.zimage, recipe: plain };
  assert.equal(whoDoesNotRead(option, [lumina("sd-scripts")]), null);
  assert.deepEqual(whoDoesNotRead(option, [other]), { user: other, all: true });
  assert.deepEqual(whoDoesNotRead(option, [lumina("sd-scripts"), other]), { user: other, all: false });
  // of one whose recipe comes over a wire nothing is known
  assert.deepEqual(whoDoesNotRead(option, [null, other]), { user: other, all: false });
  assert.equal(whoDoesNotRead(option, [null]), null);
  assert.equal(whoDoesNotRead(option, []), null);
});

test("weights that hold the model come first, and no choice is lost", () => {
  const names = ["default", "a", "b", "c.ckpt", "d"];
  const held = { a: [], b: ["lumina2"], d: ["flux2", "flux2_klein_4b"] };
  assert.deepEqual(listed(names, held, "flux2"), ["default", "d", "c.ckpt", "a", "b"]);
  assert.deepEqual(listed(names, held, "auto"), ["default", "b", "d", "c.ckpt", "a"]);
  assert.deepEqual(listed(names, held, null), names);
  assert.deepEqual(heldBy("d", held, "lumina2"), ["flux2", "flux2_klein_4b"]);
  for (const [weights, model] of [["d", "flux2"], ["a", "flux2"], ["c.ckpt", "flux2"], ["d", "auto"], ["constructor", "flux2"]]) {
    assert.deepEqual(heldBy(weights, held, model), []);
  }
});
