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
  byId("strength-label").hidden = !many;
  byId("strength").replaceChildren(
    element("option", { value: "" }, "all"),
    ...strengthTexts(cells).map((text) => element("option", { value: text }, text)),
  );
  byId("strength").addEventListener("change", (event) => {
    filter.strength = event.target.value;
    showCells();
  });
  byId("prompt").addEventListener("input", (event) => {
    filter.prompt = event.target.value;
    showCells();
  });
  byId("clear").addEventListener("click", () => {
    filter.verdicts.clear();
    filter.checkpoint = byId("checkpoint").value = "";
    filter.strength = byId("strength").value = "";
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
