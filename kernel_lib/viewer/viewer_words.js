// What the page says of rows, of the chosen image and of a pixel; texts only.

const THOUSANDS = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const whole = (value) => THOUSANDS.format(Math.round(value));
const fixed = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

/** The list's cells: by column, what a row says. */
function cellTexts(payload, model, numbers, scores, shortIds) {
  const { fold } = payload.images;
  const kind = (row) => (numbers ? model.kinds[numbers.kinds[row]] : "–");
  return {
    id: (row) => shortIds[row],
    fold: (row) => fold[row] ?? "–",
    kind: (row) => KIND_SHORT[kind(row)] ?? kind(row),
    dice: (row) => (numbers ? fixed(numbers.dice[row], 3) : "–"),
    area: (row) => (numbers ? whole(scaledArea(model, numbers.areas[row], row)) : "–"),
    truth: (row) => whole(scaledArea(model, model.truth[row], row)),
    score: (row) => fixed(scores[row], 3),
  };
}

/** Names and values of one image under the rule. */
function factsOf(payload, model, numbers, scores, row) {
  const { id, fold, height, width } = payload.images;
  const area = (px) => `${whole(scaledArea(model, px, row))} ${AREA_UNIT}`;
  return [
    ["image", id[row]],
    ["size", `${width[row]} × ${height[row]}`],
    ["fold", fold[row]],
    ["kind", numbers ? model.kinds[numbers.kinds[row]] : "–"],
    ["dice", model.truth && (numbers ? fixed(numbers.dice[row], 6) : "–")],
    ["mask", numbers ? area(numbers.areas[row]) : "–"],
    ["truth", model.truth && area(model.truth[row])],
    ["score", fixed(scores[row], 3)],
  ].filter(([, value]) => value !== null);
}

/** Why an image has no picture here, and how it gets one. */
function absentWords(id) {
  return (
    `No picture of ${id} is in this page, only its numbers.\n\nTo embed it, make the page with\n` +
    `--ids ${id}\nor, in a notebook, with\nviewer(ids=[${JSON.stringify(id)}])`
  );
}

/** What a pane holds under the pointer; `at` are shares 0–1 of the picture's width and height. */
function pixelWords(picture, shown, at, ownWidth, ownHeight) {
  if (!picture) return "";
  if (!at || !shown || at.some((share) => share < 0 || share >= 1)) {
    const bare = picture.radiograph ? "" : " This image's radiograph is not in the page.";
    return `Point at a pixel to read it.${bare}`;
  }
  const [x, y] = at;
  const pixel = Math.floor(y * picture.height) * picture.width + Math.floor(x * picture.width);
  const words = [`x ${Math.floor(x * ownWidth)}, y ${Math.floor(y * ownHeight)}`];
  if (shown.votes) {
    words.push(`${shown.votes[pixel]} of ${shown.voters} votes`);
  } else {
    const level = shown.levels[pixel];
    words.push(`prob. ${fixed(level / 255, 3)} (${level})`);
  }
  if (picture.radiograph) words.push(`grey ${picture.radiograph[pixel]}`);
  if (picture.truth) words.push(picture.truth[pixel] ? "in truth" : "not in truth");
  return words.join(" · ");
}
