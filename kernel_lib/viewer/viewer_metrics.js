// Metrics: every image's areas and Dice under any rule, exactly as Python computes them
// (kernel_lib/postprocess: triplet, histograms, gate, metrics), and the order of the list.
// FULL_AREA and AREA_UNIT, the unit of areas, are defined by the page.

const LEVELS = 256;
const NONE = -1; // no image, no kind, no vote
// In the order of the column's sorting.
const KINDS_WITH_TRUTH = ["false negative", "false positive", "true positive", "true negative"];
const KINDS_WITHOUT_TRUTH = ["mask", "empty"];

/** The lowest level that exceeds a threshold: 1–256, the last of which none reaches. */
const firstLevel = (threshold) => Math.floor(255 * threshold) + 1;

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** The int32 values of `packed`: inflated and joined from four planes of bytes. */
async function unpacked(base64) {
  const inflating = new Blob([bytesOf(base64)]).stream();
  const stream = inflating.pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const n = planes.length / 4;
  const values = new Int32Array(n);
  for (let i = 0; i < n; i++) {
    values[i] =
      planes[i] | (planes[n + i] << 8) | (planes[2 * n + i] << 16) | (planes[3 * n + i] << 24);
  }
  return values;
}

/** Turns histograms (N × 256), in place, into counts of pixels at a level or above it. */
function cumulated(hist) {
  for (let start = 0; start < hist.length; start += LEVELS) {
    for (let i = start + LEVELS - 2; i >= start; i--) hist[i] += hist[i + 1];
  }
  return hist;
}

/** Max probability (0–1) of each image: its label where there are labels, else of any pixel. */
function maxProbabilities(n, all, label, hasLabels) {
  const maxima = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    let level = hasLabels ? label[i] : LEVELS - 1;
    if (!hasLabels) while (level > 0 && all[i * LEVELS + level] === 0) level--;
    maxima[i] = level < 0 ? NaN : level / 255;
  }
  return maxima;
}

/** The data behind the metrics; `values` are changed in place, not copied. */
function viewerData(payload, values) {
  const { id, fold, height, width } = payload.images;
  const n = id.length;
  let place = 0;
  const take = (count) => values.subarray(place, (place += count));
  const models = payload.models.map((model) => {
    const all = cumulated(take(n * LEVELS));
    const shared = payload.truth ? cumulated(take(n * LEVELS)) : null;
    const label = take(n);
    return { all, shared, label, maxima: maxProbabilities(n, all, label, model.labels) };
  });
  const px = Float64Array.from(height, (h, i) => h * width[i]);
  const first = models[0].shared;
  const truth = first && Int32Array.from(px, (_, i) => first[i * LEVELS]);
  let vote = null;
  if (payload.vote) {
    const voters = payload.vote.models;
    const area = take(n * voters.length);
    const shared = payload.truth ? take(n * voters.length) : null;
    const sum = (i) => voters.reduce((total, voter) => total + models[voter].maxima[i], 0);
    const maxima = Float64Array.from(px, (_, i) => sum(i) / voters.length);
    vote = { n: voters.length, area, shared, maxima };
  }
  if (place !== values.length) {
    throw new Error(`the page holds ${values.length} numbers, not ${place}`);
  }
  const byId = Array.from(id.keys()).sort((a, b) => (id[a] < id[b] ? -1 : +(id[a] > id[b])));
  const idRank = new Float64Array(n);
  byId.forEach((row, rank) => (idRank[row] = rank));
  const folds = Float64Array.from(fold, (f) => (f === null ? NaN : f));
  const lowerIds = id.map((text) => text.toLowerCase());
  const kinds = payload.truth ? KINDS_WITH_TRUTH : KINDS_WITHOUT_TRUTH;
  return { n, px, truth, models, vote, idRank, folds, lowerIds, kinds };
}

/** Whether an image keeps its mask under a rule. */
function isKept(data, model, rule, row) {
  const { all, label } = data.models[model];
  const level = firstLevel(rule.top);
  const above = level < LEVELS ? all[row * LEVELS + level] : 0;
  if (above * FULL_AREA < rule.min_area_px * data.px[row]) return false;
  return rule.label === null || label[row] > Math.floor(255 * rule.label);
}

/** Each image's mask under a rule: areas (Int32Array px), Dice and kinds. */
function evaluated(data, model, rule) {
  const { all, shared } = data.models[model];
  const bottom = firstLevel(rule.bottom);
  const areas = new Int32Array(data.n);
  const inTruth = new Int32Array(data.n);
  for (let i = 0; i < data.n; i++) {
    if (bottom >= LEVELS || !isKept(data, model, rule, i)) continue;
    areas[i] = all[i * LEVELS + bottom];
    if (shared) inTruth[i] = shared[i * LEVELS + bottom];
  }
  return metricsOf(data, areas, inTruth);
}

