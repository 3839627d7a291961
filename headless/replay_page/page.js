// The document. Texts of the report go into text nodes and attributes only: the page's policy forbids HTML made of text.

const report = JSON.parse(document.getElementById("data").textContent);
const cells = report.cells;
const many = manyStrengths(cells);
const filter = { verdicts: new Set(), checkpoint: "", prompt: "" };
const order = { key: "step", falling: false };
const ROWS = 500; // of the table at a time: ten thousand take a browser seconds, at every change of a filter
let shown = cells;
let first = 0; // place in `shown` of the table's first row
let current = null;
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

// --- pictures -----------------------------------------------------------------------------------

function picture(cell, role, words) {
  const name = cell.files[role];
  if (name === null) return element("p", { class: "absent" }, `no ${words}`);
  const image = element("img", { alt: `${words}, ${cellText(cell, many)}`, draggable: "false" });
  image.src = report.pictures[name];
  return image;
}

const ROLES = { trainer: "picture of the trainer", engine: "picture of its engine", ours: "picture of ours", heat_map: "heat map" };
const NAMES = { trainer: "AI Toolkit", engine: "AI Toolkit's engine", ours: "Ours", heat_map: "Heat map" };

function framed(cell, role) {
  return element("figure", {}, element("figcaption", {}, NAMES[role]), frame(cell, picture(cell, role, ROLES[role])));
}

function frame(cell, ...children) {
  const [width, height] = cell.size;
  const made = element("div", { class: width <= 256 ? "frame small" : "frame" }, ...children);
  made.style.setProperty("--width", width);
  made.style.setProperty("--height", height);
  return made;
}

function slider(cell) {
  const { left, right } = sidesOf(cell);
  const front = picture(cell, left, ROLES[left]);
  front.classList.add("front");
  const box = frame(
    cell,
    picture(cell, right, ROLES[right]),
    front,
    element("span", { class: "side left" }, NAMES[left]),
    element("span", { class: "side right" }, NAMES[right]),
    element("span", { class: "handle", "aria-hidden": "true" }),
  );
  box.classList.add("sliding");
  const range = element("input", {
    type: "range", min: 0, max: 100, step: 0.5, value: cut,
    "aria-label": `Part of the picture on the left, ${NAMES[left]}, that is shown, in percent`,
  });
  const moveTo = (value) => {
    cut = Math.min(100, Math.max(0, value));
    range.value = cut;
    box.style.setProperty("--cut", `${cut}%`);
  };
  const follow = (event) => {
    const place = box.getBoundingClientRect();
    moveTo((100 * (event.clientX - place.left)) / place.width);
  };
  range.addEventListener("input", () => moveTo(Number(range.value)));
  box.addEventListener("pointerdown", (event) => {
    box.setPointerCapture(event.pointerId);
    follow(event);
  });
  box.addEventListener("pointermove", (event) => {
    if (box.hasPointerCapture(event.pointerId)) follow(event);
  });
  moveTo(cut);
  return [box, range];
}

function showStage() {
  const cell = current;
  const stage = byId("stage");
  const both = Object.values(sidesOf(cell)).every((role) => cell.files[role] !== null);
  stage.dataset.mode = mode;
  if (mode === "heat") stage.replaceChildren(framed(cell, "heat_map"));
  else if (mode === "slider" && both) stage.replaceChildren(...slider(cell));
  else {
    stage.dataset.mode = "side";
    const roles = mode === "side" ? Object.keys(NAMES) : Object.values(sidesOf(cell));
    const shownRoles = roles.filter((role) => role !== "engine" || hasEngine);
    stage.replaceChildren(...shownRoles.map((role) => framed(cell, role)));
  }
}

function setMode(name) {
  mode = name;
  for (const input of byId("modes").querySelectorAll("input")) input.checked = input.value === name;
  if (current) showStage();
}

// --- the chosen cell ----------------------------------------------------------------------------

function badge(made, verdict) {
  const { name, sign } = VERDICTS.find((one) => one.name === verdict);
  made.dataset.verdict = name;
  made.replaceChildren(element("span", { class: "sign", "aria-hidden": "true" }, sign), ` ${name}`);
  return made;
}

function choose(cell) {
  if (current) {
    rowOf(current).removeAttribute("aria-current");
    marks.get(current).removeAttribute("aria-current");
    marks.get(current).tabIndex = -1;
  }
  current = cell;
  const row = rowOf(cell);
  const mark = marks.get(cell);
  row.setAttribute("aria-current", "true");
  mark.setAttribute("aria-current", "true");
  mark.tabIndex = 0;
  const place = shown.indexOf(cell);
  if (place >= 0) {
    if (!row.isConnected) showRows(place - (place % ROWS));
    within(row.closest(".scroll"), row);
  }
  within(mark.closest(".scroll"), mark, byId("matrix").querySelector("th").offsetWidth);

  byId("cell-title").textContent = cellText(cell, many);
  badge(byId("badge"), cell.verdict);
  byId("words").textContent = cell.verdict_words;
  byId("error").hidden = cell.error === null;
  byId("error").textContent = cell.error ?? "";
  byId("causes").hidden = cell.causes.length === 0;
  byId("causes").querySelector("ol").replaceChildren(...cell.causes.map((cause) => element("li", {}, cause)));
  pairs(byId("metrics"), METRICS.map((metric) => [metric.label, metricText(cell, metric), metric.about]));
  pairs(byId("settings"), [
    ["Prompt", cell.prompt],
    ["Negative", cell.negative ?? "none"],
    ["Seed", cell.seed ?? "drawn by the trainer, not kept"],
    ["Size", `${cell.size[0]} \u00d7 ${cell.size[1]}`],
    ["Strength", cell.strength === null ? "no LoRA" : String(cell.strength)],
  ]);
  showEngine(cell);
  showStage();
  showMoves();
  history.replaceState(null, "", `#cell-${cells.indexOf(cell)}`);
}

