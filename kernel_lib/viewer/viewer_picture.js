// The picture: levels decoded from the embedded files, masks, layers, contours.

const TRUTH_COLOUR = [255, 176, 0]; // #ffb000
const PREDICTION_COLOUR = [79, 195, 247]; // #4fc3f7
const CACHED = 12; // decoded pictures
// Ten points of viridis (Smith & van der Walt 2015, CC0), which the colour-blind can read.
const VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"
  .split(" ")
  .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** Levels 0–255 (Uint8Array, row by row) of an embedded file, without colour management. */
async function levelsOf(base64, type, [width, height]) {
  if (base64 === null) return null;
  const exact = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(new Blob([bytesOf(base64)], { type }), exact);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const levels = new Uint8Array(width * height);
  for (let i = 0; i < levels.length; i++) levels[i] = data[4 * i]; // grey: all channels are equal
  return levels;
}

/** Decodes pictures on demand and caches the latest. */
function decoder(pictures) {
  const cache = new Map();
  return function decoded(index) {
    const picture = cache.get(index) ?? decode(pictures[index]);
    cache.delete(index);
    cache.set(index, picture); // the latest is last
    if (cache.size > CACHED) cache.delete(cache.keys().next().value);
    return picture;
  };
}

async function decode({ size, image, truth, maps }) {
  const [radiograph, trueMask, ...levels] = await Promise.all([
    levelsOf(image, "image/jpeg", size),
    levelsOf(truth, "image/png", size),
    ...maps.map((map) => levelsOf(map, "image/png", size)),
  ]);
  const mask = trueMask && trueMask.map((level) => +(level > 127));
  return { width: size[0], height: size[1], radiograph, truth: mask, maps: levels };
}

/** 0/1 of the pixels above `bottom`; all 0 unless the image keeps its mask. */
function maskOf(levels, isKept, bottom) {
  const mask = new Uint8Array(levels.length);
  const first = firstLevel(bottom);
  if (isKept) for (let i = 0; i < mask.length; i++) mask[i] = +(levels[i] >= first);
  return mask;
}

/** How many of the masks contain each pixel. */
function votesOf(masks) {
  const votes = new Uint8Array(masks[0].length);
  for (const mask of masks) for (let i = 0; i < votes.length; i++) votes[i] += mask[i];
  return votes;
}

/** The vote: pixels in at least k masks, or the union of masks that overlap k - 1 others. */
function votedMask(masks, k, union) {
  return union ? unionOfAgreeing(masks, k) : votesOf(masks).map((count) => +(count >= k));
}

function unionOfAgreeing(masks, k) {
  const holders = new Uint32Array(masks[0].length); // a bit for each mask
  masks.forEach((mask, m) => mask.forEach((inside, i) => (holders[i] |= inside << m)));
  const overlaps = new Uint32Array(masks.length); // masks that share a pixel with each, and itself
  for (const bits of new Set(holders)) {
    for (let m = 0; m < masks.length; m++) if ((bits >>> m) & 1) overlaps[m] |= bits;
  }
  let agreeing = 0;
  overlaps.forEach((others, m) => {
    if (others.toString(2).replaceAll("0", "").length >= k) agreeing |= 1 << m;
  });
  return Uint8Array.from(holders, (bits) => +((bits & agreeing) !== 0));
}

/** Each grey after windowing: 0 at level - width / 2, 255 at level + width / 2. */
function greysOf({ width, level }) {
  return Uint8ClampedArray.from({ length: LEVELS }, (_, grey) => {
    return ((grey - (level - width / 2)) / width) * 255;
  });
}

/** Red, green, blue and opacity 0–1 of each level (256 × 4): viridis; low levels are transparent. */
function probabilityColours(opacity) {
  return Float64Array.from({ length: LEVELS * 4 }, (_, at) => {
    const [level, part] = [at >> 2, at & 3];
    if (part === 3) return opacity * Math.sqrt(level / 255);
    const place = (level / 255) * (VIRIDIS.length - 1);
    const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
    const [low, high] = [VIRIDIS[below][part], VIRIDIS[below + 1][part]];
    return low + (place - below) * (high - low);
  });
}

