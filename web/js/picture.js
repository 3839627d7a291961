// @ts-check
// The texts inside a picture that AITK Save Image wrote. The page opens the graph of a PNG and of a WebP by itself, and
// that of a JPEG never: it has no hook for files that are dropped, so a command and Load Image's menu open those.

const ASCII = new TextDecoder("latin1");
const JPEG = 0xffd8;
const EXIF = 0xffe1; // the segment
const STRING = 2; // EXIF's type of a text

/**
 * The texts in a JPEG: `{ workflow: "{...}", prompt: "{...}", aitk_report: "{...}" }`; empty where it has none.
 *
 * @param {ArrayBuffer} data the file
 * @returns {Record<string, string>}
 */
export function jpegTexts(data) {
  const view = new DataView(data);
  if (view.byteLength < 4 || view.getUint16(0) !== JPEG) return {};
  let at = 2;
  while (at + 10 <= view.byteLength) {
    const marker = view.getUint16(at);
    const size = view.getUint16(at + 2);
    if ((marker & 0xff00) !== 0xff00 || size < 2 || at + 2 + size > view.byteLength) return {};
    if (marker === EXIF && ASCII.decode(new Uint8Array(data, at + 4, 6)) === "Exif\0\0") {
      return exifTexts(new DataView(data, at + 10, size - 8));
    }
    // the picture itself
    if (marker === 0xffda) return {};
    at += 2 + size;
  }
  return {};
}

/**
 * Every text `name:value` of the first directory, as ComfyUI writes a workflow into WebP.
 *
 * @param {DataView} view of TIFF
 * @returns {Record<string, string>}
 */
export function exifTexts(view) {
  /** @type {Record<string, string>} */
  const found = {};
  if (view.byteLength < 8) return found;
  const little = view.getUint16(0) === 0x4949;
  const start = view.getUint32(4, little);
  if (start + 2 > view.byteLength) return found;
  const count = view.getUint16(start, little);
  for (let entry = 0; entry < count; entry++) {
    const at = start + 2 + 12 * entry;
    if (at + 12 > view.byteLength) return found;
    const length = view.getUint32(at + 4, little);
    const place = length > 4 ? view.getUint32(at + 8, little) : at + 8;
    if (view.getUint16(at + 2, little) !== STRING || place + length > view.byteLength) continue;
    const text = ASCII.decode(new Uint8Array(view.buffer, view.byteOffset + place, length)).replace(/\0+$/, "");
    const colon = text.indexOf(":");
    if (colon > 0) found[text.slice(0, colon)] = text.slice(colon + 1);
  }
  return found;
}

/**
 * The graph in a picture; null where there is none that the editor opens.
 *
 * @param {ArrayBuffer} data the file, a JPEG
 * @returns {object | null}
 */
export function graphIn(data) {
  try {
    const graph = JSON.parse(jpegTexts(data).workflow ?? "null");
    return graph && typeof graph === "object" && Array.isArray(graph.nodes) ? graph : null;
  } catch {
    // a text that is no workflow of ComfyUI's
    return null;
  }
}
