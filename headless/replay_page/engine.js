// AI Toolkit's own engine beside the other two: which two pictures the slider is between, and how far the pairs are apart.

const hasEngine = report.cells.some((cell) => cell.oracle !== null);

// left and right of the slider; the first is what a page without an engine has
const SLIDERS = [
  { left: "trainer", right: "ours" },
  { left: "trainer", right: "engine" },
  { left: "engine", right: "ours" },
];
let sliderOf = SLIDERS[0];

function sidesOf(cell) {
  return cell.files.engine === null ? SLIDERS[0] : sliderOf;
}

function makePairs() {
  byId("pairs").hidden = !hasEngine;
  byId("pair").replaceChildren(
    ...SLIDERS.map(({ left, right }, place) => element("option", { value: place }, `${NAMES[left]} and ${NAMES[right]}`)),
  );
  byId("pair").addEventListener("change", (event) => {
    sliderOf = SLIDERS[Number(event.target.value)];
    setMode("slider");
  });
}

function showEngine(cell) {
  const oracle = cell.oracle;
  byId("engine").hidden = oracle === null;
  if (oracle === null) return;
  byId("finding").textContent = oracle.finding;
  byId("engine-words").textContent = oracle.words;
  byId("engine-pairs").hidden = oracle.pairs.length === 0;
  const head = ["Pair", "Verdict", ...METRICS.map(({ label }) => label)];
  byId("engine-pairs").replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...oracle.pairs.map((pair) =>
      element(
        "tr", {}, element("th", { scope: "row" }, pair.pair),
        element("td", {}, badge(element("span", { class: "badge" }), pair.verdict)),
        ...METRICS.map((metric) => element("td", {}, metricText(pair, metric))),
      ),
    )),
  );
}
