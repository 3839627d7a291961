// --- pictures -----------------------------------------------------------------------------------

const ROLES = { trainer: "picture of the trainer", engine: "picture of its engine", ours: "picture of ours", heat_map: "heat map" };
const NAMES = { trainer: "AI Toolkit", engine: "AI Toolkit's engine", ours: "Ours", heat_map: "Heat map" };
// a cell's pictures, from left to right
const PICTURES = ["trainer", ...(hasEngine ? ["engine"] : []), "ours"];

// What stands on the stage: a cell, for its size; a name; and its image, or words on why there is none.
function shownPicture(cell, role, name) {
  const file = cell.files[role];
  if (file === null) return { cell, name, content: absent(`no ${ROLES[role]}`) };
  const image = element("img", { alt: `${ROLES[role]}, ${cellText(cell, many)}`, draggable: "false" });
  image.src = report.pictures[file];
  return { cell, name, content: image };
}

function absent(words) {
  return element("p", { class: "absent" }, words);
}

function framed({ cell, name, content }) {
  return element("figure", {}, element("figcaption", {}, name), frame(cell, content));
}

function frame(cell, ...children) {
  const [width, height] = cell.size;
  const made = element("div", { class: width <= 256 ? "frame small" : "frame" }, ...children);
  made.style.setProperty("--width", width);
  made.style.setProperty("--height", height);
  return made;
}

function slider(left, right) {
  left.content.classList.add("front");
  const box = frame(
    left.cell,
    right.content,
    left.content,
    element("span", { class: "side left" }, left.name),
    element("span", { class: "side right" }, right.name),
    element("span", { class: "handle", "aria-hidden": "true" }),
  );
  box.classList.add("sliding");
  const range = element("input", {
    type: "range", min: 0, max: 100, step: 0.5, value: cut,
    "aria-label": `Part of the left picture that is shown, in percent: ${left.name}`,
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

// the slider is between the first and the last of the pictures; the heat map says where these two differ
function showStage(pictures, heat) {
  const stage = byId("stage");
  const [left, right] = [pictures[0], pictures.at(-1)];
  const both = [left, right].every(({ content }) => content.tagName === "IMG");
  stage.dataset.mode = mode === "slider" && !both ? "side" : mode;
  if (mode === "heat") stage.replaceChildren(framed(heat), legend());
  else if (mode === "slider" && both) stage.replaceChildren(...slider(left, right));
  else stage.replaceChildren(...(mode === "side" ? [...pictures, heat] : pictures).map(framed));
}

// what the colours of a heat map say
function legend() {
  const colours = report.legend.map(([, words, colour]) => {
    const swatch = element("span", { class: "swatch" });
    swatch.style.setProperty("--colour", `rgb(${colour.join(" ")})`);
    return element("li", {}, swatch, words);
  });
  return element("ul", { class: "legend", "aria-label": "Largest difference of a pixel, in levels" }, ...colours);
}

function setMode(name) {
  mode = name;
  for (const input of byId("modes").querySelectorAll("input")) input.checked = input.value === name;
  showView();
}
