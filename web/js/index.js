// @ts-check
// The editor's extension. Everything here is a help: graphs load, run and save without it.

// @ts-ignore: ComfyUI serves it
import { api } from "../../../scripts/api.js";
// @ts-ignore: ComfyUI serves it
import { app } from "../../../scripts/app.js";
import { forgetBases, refreshBase, watchBase, watchRuns } from "./base.js";
import { colourSockets } from "./colours.js";
import { addStyle } from "./dom.js";
import { ENGLISH } from "./english.js";
import { LOADER, OPTIONS, allNodes } from "./graph.js";
import { refreshLoader, watchLoader } from "./loader.js";
import { LORA, refreshLora, watchLora } from "./lora.js";
import { COMMAND, openPicture, pictureMenu } from "./open_picture.js";
import { refreshOptions, usersOfOptions, watchOptions } from "./options.js";
import { SAMPLER, refreshSampler, watchSampler } from "./sampler.js";
import { forgetFiles, heldModels, modelFacts, sayOnce, translations } from "./server.js";
import { COMPARING, watchComparison } from "./viewer.js";
import { learn } from "./words.js";

/** @import { Node } from "./types.d.ts" */

const LOCALE = "Comfy.Locale"; // the page's setting

const SOON = 60; // milliseconds: several changes are one
let waiting = 0;
/** @type {Promise<void>} */
let learned = Promise.resolve();

/** Brings every node of ours up to date, soon. */
function changed() {
  clearTimeout(waiting);
  waiting = setTimeout(refresh, SOON);
}

async function refresh() {
  await learned;
  const facts = await modelFacts();
  if (!facts) return;
  try {
    const nodes = [...allNodes(app.rootGraph ?? app.graph)];
    for (const node of nodes) if (node.type === SAMPLER) refreshSampler(node, facts);
    const users = usersOfOptions(nodes.filter((node) => node.type === SAMPLER), facts);
    for (const node of nodes) {
      if (node.type === OPTIONS) refreshOptions(node, users.get(node) ?? []);
      if (node.type === LOADER) {
        // what lies on a slow disk keeps no other node waiting
        refreshBase(node).catch(sayOnce);
        refreshLoader(node, facts, heldModels(changed));
      }
      if (node.type === LORA) await refreshLora(node);
    }
  } catch (error) {
    sayOnce(error);
  }
}

/** @param {string} locale of the page */
async function speak(locale) {
  learn(locale, locale === "en" ? null : await translations());
}

app.registerExtension({
  name: "comfyui-aitk",
  commands: [{ id: COMMAND, label: ENGLISH["commands.AITK_OpenPicture.label"], icon: "pi pi-image", function: () => openPicture(app) }],
  menuCommands: [{ path: ["File"], commands: [COMMAND] }],
  /** @param {Node} node */
  getNodeMenuItems: (node) => pictureMenu(app, api, node),
  setup() {
    addStyle();
    colourSockets(app);
    learned = speak(String(app.extensionManager.setting.get(LOCALE) ?? "en"));
    app.ui?.settings?.addEventListener?.(`${LOCALE}.change`, (/** @type {CustomEvent} */ event) => {
      learned = speak(String(event.detail.value));
      changed();
    });
    api.addEventListener("graphChanged", changed);
    changed();
  },
  /** @param {Node} node */
  nodeCreated(node) {
    if (node.comfyClass === SAMPLER) {
      watchSampler(node, changed);
      watchRuns(node);
    } else if (COMPARING.includes(node.comfyClass ?? "")) watchComparison(node, api);
    else if (node.comfyClass === LORA) watchLora(node, changed);
    else if (node.comfyClass === OPTIONS) watchOptions(node, changed);
    else if (node.comfyClass === LOADER) {
      watchBase(node, changed);
      watchLoader(node, changed);
    }
    changed();
  },
  loadedGraphNode: changed,
  // the lists of files were read anew
  refreshComboInNodes() {
    forgetFiles();
    forgetBases();
    changed();
  },
});
