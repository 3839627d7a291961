// @ts-check
// Colours of the sockets and wires of the pack's own types: without one, all are the same grey.

/** @import { App } from "./types.d.ts" */

// bright enough on the dark theme, dark enough on the light one
export const COLOURS = {
  AITK_PIPELINE: "#b48ef2",
  AITK_CONTROL: "#5fb3d9",
  AITK_OPTIONS: "#d9a05f",
  AITK_RECIPE_OPTIONS: "#d9c65f",
  AITK_JOB: "#6fbf8b",
};

/** @param {App} app */
export function colourSockets(app) {
  for (const [type, colour] of Object.entries(COLOURS)) {
    // of the classic canvas, and of Vue nodes
    app.canvas.default_connection_color_byType[type] = colour;
    document.documentElement.style.setProperty(`--color-datatype-${type}`, colour);
  }
}
