// The panel's controls, built once, and their values, written from the state.

const AREA_STEPS = [0]; // of the slider: fine where masks are small
for (const [upTo, step] of [[1000, 50], [5000, 100], [20000, 250], [60000, 1000]]) {
  while (AREA_STEPS.at(-1) < upTo) AREA_STEPS.push(AREA_STEPS.at(-1) + step);
}
const KEEP_NONE = FULL_AREA + 1; // the minimum area that no image reaches

/** The last step of the area slider that is not above an area. */
const areaStep = (area) => AREA_STEPS.findLastIndex((step) => step <= area);

/** A label, slider and number field; `set` gets a number within the bounds, else null. */
function sliderLine(line) {
  const { id, name, title, max, step, set, ofSlider = Number, toSlider = (x) => x } = line;
  const { sliderMax = max, min = 0, decimals = 4, note } = line;
  const attributes = { "aria-label": name };
  const bounds = { min, max: sliderMax, step };
  const slider = element("input", { id, type: "range", ...bounds, title, attributes });
  const exact = { "aria-label": `${name}, exact`, min, max, step: line.numberStep ?? step };
  const number = element("input", { id: `${id}-number`, type: "number", title, attributes: exact });
  const label = element("label", { htmlFor: id, title }, name);
  if (note) label.append(element("small", { textContent: ` ${note}` }));
  slider.addEventListener("input", () => set(ofSlider(slider.value)));
  number.addEventListener("change", () => {
    const value = line.isInteger ? Math.round(number.valueAsNumber) : number.valueAsNumber;
    set(Number.isFinite(value) ? Math.min(Math.max(value, min), max) : null);
  });
  const row = element("div", { className: "slider" }, label, slider, number);
  const show = (value, disabled = false) => {
    slider.value = value === null ? min : toSlider(value);
    number.value = value === null ? "" : Number(value.toFixed(decimals));
    number.title = value === null ? "" : `exactly ${value}`;
    slider.disabled = number.disabled = disabled;
  };
  return { row, show, label };
}

/** A checkbox in its label. */
function checkbox(id, text, title, set) {
  const input = element("input", { id, type: "checkbox" });
  input.addEventListener("change", () => set(input.checked));
  return { input, label: element("label", { title }, input, ` ${text}`) };
}

/** Sliders of the rule and of a vote's minimum; `set(name, value)`, null for an empty field. */
function makeRule(payload, set) {
  const share = { max: 1, step: 0.005 };
  const lines = {
    top: sliderLine({
      ...share, id: "top", name: "detection threshold", note: "(top)",
      set: (value) => set("top", value),
      title: "An image keeps its mask if enough pixels exceed this probability ( [ and ] )",
    }),
    min_area_px: sliderLine({
      id: "min-area", name: "minimum area", note: AREA_UNIT, max: KEEP_NONE,
      sliderMax: AREA_STEPS.length - 1, step: 1, numberStep: 50, isInteger: true, decimals: 0,
      set: (value) => set("min_area_px", value),
      ofSlider: (value) => AREA_STEPS[value], toSlider: areaStep,
      title: `How many pixels must exceed the detection threshold, ${AREA_UNIT} ( , and . )`,
    }),
    bottom: sliderLine({
      ...share, id: "bottom", name: "mask threshold", note: "(bottom)",
      set: (value) => set("bottom", value),
      title: "The mask covers what exceeds this; at most the detection threshold ( ; and ' )",
    }),
  };
  find("rule").append(...Object.values(lines).map(({ row }) => row));
  if (payload.models.some(({ labels }) => labels)) {
    lines.label = sliderLine({
      ...share, id: "label", name: "classification threshold", note: "(label)",
      set: (value) => set("label", value),
      title: "An image whose classification probability is not above this has no mask",
    });
    lines.label.row.id = "label-line";
    const title = "Empty the mask of images classified as negative";
    lines.on = checkbox("label-on", "classifier gating", title, (on) => set("label on", on));
    find("rule").append(lines.on.label, lines.label.row);
  }
  if (payload.vote) {
    const what = payload.vote.union
      ? "The union of masks that overlap at least this many masks, itself included"
      : "A pixel is in the mask if the masks of at least this many models contain it";
    lines.k = sliderLine({
      id: "k", name: "minimum votes", min: 1, max: payload.vote.models.length, step: 1,
      isInteger: true, decimals: 0, title: what, set: (value) => set("k", value),
    });
    find("rule").append(lines.k.row);
  }
  return lines;
}

