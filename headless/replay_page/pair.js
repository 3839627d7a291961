// --- any two pictures ---------------------------------------------------------------------------

// what the selects of each side say
const slots = { left: null, right: null };
const files = new Map(); // picture's name -> its file, once the user chose the folder
let turn = 0; // of measuring: an older one that ends later says nothing

// the pair begins as the chosen cell's two pictures
function beginPair() {
  if (slots.left) return;
  slots.left = slotOf(current, "trainer");
  slots.right = slotOf(current, "ours");
  byId("slots").replaceChildren(...Object.keys(slots).map(makeSlot));
  byId("folder").addEventListener("change", (event) => takeFolder(event.target.files));
}

function slotOf(cell, role) {
  return { role, column: columnText(cell, many), index: String(cell.index) };
}

function makeSlot(side) {
  const prompts = new Map(cells.map((cell) => [cell.index, cell.prompt]));
  const select = (key, about, options) => {
    const change = (event) => {
      slots[side][key] = event.target.value;
      showPair();
    };
    const made = element(
      "select", { "aria-label": `${about}, ${side}`, title: about, "data-key": key, onchange: change },
      ...options.map(([value, text]) => element("option", { value }, text)),
    );
    made.value = slots[side][key];
    return made;
  };
  return element(
    "fieldset", { class: "slot", "data-side": side },
    element("legend", {}, side === "left" ? "Left" : "Right"),
    select("role", "Whose picture", PICTURES.map((role) => [role, NAMES[role]])),
    select("column", many ? "Checkpoint \u00d7 strength" : "Checkpoint", columns.map((text) => [text, text])),
    select("index", "Sample", samples.map((index) => [String(index), `${index} ${prompts.get(index).slice(0, 60)}`])),
    element("button", { type: "button", onclick: () => take(side) }, "Chosen cell ", element("kbd", {}, side === "left" ? "A" : "B")),
  );
}

// the chosen cell's picture becomes one of the two; whose it is stays
function take(side) {
  beginPair();
  setSlot(side, slots[side].role);
  setView("pair");
}

// two of the chosen cell's pictures become the pair
function takeBoth([left, right]) {
  beginPair();
  setSlot("left", left);
  setSlot("right", right);
  setView("pair");
  // what was pressed is of the other view
  byId("views").querySelector("input:checked").focus();
}

function setSlot(side, role) {
  slots[side] = slotOf(current, role);
  for (const select of byId("slots").querySelectorAll(`[data-side="${side}"] select`)) select.value = slots[side][select.dataset.key];
}

function showPair() {
  turn += 1;
  const found = Object.values(slots).map(({ role, column, index }) => ({ role, column, index, cell: at.get(`${index}/${column}`) }));
  const missing = found.find(({ cell }) => !cell);
  byId("folder-label").hidden = true;
  if (missing) {
    byId("stage").replaceChildren();
    byId("metrics").replaceChildren();
    byId("pair-words").textContent = `The replay has no cell ${missing.column}, sample ${missing.index}. Choose another one.`;
    return;
  }
  const pictures = found.map(({ cell, role }) => shownPicture(cell, role, `${NAMES[role]}, ${cellText(cell, many)}`));
  const names = found.map(({ cell, role }) => cell.files[role]);
  const heat = element("canvas", { role: "img", "aria-label": "Heat map" });
  showStage(pictures, { cell: found[0].cell, name: NAMES.heat_map, content: heat });
  byId("metrics").replaceChildren();
  if (names.includes(null)) byId("pair-words").textContent = "One of the two pictures is not there, so that nothing is measured.";
  else measure(names, heat, turn);
}

async function measure(names, heat, own) {
  const say = (words) => {
    byId("pair-words").textContent = words;
  };
  say("Measuring \u2026");
  let pixels;
  try {
    pixels = await Promise.all(names.map(pixelsOf));
  } catch (error) {
    if (own !== turn) return;
    if (!(error instanceof DOMException)) throw error;
    // which every browser throws of a file beside a page from the disk
    byId("folder-label").hidden = error.name !== "SecurityError";
    say(
      error.name === "SecurityError"
        ? "To measure pictures beside a page from the disk, the browser wants to be told their folder. Choose the one " +
          "that this page's pictures are in; nothing is sent anywhere."
        : `A picture cannot be read: ${error.message}`,
    );
    return;
  }
  if (own !== turn) return;
  const found = differenceOf(...pixels);
  const [first, second] = pixels;
  if (!found) {
    say(`The pictures are ${first.width} \u00d7 ${first.height} and ${second.width} \u00d7 ${second.height} pixels: only those of one size have a difference.`);
    return;
  }
  [heat.width, heat.height] = [first.width, first.height];
  heat.getContext("2d").putImageData(new ImageData(heatOf(first, second, report.legend), first.width), 0, 0);
  showMetrics({ metrics: { ...found, ssim: null, lpips: null } });
  const lossy = names.map((name) => /\.(jpe?g|webp)$/i.test(name));
  say(
    "Measured by this page; SSIM and LPIPS are not." +
      (lossy[0] === lossy[1] ? "" : " One file is compressed with loss and the other is not, which is in the numbers; a cell's own have ours compressed as the trainer does."),
  );
}

// the pixels of a picture of the report
async function pixelsOf(name) {
  let source = files.get(name);
  if (!source) {
    source = new Image();
    source.src = report.pictures[name];
    await source.decode();
  }
  // colours as they are stored
  const bitmap = await createImageBitmap(source, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = element("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  checkReading();
  return context.getImageData(0, 0, width, height);
}

// privacy settings of some browsers change what a page reads, without a word
function checkReading() {
  const known = new ImageData(64, 64);
  for (let place = 0; place < known.data.length; place += 1) known.data[place] = place % 4 === 3 ? 255 : (place * 7) % 256;
  const context = element("canvas", { width: 64, height: 64 }).getContext("2d", { willReadFrequently: true });
  context.putImageData(known, 0, 0);
  const read = context.getImageData(0, 0, 64, 64).data;
  if (read.some((value, place) => value !== known.data[place])) {
    throw new DOMException("this browser alters the pixels that a page reads. Allow this page to read a canvas.", "NotReadableError");
  }
}

function takeFolder(chosen) {
  for (const file of chosen) {
    const name = file.webkitRelativePath.split("/").slice(1).join("/");
    if (Object.hasOwn(report.pictures, name)) files.set(name, file);
  }
  showPair();
  if (files.size === 0) {
    byId("pair-words").textContent = "That folder has none of this page's pictures. Choose the one with the folders ours and trainer.";
    byId("folder-label").hidden = false;
    turn += 1;
  }
}