// scrolls a box, and not the page, so far that something in it is seen; `left`: the width of a first column that stays
function within(box, inner, left = 0) {
  const top = box.querySelector("thead").offsetHeight;
  const [outside, inside] = [box.getBoundingClientRect(), inner.getBoundingClientRect()];
  box.scrollTop += beyond(inside.top, inside.bottom, outside.top + top, outside.bottom);
  if (left) box.scrollLeft += beyond(inside.left, inside.right, outside.left + left, outside.right);
}

// a press on a cell: on narrow windows the viewer may be out of sight
function open(cell) {
  choose(cell);
  const top = byId("viewer").getBoundingClientRect().top;
  if (top < 0 || top > 0.6 * innerHeight) byId("viewer").scrollIntoView({ block: "start" });
}

function move(by) {
  const next = shown[shown.indexOf(current) + by];
  if (next) choose(next);
}

function showMoves() {
  const place = shown.indexOf(current);
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place === shown.length - 1;
}

// --- overview -----------------------------------------------------------------------------------

// cell -> its square
const marks = new Map();

function makeMatrix() {
  const columns = each(cells, (cell) => columnText(cell, many));
  const samples = [...new Set(cells.map((cell) => cell.index))].sort((a, b) => a - b);
  const at = new Map(cells.map((cell) => [`${cell.index}/${columnText(cell, many)}`, cell]));
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
      element("td", { class: "thumbs" }, small(cell, "trainer"), ...(hasEngine ? [small(cell, "engine")] : []), small(cell, "ours")),
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

// --- filter -------------------------------------------------------------------------------------

function makeFilters() {
  const counts = new Map();
  for (const { verdict } of cells) counts.set(verdict, (counts.get(verdict) ?? 0) + 1);
  const there = VERDICTS.filter(({ name }) => counts.has(name));
  byId("bar").replaceChildren(...there.map(({ name }) => {
    const part = element("span", { "data-verdict": name, title: `${counts.get(name)} ${name}` });
    part.style.setProperty("flex-grow", counts.get(name));
    return part;
  }));
  byId("verdicts").replaceChildren(...there.map(({ name, sign }) =>
    element(
      "button", {
        type: "button", class: "chip", "data-verdict": name, "aria-pressed": "false",
        onclick: () => {
          if (!filter.verdicts.delete(name)) filter.verdicts.add(name);
          showCells();
        },
      },
      element("span", { class: "sign", "aria-hidden": "true" }, sign), ` ${name} `, element("b", {}, String(counts.get(name))),
    ),
  ));
  byId("checkpoint").replaceChildren(
    element("option", { value: "" }, "all"),
    ...each(cells, checkpointText).map((text) => element("option", { value: text }, text)),
  );
  byId("checkpoint").addEventListener("change", (event) => {
    filter.checkpoint = event.target.value;
    showCells();
  });
  byId("prompt").addEventListener("input", (event) => {
    filter.prompt = event.target.value;
    showCells();
  });
  byId("clear").addEventListener("click", () => {
    filter.verdicts.clear();
    filter.checkpoint = byId("checkpoint").value = "";
    filter.prompt = byId("prompt").value = "";
    showCells();
  });
}

function showCells() {
  shown = inOrderOf(cells.filter((cell) => fits(cell, filter)), order.key, order.falling);
  showRows(0);
  const visible = new Set(shown);
  for (const [cell, made] of marks) made.classList.toggle("out", !visible.has(cell));
  for (const chip of byId("verdicts").children) chip.setAttribute("aria-pressed", filter.verdicts.has(chip.dataset.verdict));
  for (const head of byId("table").querySelectorAll("th[data-key]")) {
    if (head.dataset.key === order.key) head.setAttribute("aria-sort", order.falling ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  byId("count").textContent = shown.length === cells.length ? `${cells.length} shown` : `${shown.length} of ${cells.length} shown`;
  byId("clear").hidden = shown.length === cells.length;
  byId("table").hidden = shown.length === 0;
  byId("empty").hidden = shown.length > 0;
  byId("empty").textContent = cells.length ? "No cell fits these filters." : "The replay has no cells.";
  if (current && !visible.has(current) && shown.length) choose(shown[0]);
  else if (current) showMoves();
}