/** Rows of the metrics table: name, digits, and the value in a summary. */
function metricRows(data) {
  const rows = [
    { name: "mean Dice", of: ({ mean }) => mean, show: (x) => fixed(x, 6), truth: true, id: "mean" },
    {
      name: "Dice, positives", of: ({ positive }) => positive, show: (x) => fixed(x, 6), truth: true,
      title: "Mean Dice of the images with a ground-truth mask", id: "positive",
    },
    {
      name: "% positive", of: ({ withMask }) => 100 * withMask, show: (x) => fixed(x, 2),
      title: "Share of images with a predicted mask, in percent", id: "with-mask",
    },
    ...data.kinds.map((name, kind) => ({
      name: KIND_SHORT[name] ?? name, title: `Number of images: ${name}`, id: `kind-${kind}`,
      of: ({ counts }) => counts[kind], show: (x) => fixed(x, 0),
    })),
  ];
  return rows.filter(({ truth }) => !truth || data.truth);
}

/** The table: for each group of images the value now, under the chosen rule, and the difference. */
function showMetrics(data, groups) {
  const bodies = groups.map(({ id, title, now, chosen }) => {
    const head = element("tr", {},
      element("th", { textContent: title, attributes: { scope: "colgroup" } }),
      ...["now", "chosen", "±"].map((textContent) => element("th", { textContent })));
    const rows = metricRows(data).map((row) => {
      const [a, b] = [now ? row.of(now) : NaN, row.of(chosen)];
      const sign = a > b ? "+" : "";
      const difference = row.show(a - b).replace(/^-(0(\.0*)?)$/, "$1"); // no -0.000000
      const cells = [row.show(a), row.show(b), sign + difference];
      const better = row.truth && Math.abs(a - b) > 0 ? (a > b ? "better" : "worse") : "";
      return element("tr", { id: `${id}-${row.id}` },
        element("th", { textContent: row.name, title: row.title ?? "" }),
        ...cells.map((textContent, k) =>
          element("td", { textContent, className: k === 2 ? better : "" })));
    });
    return element("tbody", { id }, head, ...rows);
  });
  find("metrics").replaceChildren(...bodies);
}

/** Switches and opacities of the layers; `set(layer, changes)`. */
function makeLayers(layers, hasTruth, set) {
  const known = Object.entries(layers).filter(([name]) => name !== "truth" || hasTruth);
  const shows = known.map(([name, layer]) => {
    const key = Object.keys(layers).indexOf(name) + 1;
    const title = `Show or hide: ${layer.title} (${key})`;
    const on = checkbox(`${name}-on`, layer.title, title, (value) => set(name, { on: value }));
    const swatch = element("span", { className: `swatch ${name}` });
    const slider = element("input", {
      id: `${name}-opacity`, type: "range", min: 0, max: 1, step: 0.05,
      title: `Opacity of ${layer.title}${"fill" in layer ? "'s fill" : ""}`,
      attributes: { "aria-label": `Opacity of ${layer.title}` },
    });
    slider.addEventListener("input", () => set(name, { opacity: Number(slider.value) }));
    const row = element("div", { className: "layer" },
      element("kbd", { textContent: key }), on.label, swatch, slider);
    const parts = ["fill", "contour"].filter((part) => part in layer).map((part) => {
      const titled = `${part} of ${layer.title}${part === "contour" ? " (c)" : ""}`;
      const change = (value) => set(name, { [part]: value });
      return { part, ...checkbox(`${name}-${part}`, part, titled, change) };
    });
    find("layers").append(row);
    if (parts.length) {
      const labels = parts.map(({ label }) => label);
      find("layers").append(element("div", { className: "parts" }, ...labels));
    }
    return (state) => {
      on.input.checked = state[name].on;
      slider.value = state[name].opacity;
      for (const { part, input } of parts) input.checked = state[name][part];
    };
  });
  return (state) => shows.forEach((show) => show(state));
}
