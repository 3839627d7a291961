// Last of the script: everything it calls is there.

function begin() {
  byId("job").textContent = report.job;
  byId("where").textContent = report.where;
  pairs(byId("facts"), [
    ["Model", report.model],
    ["Trained with", report.trained_with ? `AI Toolkit ${report.trained_with}` : "unknown version"],
    ["Replayed", report.date],
    ...Object.entries(report.environment),
  ]);
  if (report.notes.length) {
    const notes = byId("notes");
    notes.hidden = false;
    notes.querySelector("summary").textContent = report.notes.length === 1 ? "1 note" : `${report.notes.length} notes`;
    notes.querySelector("ul").replaceChildren(...report.notes.map((note) => element("li", {}, note)));
  }
  makeFilters();
  makePairs();
  makeMatrix();
  makeTable();
  showCells();
  for (const section of ["overview", "viewer", "filters", "bar"]) byId(section).hidden = cells.length === 0;
  const named = () => cells[Number(/^#cell-(\d+)$/.exec(location.hash)?.[1] ?? NaN)];
  if (cells.length) choose(named() ?? shown[0]);
  addEventListener("hashchange", () => named() && open(named()));
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  byId("modes").addEventListener("change", (event) => setMode(event.target.value));
  addEventListener("keydown", (event) => {
    if (!current || event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input[type=search], select")) return;
    const act = {
      j: () => move(1), k: () => move(-1), 1: () => setMode("slider"), 2: () => setMode("side"), 3: () => setMode("heat"),
    }[event.key.toLowerCase()];
    act?.();
  });
}

begin();
