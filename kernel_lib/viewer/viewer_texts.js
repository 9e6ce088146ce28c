// Texts of list rows, of the chosen image and of a pixel.

const THOUSANDS = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const integer = (value) => THOUSANDS.format(Math.round(value));
const fixed = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

/** For each column a function from a row to the text of its cell. */
function cellTexts(payload, data, metrics, maxima, shortIds) {
  const { fold } = payload.images;
  const kind = (row) => (metrics ? data.kinds[metrics.kinds[row]] : "–");
  return {
    id: (row) => shortIds[row],
    fold: (row) => fold[row] ?? "–",
    kind: (row) => KIND_SHORT[kind(row)] ?? kind(row),
    dice: (row) => (metrics ? fixed(metrics.dice[row], 3) : "–"),
    area: (row) => (metrics ? integer(scaledArea(data, metrics.areas[row], row)) : "–"),
    truth: (row) => integer(scaledArea(data, data.truth[row], row)),
    "max-probability": (row) => fixed(maxima[row], 3),
  };
}

/** Facts of an image under the rule: [id of the element, name, value]. */
function factsOf(payload, data, metrics, maxima, row) {
  const { id, fold, height, width } = payload.images;
  const area = (px) => `${integer(scaledArea(data, px, row))} ${AREA_UNIT}`;
  return [
    ["image", "image", id[row]],
    ["size", "size", `${width[row]} × ${height[row]}`],
    ["fold", "fold", fold[row]],
    ["kind", "result", metrics ? data.kinds[metrics.kinds[row]] : "–"],
    ["dice", "Dice", data.truth && (metrics ? fixed(metrics.dice[row], 6) : "–")],
    ["mask", "predicted mask", metrics ? area(metrics.areas[row]) : "–"],
    ["truth", "ground truth", data.truth && area(data.truth[row])],
    ["max-probability", "max probability", fixed(maxima[row], 3)],
  ].filter(([, , value]) => value !== null);
}

/** Why an image has no picture in the page, and how to embed it. */
function absentText(id) {
  return (
    `No picture of ${id} is in this page, only its metrics.\n\nTo embed it, write the page with\n` +
    `--ids ${id}\nor, in a notebook, with\nviewer(ids=[${JSON.stringify(id)}])`
  );
}

/** The values of a pane under the pointer; `at` are shares 0–1 of the width and height. */
function pixelText(picture, shown, at, ownWidth, ownHeight) {
  if (!picture) return "";
  if (!at || !shown || at.some((share) => share < 0 || share >= 1)) {
    const bare = picture.radiograph ? "" : " This image's radiograph is not in the page.";
    return `Point at a pixel to read its values.${bare}`;
  }
  const [x, y] = at;
  const pixel = Math.floor(y * picture.height) * picture.width + Math.floor(x * picture.width);
  const texts = [`x ${Math.floor(x * ownWidth)}, y ${Math.floor(y * ownHeight)}`];
  if (shown.votes) {
    texts.push(`${shown.votes[pixel]} of ${shown.voters} votes`);
  } else {
    const level = shown.levels[pixel];
    texts.push(`prob. ${fixed(level / 255, 3)} (${level})`);
  }
  if (picture.radiograph) texts.push(`grey ${picture.radiograph[pixel]}`);
  if (picture.truth) texts.push(`ground truth ${picture.truth[pixel] ? "yes" : "no"}`);
  return texts.join(" · ");
}
