// @ts-check
// Opening the graph inside a JPEG: a command of the editor, and an entry in Load Image's menu.

import { element } from "./dom.js";
import { widgetOf } from "./panel.js";
import { graphIn } from "./picture.js";
import { say } from "./words.js";

/** @import { Api, App, Node } from "./types.d.ts" */

export const COMMAND = "AITK.OpenPicture";

/** @param {App} app */
export function openPicture(app) {
  const input = /** @type {HTMLInputElement} */ (element("input", { type: "file", accept: "image/jpeg,image/png,image/webp" }));
  input.addEventListener("change", async () => {
    const file = input.files?.[0];
    if (!file) return;
    // the page reads all others by itself
    if (file.type !== "image/jpeg") await app.handleFile(file);
    else await openGraph(app, await file.arrayBuffer(), file.name);
  });
  input.click();
}

/**
 * Entries of a node's menu.
 *
 * @param {App} app
 * @param {Api} api
 * @param {Node} node
 */
export function pictureMenu(app, api, node) {
  const name = String(widgetOf(node, "image")?.value ?? "");
  if (node.comfyClass !== "LoadImage" || !/\.jpe?g( \[\w+\])?$/i.test(name)) return [];
  return [{ content: say("picture.open"), callback: () => openInput(app, api, name) }];
}

/**
 * @param {App} app
 * @param {Api} api
 * @param {string} name as Load Image has it: `folder/x.jpg`, `x.jpg [output]`
 */
async function openInput(app, api, name) {
  const [, path, type] = name.match(/^(.*?)(?: \[(\w+)\])?$/) ?? [];
  const parts = path.split("/");
  const query = new URLSearchParams({ filename: parts.pop() ?? "", subfolder: parts.join("/"), type: type ?? "input" });
  const answer = await api.fetchApi(`/view?${query}`);
  if (answer.ok) await openGraph(app, await answer.arrayBuffer(), path);
  else tell(app, say("picture.gone", { file: path }));
}

/**
 * @param {App} app
 * @param {ArrayBuffer} data
 * @param {string} name
 */
async function openGraph(app, data, name) {
  const graph = graphIn(data);
  if (graph) await app.loadGraphData(graph, true, true, name.replace(/\.\w+$/, ""));
  else tell(app, say("picture.noGraph", { file: name }));
}

/**
 * @param {App} app
 * @param {string} text
 */
function tell(app, text) {
  app.extensionManager.toast.add({ severity: "warn", summary: "AITK", detail: text, life: 8000 });
}
