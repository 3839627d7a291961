// The document. Texts of the report go into text nodes and attributes only: the page's policy forbids HTML made of text.

const report = JSON.parse(document.getElementById("data").textContent);
const cells = report.cells;
const many = manyStrengths(cells);
const hasEngine = cells.some((cell) => cell.oracle !== null); // whether AI Toolkit's own engine was asked too
const filter = { verdicts: new Set(), checkpoint: "", strength: "", prompt: "" };
const order = { key: "step", falling: false };
const ROWS = 500; // of the table at a time: ten thousand take a browser seconds, at every change of a filter
let shown = cells;
let first = 0; // place in `shown` of the table's first row
let current = null;
let view = "cell"; // or "pair": any two pictures
let mode = "slider";
let cut = 50; // where the slider is, in percent of the width

const byId = (id) => document.getElementById(id);

// `element("p", { class: "x", onclick: f }, "text", child)`
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key.slice(2), value);
    else if (value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function pairs(list, rows) {
  list.replaceChildren(
    ...rows.map(([term, text, about]) =>
      element("div", { title: about ?? null }, element("dt", {}, term), element("dd", {}, text)),
    ),
  );
}
