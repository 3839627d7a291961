// --- AI Toolkit's own engine --------------------------------------------------------------------

// what the three pictures say together, and how far each two of them are apart
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
    element("tbody", {}, ...oracle.pairs.map(pairRow)),
  );
}

function pairRow({ pair, verdict, metrics }) {
  const names = pair.map((role) => NAMES[role]).join(" and ");
  const button = element("button", { type: "button", class: "plain", title: "Compare these two", onclick: () => takeBoth(pair) }, names);
  return element(
    "tr", {}, element("th", { scope: "row" }, button),
    element("td", {}, badge(element("span", { class: "badge" }), verdict)),
    ...METRICS.map((metric) => element("td", {}, metricText({ metrics }, metric))),
  );
}
