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
  pairs(byId("settings"), [
    ["Prompt", cell.prompt],
    ["Negative", cell.negative ?? "none"],
    ["Seed", cell.seed ?? "drawn by the trainer, not kept"],
    ["Size", `${cell.size[0]} \u00d7 ${cell.size[1]}`],
    ["Strength", strengthText(cell)],
  ]);
  showEngine(cell);
  if (view === "cell") showView();
  showMoves();
  history.replaceState(null, "", `#cell-${cells.indexOf(cell)}`);
}

function setView(name) {
  view = name;
  byId("viewer").dataset.view = name;
  for (const input of byId("views").querySelectorAll("input")) input.checked = input.value === name;
  if (view === "pair") beginPair();
  showView();
}

// the pictures and the numbers of the chosen cell, or of the pair
function showView() {
  if (view === "pair") showPair();
  else {
    showMetrics(current);
    const picture = (role) => shownPicture(current, role, NAMES[role]);
    showStage(PICTURES.map(picture), picture("heat_map"));
  }
}

function showMetrics(measured) {
  pairs(byId("metrics"), METRICS.map((metric) => [metric.label, metricText(measured, metric), metric.about]));
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
