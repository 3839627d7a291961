// --- overview -----------------------------------------------------------------------------------

const columns = each(cells, (cell) => columnText(cell, many));
const samples = [...new Set(cells.map((cell) => cell.index))].sort((a, b) => a - b);
const at = new Map(cells.map((cell) => [`${cell.index}/${columnText(cell, many)}`, cell]));
// cell -> its square
const marks = new Map();

function makeMatrix() {
  const grid = samples.map((index) => columns.map((column) => at.get(`${index}/${column}`)));
  const head = element(
    "tr", {}, element("th", { scope: "col" }, "Sample"),
    ...columns.map((column) => element("th", { scope: "col" }, element("span", {}, column))),
  );
  const body = grid.map((line, place) => {
    const { index, prompt } = line.find(Boolean);
    return element(
      "tr", {}, element("th", { scope: "row", title: prompt }, element("b", {}, String(index)), ` ${prompt}`),
      ...line.map((cell, column) => (cell ? element("td", {}, mark(cell, grid, place, column)) : element("td"))),
    );
  });
  byId("matrix").replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
}

function mark(cell, grid, row, column) {
  const words = `${cellText(cell, many)}: ${cell.verdict}`;
  const { sign } = VERDICTS.find((verdict) => verdict.name === cell.verdict);
  const made = element("button", {
    type: "button", class: "mark", "data-verdict": cell.verdict, "aria-label": words, title: words, tabindex: -1,
    onclick: () => open(cell),
    onkeydown: (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
      const next = grid[row + down]?.[column + right];
      if (!next || next === cell) return;
      event.preventDefault();
      choose(next);
      marks.get(next).focus({ preventScroll: true });
    },
  }, sign);
  marks.set(cell, made);
  return made;
}

// --- table --------------------------------------------------------------------------------------

// cell -> its row
const rows = new Map();
const COLUMNS = [
  { key: "step", label: "Step", about: "the checkpoint's step" },
  { key: "index", label: "Sample", about: "the sample's place in its round" }, // its prompt stands beside it
  ...(many ? [{ key: "strength", label: "Strength", about: "the LoRA's strength" }] : []),
  { key: "verdict", label: "Verdict", about: "best first" },
  // LPIPS, for example, is measured only where its library is installed
  ...METRICS.filter(({ key }) => cells.some((cell) => cell.metrics[key] !== null)),
];

// browsers defer pictures of the network alone, and these are of a file: they are set when a row comes near
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    target.src = report.pictures[target.dataset.name];
  }
}, { rootMargin: "200px" });

function small(cell, role) {
  const name = cell.files[role];
  if (name === null) return element("span", { class: "thumb none", title: `no ${ROLES[role]}` });
  const image = element("img", { class: "thumb", alt: "", decoding: "async", "data-name": name, title: NAMES[role] });
  near.observe(image);
  return image;
}

function makeTable() {
  const head = COLUMNS.map(({ key, label, about }) =>
    element("th", { scope: "col", "data-key": key }, element("button", { type: "button", title: `Sort by ${about}`, onclick: () => sortBy(key) }, label)),
  );
  byId("table").querySelector("thead tr").replaceChildren(element("th", { scope: "col" }, "Pictures"), ...head);
  byId("table").tBodies[0].addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const here = shown.findIndex((cell) => rows.get(cell)?.contains(event.target));
    const next = by && shown[here + by];
    if (!next) return;
    event.preventDefault();
    choose(next);
    rowOf(next).querySelector("button").focus({ preventScroll: true });
  });
  byId("earlier").addEventListener("click", () => showRows(first - ROWS));
  byId("later").addEventListener("click", () => showRows(first + ROWS));
}

function rowOf(cell) {
  if (!rows.has(cell)) {
    const texts = {
      step: element("button", { type: "button", class: "plain", title: cellText(cell, many) }, `${cell.step}${cell.final ? " final" : ""}`),
      index: element("span", { class: "sample", title: cell.prompt }, element("b", {}, String(cell.index)), element("span", { class: "quiet" }, ` ${cell.prompt}`)),
      strength: cell.strength ?? "\u2013",
      verdict: badge(element("span", { class: "badge" }), cell.verdict),
      ...Object.fromEntries(METRICS.map((metric) => [metric.key, metricText(cell, metric)])),
    };
    const row = element(
      "tr", { onclick: () => open(cell) },
      element("td", { class: "thumbs" }, ...PICTURES.map((role) => small(cell, role))),
      ...COLUMNS.map(({ key }) => element("td", { "data-key": key }, texts[key])),
    );
    rows.set(cell, row);
  }
  return rows.get(cell);
}

function showRows(from) {
  first = from;
  const end = Math.min(first + ROWS, shown.length);
  byId("table").tBodies[0].replaceChildren(...shown.slice(first, end).map(rowOf));
  byId("pager").hidden = shown.length <= ROWS;
  byId("range").textContent = `${first + 1} to ${end} of ${shown.length}`;
  byId("earlier").disabled = first === 0;
  byId("later").disabled = end === shown.length;
  byId("table").closest(".scroll").scrollTop = 0;
}

function sortBy(key) {
  order.falling = order.key === key && !order.falling;
  order.key = key;
  showCells();
}
