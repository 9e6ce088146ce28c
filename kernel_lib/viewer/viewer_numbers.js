// The numbers: every image's areas and dice under any rule, exactly as Python has them
// (kernel_lib/postprocess: rule, histograms, gate, metrics), and the order of the list.

const LEVELS = 256;
const FULL_AREA = 2 ** 20; // px of a 1024² image, for which areas are stated
const AREA_UNIT = "px of 1024²";
const NO_NUMBER = -1; // of a kind: not known under the rule as moved
const KINDS_OF_TRUTH = ["missed", "false alarm", "partial", "empty and right"]; // worst first
const KINDS_WITHOUT = ["mask", "empty"];

/** The lowest level that exceeds a threshold: 1–256, the last of which none reaches. */
const firstLevel = (threshold) => Math.floor(255 * threshold) + 1;

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** The int32 values of `packed`: inflated, and put together from their four planes of bytes. */
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

/** Histograms (N × 256), in place, to pixels at a level or above it. */
function cumulated(hist) {
  for (let start = 0; start < hist.length; start += LEVELS) {
    for (let i = start + LEVELS - 2; i >= start; i--) hist[i] += hist[i + 1];
  }
  return hist;
}

/** Label / 255 where there are labels, else the highest level that a pixel reaches / 255. */
function scoresOf(n, all, label, hasLabels) {
  const scores = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    let level = hasLabels ? label[i] : LEVELS - 1;
    if (!hasLabels) while (level > 0 && all[i * LEVELS + level] === 0) level--;
    scores[i] = level < 0 ? NaN : level / 255;
  }
  return scores;
}

/** What the numbers are made of; `values` are used up, not copied. */
function modelOf(payload, values) {
  const { id, fold, height, width } = payload.images;
  const n = id.length;
  let place = 0;
  const take = (count) => values.subarray(place, (place += count));
  const voices = payload.voices.map((voice) => {
    const all = cumulated(take(n * LEVELS));
    const shared = payload.truth ? cumulated(take(n * LEVELS)) : null;
    const label = take(n);
    return { all, shared, label, scores: scoresOf(n, all, label, voice.labels) };
  });
  const px = Float64Array.from(height, (h, i) => h * width[i]);
  const first = voices[0].shared;
  const truth = first && Int32Array.from(px, (_, i) => first[i * LEVELS]);
  let vote = null;
  if (payload.vote) {
    const members = payload.vote.voices;
    const area = take(n * members.length);
    const shared = payload.truth ? take(n * members.length) : null;
    const mean = (_, i) => members.reduce((sum, v) => sum + voices[v].scores[i], 0);
    const scores = Float64Array.from(px, (_, i) => mean(_, i) / members.length);
    vote = { members, n: members.length, area, shared, scores };
  }
  if (place !== values.length) {
    throw new Error(`the page holds ${values.length} numbers where ${place} were to be`);
  }
  const byId = Array.from(id.keys()).sort((a, b) => (id[a] < id[b] ? -1 : +(id[a] > id[b])));
  const idRank = new Float64Array(n);
  byId.forEach((row, rank) => (idRank[row] = rank));
  const folds = Float64Array.from(fold, (f) => (f === null ? NaN : f));
  const lowerIds = id.map((one) => one.toLowerCase());
  const kinds = payload.truth ? KINDS_OF_TRUTH : KINDS_WITHOUT;
  return { n, px, truth, voices, vote, idRank, folds, lowerIds, kinds };
}

/** Whether an image keeps its mask under a rule. */
function isKept(model, voice, rule, row) {
  const { all, label } = model.voices[voice];
  const level = firstLevel(rule.top);
  const above = level < LEVELS ? all[row * LEVELS + level] : 0;
  if (above * FULL_AREA < rule.min_area_px * model.px[row]) return false;
  return rule.label === null || label[row] > Math.floor(255 * rule.label);
}

/** Each image's mask under a rule: areas and shared px (Int32Array), dice and kinds. */
function evaluated(model, voice, rule) {
  const { all, shared } = model.voices[voice];
  const bottom = firstLevel(rule.bottom);
  const areas = new Int32Array(model.n);
  const inTruth = new Int32Array(model.n);
  for (let i = 0; i < model.n; i++) {
    if (bottom >= LEVELS || !isKept(model, voice, rule, i)) continue;
    areas[i] = all[i * LEVELS + bottom];
    if (shared) inTruth[i] = shared[i * LEVELS + bottom];
  }
  return numbersOf(model, areas, inTruth);
}