/** The layers composed as RGBA at the picture's own size, without contours. */
function composed(picture, shown, layers, windowing, out) {
  const { data } = out;
  const { radiograph } = picture;
  const greys = layers.image.on && radiograph ? greysOf(windowing) : null;
  const colours = layers.probability.on ? probabilityColours(layers.probability.opacity) : null;
  for (let i = 0, at = 0; at < data.length; i++, at += 4) {
    const grey = greys ? greys[radiograph[i]] * layers.image.opacity : 0;
    let [red, green, blue] = [grey, grey, grey];
    if (colours) {
      const level = 4 * shown.levels[i];
      red += (colours[level] - red) * colours[level + 3];
      green += (colours[level + 1] - green) * colours[level + 3];
      blue += (colours[level + 2] - blue) * colours[level + 3];
    }
    data[at] = red;
    data[at + 1] = green;
    data[at + 2] = blue;
    data[at + 3] = 255;
  }
  fill(data, layers.truth, picture.truth, TRUTH_COLOUR);
  fill(data, layers.prediction, shown.mask, PREDICTION_COLOUR);
  return out;
}

function fill(data, layer, mask, [red, green, blue]) {
  if (!layer.on || !layer.fill || !mask) return;
  const { opacity } = layer;
  for (let i = 0, at = 0; i < mask.length; i++, at += 4) {
    if (!mask[i]) continue;
    data[at] += (red - data[at]) * opacity;
    data[at + 1] += (green - data[at + 1]) * opacity;
    data[at + 2] += (blue - data[at + 2]) * opacity;
  }
}

/** The mask's outline along the edges of its pixels, as closed lines in pixel coordinates. */
function outlineOf(mask, width, height) {
  // Each edge runs with the mask on its right; a corner keeps which of four directions leave it.
  const across = width + 1;
  const leaving = new Uint8Array(across * (height + 1));
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!mask[y * width + x]) continue;
      const corner = y * across + x;
      if (!inside(x, y - 1)) leaving[corner] |= 1; // rightwards along the top
      if (!inside(x + 1, y)) leaving[corner + 1] |= 2; // down the right side
      if (!inside(x, y + 1)) leaving[corner + across + 1] |= 4;
      if (!inside(x - 1, y)) leaving[corner + across] |= 8;
    }
  }
  const steps = [1, across, -1, -across];
  const path = new Path2D();
  for (let start = 0; start < leaving.length; start++) {
    while (leaving[start]) {
      let direction = 31 - Math.clz32(leaving[start]);
      let corner = start;
      path.moveTo(corner % across, Math.floor(corner / across));
      do {
        leaving[corner] &= ~(1 << direction);
        corner += steps[direction];
        // Right turns first, so that masks that touch at a corner keep separate lines.
        const turn = [1, 0, 3].find((by) => leaving[corner] & (1 << ((direction + by) % 4)));
        if (turn === undefined) break; // back at the start
        if (turn) path.lineTo(corner % across, Math.floor(corner / across));
        direction = (direction + turn) % 4;
      } while (true);
      path.closePath();
    }
  }
  return path;
}

/** Strokes a contour with the same width on the screen at every zoom. */
function strokeContour(context, path, [red, green, blue], dashed, px) {
  context.lineJoin = "round";
  context.setLineDash([]);
  context.strokeStyle = "rgba(0, 0, 0, 0.55)"; // visible on bright lungs as well
  context.lineWidth = 3.6 * px;
  context.stroke(path);
  context.setLineDash(dashed ? [7 * px, 4 * px] : []);
  context.strokeStyle = `rgb(${red}, ${green}, ${blue})`;
  context.lineWidth = 1.8 * px;
  context.stroke(path);
}
