// Two pictures as numbers: what pipelines/compare measures, for pairs that the report does not have. A picture is
// { width, height, data } with four values a pixel, as a canvas gives them; the fourth, how opaque it is, is left out.

// null where the sizes are not the same
function differenceOf(first, second) {
  if (first.width !== second.width || first.height !== second.height) return null;
  const values = 3 * first.width * first.height;
  let [max, sum, squares, differing] = [0, 0, 0, 0];
  for (let place = 0; place < first.data.length; place += 1) {
    if (place % 4 === 3) continue;
    const levels = Math.abs(first.data[place] - second.data[place]);
    if (levels === 0) continue;
    differing += 1;
    sum += levels;
    squares += levels * levels;
    if (levels > max) max = levels;
  }
  const psnr = squares ? 10 * Math.log10(255 ** 2 / (squares / values)) : null;
  return { max, mean: sum / values, share: differing / values, psnr };
}

// the largest difference of each pixel in the legend's colours: rows of least difference, words, colour
function heatOf(first, second, legend) {
  const colours = [];
  for (let levels = 0; levels < 256; levels += 1) colours.push(legend.findLast(([least]) => least <= levels)[2]);
  const heat = new Uint8ClampedArray(first.data.length);
  for (let place = 0; place < heat.length; place += 4) {
    let largest = 0;
    for (let value = place; value < place + 3; value += 1) {
      largest = Math.max(largest, Math.abs(first.data[value] - second.data[value]));
    }
    heat.set(colours[largest], place);
    heat[place + 3] = 255;
  }
  return heat;
}
