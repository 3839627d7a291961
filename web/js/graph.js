// @ts-check
// Where a value comes from: up a graph's wires, through nodes that pass it on, reroutes and subgraphs.

/** @import { Graph, Link, Node } from "./types.d.ts" */

const PIPELINE = "AITK_PIPELINE";
const RECIPE_OPTIONS = "AITK_RECIPE_OPTIONS";
export const LOADER = "LoadAITKModel";
export const OPTIONS = "AITKRecipeOptions";
// the frontend's ids for what stands at a subgraph's edges; node ids are numbers in 1.45 and texts in 1.58
const SUBGRAPH_INPUT = "-10";
const DEEPEST = 200; // steps up; a graph that is being edited may go round in a circle

/**
 * The Load AITK Model that a node's pipeline comes from; null where there is none, or where it is not told.
 *
 * @param {Node} node with an input for a pipeline
 * @returns {Node | null}
 */
export function loaderOf(node) {
  return originOf(node, PIPELINE, LOADER);
}

/**
 * The id of the model that a node's pipeline is of; null where that is not told.
 *
 * @param {Node} node
 * @returns {string | null}
 */
export function modelOf(node) {
  const loader = loaderOf(node);
  // a name that comes over a wire is not known before the run
  if (!loader || inputOf(loader, "model")?.link != null) return null;
  return String(loader.widgets?.find(({ name }) => name === "model")?.value ?? "") || null;
}

/**
 * The AITK Recipe Options that a sampler gets its options from; null where there is none, or where it is not told.
 *
 * @param {Node} sampler
 * @returns {Node | null}
 */
export function optionsOf(sampler) {
  return originOf(sampler, RECIPE_OPTIONS, OPTIONS);
}

/**
 * The node that gives an input its value; of a subgraph, the node inside of it.
 *
 * @param {Graph} graph that the link is in
 * @param {number | string | null | undefined} id of the link
 * @returns {Node | null}
 */
export function sourceOf(graph, id) {
  /** @type {Graph | null} */
  let inside = graph;
  let link = linkOf(inside, id);
  for (let step = 0; inside && link && step < DEEPEST; step++) {
    if (String(link.origin_id) === SUBGRAPH_INPUT) {
      // out of the subgraph: to what its node in the graph around it is given
      const around = instanceOf(inside);
      link = around?.graph ? linkOf(around.graph, around.inputs?.[link.origin_slot]?.link) : null;
      inside = around?.graph ?? null;
      continue;
    }
    const origin = inside.getNodeById(link.origin_id);
    if (!origin?.subgraph) return origin ?? null;
    // into the subgraph: to what stands behind its output
    inside = origin.subgraph;
    link = linkOf(inside, inside.outputs?.[link.origin_slot]?.linkIds?.[0]);
  }
  return null;
}

/**
 * All nodes of a graph and of the subgraphs in it.
 *
 * @param {Graph} graph
 * @returns {Generator<Node>}
 */
export function* allNodes(graph, seen = new Set()) {
  if (seen.has(graph)) return;
  seen.add(graph);
  for (const node of graph.nodes ?? []) {
    yield node;
    if (node.subgraph) yield* allNodes(node.subgraph, seen);
  }
}

/**
 * How many of a node's inputs of a type have a wire.
 *
 * @param {Node} node
 * @param {string} type
 */
export function wired(node, type) {
  return (node.inputs ?? []).filter((input) => input.type === type && input.link != null).length;
}

/**
 * @param {Node} node
 * @param {string} name
 */
export function inputOf(node, name) {
  return (node.inputs ?? []).find((input) => input.name === name);
}

/**
 * @param {Node} node
 * @param {string} wire type of the wires that lead there
 * @param {string} wanted type of the node that is looked for
 * @returns {Node | null}
 */
function originOf(node, wire, wanted) {
  let found = above(node, wire);
  for (let step = 0; found && step < DEEPEST; step++) {
    if (found.type === wanted) return found;
    found = above(found, wire);
  }
  return null;
}

/**
 * @param {Node} node
 * @param {string} wire
 * @returns {Node | null}
 */
function above(node, wire) {
  const inputs = node.inputs ?? [];
  // a reroute's and a switch's inputs are of any type
  const input = inputs.find(({ type }) => type === wire) ?? inputs.find(({ type, link }) => type === "*" && link != null);
  return node.graph ? sourceOf(node.graph, input?.link) : null;
}

/**
 * @param {Graph} graph
 * @param {number | string | null | undefined} id
 * @returns {Link | null}
 */
function linkOf(graph, id) {
  if (id == null) return null;
  return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? null;
}

/**
 * The node that a subgraph is in the graph around it; the first, where it is used several times.
 *
 * @param {Graph} inside
 * @returns {Node | null}
 */
function instanceOf(inside) {
  if (!inside.rootGraph) return null;
  for (const node of allNodes(inside.rootGraph)) if (node.subgraph === inside) return node;
  return null;
}