/** The same of the vote at k, under its members' rules as they were given. */
function voted(model, k) {
  const { n, area, shared } = model.vote;
  const areas = new Int32Array(model.n);
  const inTruth = new Int32Array(model.n);
  for (let i = 0; i < model.n; i++) {
    areas[i] = area[i * n + k - 1];
    if (shared) inTruth[i] = shared[i * n + k - 1];
  }
  return numbersOf(model, areas, inTruth);
}

function numbersOf(model, areas, shared) {
  const { n, truth } = model;
  const kinds = new Int8Array(n);
  const dice = truth && new Float64Array(n);
  for (let i = 0; i < n; i++) {
    if (!truth) {
      kinds[i] = areas[i] ? 0 : 1;
      continue;
    }
    const both = areas[i] + truth[i];
    dice[i] = both === 0 ? 1 : (2 * shared[i]) / both;
    kinds[i] = truth[i] ? (areas[i] ? 2 : 0) : areas[i] ? 1 : 3;
  }
  return { areas, dice, kinds };
}

/** Means and counts over some rows, or over all where `rows` is null. */
function summaryOf(model, { areas, dice, kinds }, rows) {
  const n = rows ? rows.length : model.n;
  const counts = new Array(model.kinds.length).fill(0);
  const [mean, nonEmpty] = [runningSum(), runningSum()];
  let masks = 0;
  let truths = 0;
  for (let place = 0; place < n; place++) {
    const i = rows ? rows[place] : place;
    counts[kinds[i]]++;
    if (areas[i]) masks++;
    if (!dice) continue;
    mean.add(dice[i]);
    if (model.truth[i] === 0) continue;
    truths++;
    nonEmpty.add(dice[i]);
  }
  return {
    n,
    mean: dice ? mean.total() / n : NaN,
    nonEmpty: dice ? nonEmpty.total() / truths : NaN,
    withMask: masks / n,
    counts,
  };
}

/** A sum that carries what rounding drops (Neumaier 1974), as Python's fsum to its last digits. */
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

/** Pixels as of a 1024² image. */
const scaledArea = (model, area, row) => (area * FULL_AREA) / model.px[row];

/** A column's values (N) to sort and filter by; NaN where there is none. */
function columnOf(model, numbers, scores, name) {
  const scaled = (areas) => Float64Array.from(areas, (area, i) => scaledArea(model, area, i));
  const none = () => new Float64Array(model.n).fill(NaN);
  switch (name) {
    case "id":
      return model.idRank;
    case "fold":
      return model.folds;
    case "score":
      return scores;
    case "truth":
      return model.truth ? scaled(model.truth) : none();
    case "kind":
      return numbers ? numbers.kinds : none();
    case "dice":
      return (numbers && numbers.dice) || none();
    default:
      return numbers ? scaled(numbers.areas) : none();
  }
}

/** Rows that pass the filters, sorted; rows without a value come last, equal ones in data order. */
function listed(model, numbers, scores, filter, sort, embedded) {
  const text = filter.text.trim().toLowerCase();
  const ranges = Object.entries(filter.ranges)
    .filter(([, [low, high]]) => low !== null || high !== null)
    .map(([name, [low, high]]) => [
      columnOf(model, numbers, scores, name),
      low ?? -Infinity,
      high ?? Infinity,
    ]);
  const allKinds = filter.kinds.every(Boolean);
  const found = new Uint32Array(model.n);
  let count = 0;
  for (let i = 0; i < model.n; i++) {
    const kind = numbers ? numbers.kinds[i] : NO_NUMBER;
    if (kind === NO_NUMBER ? !allKinds : !filter.kinds[kind]) continue;
    if (filter.fold !== null && model.folds[i] !== filter.fold) continue;
    if (filter.embedded && !embedded.has(i)) continue;
    if (text && !model.lowerIds[i].includes(text)) continue;
    if (!ranges.every(([values, low, high]) => values[i] >= low && values[i] <= high)) continue;
    found[count++] = i;
  }
  const keys = columnOf(model, numbers, scores, sort.column);
  const sign = sort.descending ? -1 : 1;
  const rows = found.subarray(0, count);
  const known = rows.filter((row) => !Number.isNaN(keys[row]));
  known.sort((a, b) => sign * (keys[a] - keys[b]) || a - b);
  const unknown = rows.filter((row) => Number.isNaN(keys[row]));
  rows.set(known);
  rows.set(unknown, known.length);
  return rows;
}
