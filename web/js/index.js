// @ts-check
// The editor's extension. Everything here is a help: graphs load, run and save without it.

// @ts-ignore: ComfyUI serves it
import { api } from "../../../scripts/api.js";
// @ts-ignore: ComfyUI serves it
import { app } from "../../../scripts/app.js";
import { colourSockets } from "./colours.js";
import { addStyle } from "./dom.js";
import { LOADER, allNodes } from "./graph.js";
import { LORA, refreshLora, watchLora } from "./lora.js";
import { COMMAND, openPicture, pictureMenu } from "./open_picture.js";
import { whenChanged } from "./panel.js";
import { SAMPLER, refreshSampler, watchSampler } from "./sampler.js";
import { modelFacts, sayOnce } from "./server.js";
import { COMPARING, watchComparison } from "./viewer.js";

/** @import { Node } from "./types.d.ts" */

const SOON = 60; // milliseconds: several changes are one
let waiting = 0;

/** Brings every node of ours up to date, soon. */
function changed() {
  clearTimeout(waiting);
  waiting = setTimeout(refresh, SOON);
}

async function refresh() {
  const facts = await modelFacts();
  if (!facts) return;
  try {
    for (const node of allNodes(app.rootGraph ?? app.graph)) {
      if (node.type === SAMPLER) refreshSampler(node, facts);
      if (node.type === LORA) await refreshLora(node);
    }
  } catch (error) {
    sayOnce(error);
  }
}

app.registerExtension({
  name: "comfyui-aitk",
  commands: [{ id: COMMAND, label: "Open the graph of a picture (AITK)", icon: "pi pi-image", function: () => openPicture(app) }],
  menuCommands: [{ path: ["File"], commands: [COMMAND] }],
  /** @param {Node} node */
  getNodeMenuItems: (node) => pictureMenu(app, api, node),
  setup() {
    addStyle();
    colourSockets(app);
    api.addEventListener("graphChanged", changed);
    changed();
  },
  /** @param {Node} node */
  nodeCreated(node) {
    if (node.comfyClass === SAMPLER) watchSampler(node, changed);
    else if (COMPARING.includes(node.comfyClass ?? "")) watchComparison(node, api);
    else if (node.comfyClass === LORA) watchLora(node, changed);
    else if (node.comfyClass === LOADER) for (const widget of node.widgets ?? []) whenChanged(widget, changed);
    changed();
  },
  loadedGraphNode: changed,
});