/** The same for the vote of at least k masks, under the chosen rules of its models. */
function voted(data, k) {
  const { n, area, shared } = data.vote;
  const areas = new Int32Array(data.n);
  const inTruth = new Int32Array(data.n);
  for (let i = 0; i < data.n; i++) {
    areas[i] = area[i * n + k - 1];
    if (shared) inTruth[i] = shared[i * n + k - 1];
  }
  return metricsOf(data, areas, inTruth);
}

function metricsOf(data, areas, shared) {
  const { n, truth } = data;
  const kinds = new Int8Array(n);
  const dice = truth && new Float64Array(n);
  for (let i = 0; i < n; i++) {
    if (!truth) {
      kinds[i] = areas[i] ? 0 : 1;
      continue;
    }
    const total = areas[i] + truth[i];
    dice[i] = total === 0 ? 1 : (2 * shared[i]) / total;
    kinds[i] = truth[i] ? (areas[i] ? 2 : 0) : areas[i] ? 1 : 3;
  }
  return { areas, dice, kinds };
}

/** Means and counts over some rows, or over all where `rows` is null. */
function summaryOf(data, { areas, dice, kinds }, rows) {
  const n = rows ? rows.length : data.n;
  const counts = new Array(data.kinds.length).fill(0);
  const [mean, positive] = [runningSum(), runningSum()];
  let masks = 0;
  let truths = 0;
  for (let place = 0; place < n; place++) {
    const i = rows ? rows[place] : place;
    counts[kinds[i]]++;
    if (areas[i]) masks++;
    if (!dice) continue;
    mean.add(dice[i]);
    if (data.truth[i] === 0) continue;
    truths++;
    positive.add(dice[i]);
  }
  return {
    n,
    mean: dice ? mean.total() / n : NaN,
    positive: dice ? positive.total() / truths : NaN,
    withMask: masks / n,
    counts,
  };
}

/** A compensated sum (Neumaier 1974), equal to Python's fsum to its last digits. */
function runningSum() {
  let sum = 0;
  let dropped = 0;
  return {
    add(value) {
      const next = sum + value;
      const sumLarger = Math.abs(sum) >= Math.abs(value);
      dropped += sumLarger ? sum - next + value : value - next + sum;
      sum = next;
    },
    total: () => sum + dropped,
  };
}

/** An area in AREA_UNIT. */
const scaledArea = (data, area, row) => (area * FULL_AREA) / data.px[row];

/** The values (N) of a column to sort and filter by; NaN where there is none. */
function columnOf(data, metrics, maxima, name) {
  const scaled = (areas) => Float64Array.from(areas, (area, i) => scaledArea(data, area, i));
  const none = () => new Float64Array(data.n).fill(NaN);
  switch (name) {
    case "id":
      return data.idRank;
    case "fold":
      return data.folds;
    case "max-probability":
      return maxima;
    case "truth":
      return data.truth ? scaled(data.truth) : none();
    case "kind":
      return metrics ? metrics.kinds : none();
    case "dice":
      return (metrics && metrics.dice) || none();
    default:
      return metrics ? scaled(metrics.areas) : none();
  }
}

/** Rows that pass the filters, sorted; those without a value last, equal ones in data order. */
function listed(data, metrics, maxima, filter, sort, embedded) {
  const text = filter.text.trim().toLowerCase();
  const ranges = Object.entries(filter.ranges)
    .filter(([, [low, high]]) => low !== null || high !== null)
    .map(([name, [low, high]]) => [
      columnOf(data, metrics, maxima, name),
      low ?? -Infinity,
      high ?? Infinity,
    ]);
  const allKinds = filter.kinds.every(Boolean);
  const passing = new Uint32Array(data.n);
  let count = 0;
  for (let i = 0; i < data.n; i++) {
    const kind = metrics ? metrics.kinds[i] : NONE;
    if (kind === NONE ? !allKinds : !filter.kinds[kind]) continue;
    if (filter.fold !== null && data.folds[i] !== filter.fold) continue;
    if (filter.embedded && !embedded.has(i)) continue;
    if (text && !data.lowerIds[i].includes(text)) continue;
    if (!ranges.every(([values, low, high]) => values[i] >= low && values[i] <= high)) continue;
    passing[count++] = i;
  }
  const keys = columnOf(data, metrics, maxima, sort.column);
  const sign = sort.descending ? -1 : 1;
  const rows = passing.subarray(0, count);
  const known = rows.filter((row) => !Number.isNaN(keys[row]));
  known.sort((a, b) => sign * (keys[a] - keys[b]) || a - b);
  const unknown = rows.filter((row) => Number.isNaN(keys[row]));
  rows.set(known);
  rows.set(unknown, known.length);
  return rows;
}
