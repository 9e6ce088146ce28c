// The page: its state, the actions that change it, and the drawing of it.

const RESET_VIEW = { zoom: 1, x: 0.5, y: 0.5 };
const RESET_WINDOW = { width: 255, level: 127.5 };
const NO_FILTER = { text: "", fold: null, embedded: false };
const NO_TEXT_KEYS = ["range", "checkbox"];

function start(payload, data) {
  const { models, vote } = payload;
  const VOTE = vote ? models.length : NONE; // the vote is listed after the models
  const names = vote ? [...models.map(({ name }) => name), vote.name] : models.map((v) => v.name);
  const chosenRules = models.map(({ rule }) => ({ label: null, ...rule }));
  const pictureOf = new Map(payload.pictures.map(({ row }, index) => [row, index]));
  const decoded = decoder(payload.pictures);
  const columns = COLUMNS.filter(({ truth }) => !truth || data.truth);
  const noRanges = () => Object.fromEntries(
    columns.filter(({ name }) => !["id", "fold", "kind"].includes(name))
      .map(({ name }) => [name, [null, null]]),
  );
  const noFilter = () => ({ ...NO_FILTER, kinds: data.kinds.map(() => true), ranges: noRanges() });

  const state = {
    chosen: payload.pictures.length ? payload.pictures[0].row : data.n ? 0 : NONE,
    rules: chosenRules.map((rule) => ({ ...rule })),
    oneRule: payload.one_rule,
    model: vote ? VOTE : 0,
    k: vote ? vote.at_least : 1,
    shown: names.map((_, model) => model === (vote ? VOTE : 0)),
    sort: { column: data.truth ? "dice" : "area", descending: !data.truth },
    filter: noFilter(),
    layers: {
      image: { title: "radiograph", on: true, opacity: 1 },
      probability: { title: "probability map", on: false, opacity: 0.6 },
      prediction: { title: "prediction", on: true, opacity: 0.3, fill: true, contour: true },
      truth: { title: "ground truth", on: true, opacity: 0.3, fill: false, contour: true },
    },
    windowing: { ...RESET_WINDOW },
    view: { ...RESET_VIEW },
    pointer: { pane: -1, at: null },
    picture: null, // of the chosen image, once decoded
    order: new Uint32Array(0),
  };
  const shortImageIds = shortIds(payload.images.id);
  const shortModelNames = shortNames(names);
  let scene = { picture: null, shown: [] }; // as the panes show it

  // Metrics are cached until their rule changes.
  const cache = new Map();
  function metricsOfModel(model) {
    if (model === VOTE && !votersHaveChosenRules()) return null;
    const key = JSON.stringify(model === VOTE ? state.k : state.rules[model]);
    if (cache.get(model)?.key !== key) {
      const metrics =
        model === VOTE ? voted(data, state.k) : evaluated(data, model, state.rules[model]);
      cache.set(model, { key, metrics });
    }
    return cache.get(model).metrics;
  }
  const chosenMetrics = names.map((_, model) => {
    if (model === VOTE) return voted(data, vote.at_least);
    return evaluated(data, model, chosenRules[model]);
  });
  const maximaOf = (model) =>
    model === VOTE ? data.vote.maxima : data.models[model].maxima;

  function votersHaveChosenRules() {
    const same = (a, b) => Object.keys(b).every((name) => a[name] === b[name]);
    return vote.models.every((model) => same(state.rules[model], chosenRules[model]));
  }

  // The rule.
  const adjusted = () =>
    state.oneRule ? models.map((_, model) => model) : state.model === VOTE ? [] : [state.model];
  const displayed = () => (state.model === VOTE ? vote.models[0] : state.model);

  function setRule(name, value) {
    if (name === "k") state.k = value ?? state.k;
    else if (value !== null) for (const model of adjusted()) changeRule(model, name, value);
    updateRules();
  }

  function changeRule(model, name, value) {
    const rule = state.rules[model];
    if (name === "label on") {
      const on = value && models[model].labels;
      rule.label = on ? (chosenRules[model].label ?? 0.5) : null;
    } else if (name === "label") {
      if (models[model].labels) rule.label = value;
    } else {
      rule[name] = value;
      if (name === "top") rule.bottom = Math.min(rule.bottom, value);
      if (name === "bottom") rule.top = Math.max(rule.top, value);
    }
  }

  function nudge(name, by) {
    const rule = state.rules[displayed()];
    if (name === "min_area_px") {
      const place = areaStep(rule.min_area_px) + by;
      setRule(name, AREA_STEPS[Math.min(Math.max(place, 0), AREA_STEPS.length - 1)]);
    } else {
      const next = Math.round((rule[name] + by) * 1e4) / 1e4; // no rounding errors
      setRule(name, Math.min(Math.max(next, 0), 1));
    }
  }

  function reset() {
    const all = state.model === VOTE ? models.keys() : adjusted(); // a vote depends on all rules
    for (const model of all) state.rules[model] = { ...chosenRules[model] };
    if (vote) state.k = vote.at_least;
    updateRules();
  }

  function useOneRule(on) {
    state.oneRule = on;
    if (on) {
      const { label, ...rule } = state.rules[displayed()];
      state.rules = models.map(({ labels }) => ({ ...rule, label: labels ? label : null }));
    }
    updateRules();
  }

  // Drawing: metrics and list first, then the picture.
  const ruleLines = makeRule(payload, setRule);
  const showLayers = makeLayers(state.layers, Boolean(data.truth), (name, changes) => {
    Object.assign(state.layers[name], changes);
    updateLayers();
  });
  const list = makeList(columns, sortBy, choose);
  const panes = makePanes({
    view: setView,
    windowing: setWindow,
    pointer: (pane, at) => {
      state.pointer = { pane, at };
      showPointer();
    },
    scale: (scale) => (find("zoom").textContent = `${fixed(scale, 2)}×`),
  });

  function updateRules() {
    showRule();
    updateList();
    paint();
  }

  function updateList() {
    const metrics = metricsOfModel(state.model);
    const maxima = maximaOf(state.model);
    const { filter, sort } = state;
    state.order = listed(data, metrics, maxima, filter, sort, pictureOf);
    showList(metrics, maxima);
    const chosen = chosenMetrics[state.model];
    const rows = state.order;
    const summary = (of, which) => of && summaryOf(data, of, which);
    const group = (id, title, which) => {
      return { id, title, now: summary(metrics, which), chosen: summary(chosen, which) };
    };
    const all = group("all", `all ${integer(data.n)}`, null);
    const some = rows.length < data.n;
    const groups = some ? [all, group("listed", `listed ${integer(rows.length)}`, rows)] : [all];
    showMetrics(data, groups);
    find("caution").hidden = metrics !== null;
    showKinds(metrics);
    showChosen();
  }

  function showRule() {
    const rule = state.rules[displayed()];
    const fixedRule = adjusted().length === 0;
    for (const name of ["top", "min_area_px", "bottom"]) ruleLines[name].show(rule[name], fixedRule);
    if (ruleLines.label) {
      const disabled = fixedRule || !models[displayed()].labels;
      ruleLines.on.input.checked = rule.label !== null;
      ruleLines.on.input.disabled = disabled;
      ruleLines.label.show(rule.label, disabled || rule.label === null);
    }
    if (vote) ruleLines.k.show(state.k);
    find("rule-hint").hidden = !fixedRule;
    find("model").value = state.model;
    find("model").title = `Model of the rule, metrics and list: ${names[state.model]}`;
    find("one-rule").checked = state.oneRule;
  }

  function showList(metrics, maxima) {
    const { order, chosen, sort } = state;
    const texts = cellTexts(payload, data, metrics, maxima, shortImageIds);
    const kinds = metrics && metrics.kinds;
    const ids = payload.images.id;
    list.draw({ order, chosen, sort, ids, texts, kinds, embedded: pictureOf });
    find("count").textContent = `${integer(order.length)} of ${integer(data.n)} images`;
  }

  function showKinds(metrics) {
    const counts = metrics ? summaryOf(data, metrics, null).counts : data.kinds.map(() => NaN);
    data.kinds.forEach((name, kind) => {
      find(`kind-${kind}-count`).textContent = ` ${fixed(counts[kind], 0)}`;
      find("bar").children[kind].style.flexGrow = counts[kind] || 0;
    });
  }

  function showChosen() {
    const { chosen, model } = state;
    if (chosen === NONE) return;
    const facts = factsOf(payload, data, metricsOfModel(model), maximaOf(model), chosen);
    find("chosen").replaceChildren(...facts.map(([id, name, value]) => {
      const bold = element("b", { id: `chosen-${id}`, textContent: value, title: value });
      const small = element("small", { textContent: name });
      return element("span", { className: id }, small, " ", bold);
    }));
  }

  /** For each shown model its levels (of a vote: shares), its mask, and its result as text. */
  function scenes() {
    const shown = names.map((_, model) => model).filter((model) => state.shown[model]);
    const { picture, chosen } = state;
    const maskOfModel = (model) => {
      const rule = state.rules[model];
      return maskOf(picture.maps[model], isKept(data, model, rule, chosen), rule.bottom);
    };
    return shown.map((model) => {
      const metrics = metricsOfModel(model);
      const dice = metrics?.dice ? `Dice ${fixed(metrics.dice[chosen], 4)}, ` : "";
      const px = metrics && scaledArea(data, metrics.areas[chosen], chosen);
      const area = metrics ? `${integer(px)} ${AREA_UNIT}` : "–";
      const result = `${dice}${area}`;
      const pane = { name: names[model], short: shortModelNames[model], result };
      if (!picture) return pane;
      if (model !== VOTE) {
        return { ...pane, levels: picture.maps[model], mask: maskOfModel(model) };
      }
      const masks = vote.models.map(maskOfModel);
      const votes = votesOf(masks);
      const levels = votes.map((count) => Math.round((255 * count) / masks.length));
      const mask = votedMask(masks, state.k, vote.union);
      return { ...pane, levels, mask, votes, voters: masks.length };
    });
  }

  function paint() {
    const isEmbedded = pictureOf.has(state.chosen);
    find("panes").hidden = !isEmbedded;
    find("absent").hidden = isEmbedded;
    if (!isEmbedded) {
      const id = payload.images.id[state.chosen];
      find("absent").textContent = data.n ? absentText(id) : "There is no image.";
    }
    const { picture, layers, windowing, view } = state;
    scene = { picture: isEmbedded ? picture : null, shown: scenes(), layers, windowing, view };
    panes.paint(scene); // reports the pointer too
  }

  function showPointer() {
    const { pane, at } = state.pointer;
    const { width, height } = payload.images;
    const row = state.chosen;
    find("pointer").textContent =
      pixelText(scene.picture, scene.shown[pane], at, width[row], height[row]);
  }

  function updateLayers() {
    showLayers(state.layers);
    for (const [name, show] of Object.entries(windowLines)) show(state.windowing[name]);
    paint();
  }

  function setWindow({ width, level }) {
    const within = (value, low, high) => Math.min(Math.max(value, low), high);
    state.windowing = { width: within(width, 1, 510), level: within(level, 0, 255) };
    updateLayers();
  }

  function setView(view) {
    state.view = view;
    panes.look(view);
  }

  // Actions.
  let showing = Promise.resolve();
  function choose(row) {
    state.chosen = row;
    showing = showPicture(row);
    return showing;
  }

  async function showPicture(row) {
    showList(metricsOfModel(state.model), maximaOf(state.model));
    list.reveal(state.order.indexOf(row));
    showChosen();
    const picture = pictureOf.has(row) ? await decoded(pictureOf.get(row)) : null;
    if (state.chosen !== row) return; // another image was chosen meanwhile
    state.picture = picture;
    paint();
    const place = state.order.indexOf(row);
    for (const near of [state.order[place + 1], state.order[place - 1]]) {
      if (pictureOf.has(near)) decoded(pictureOf.get(near)); // so that j and k answer at once
    }
  }

  function step(by) {
    const place = state.order.indexOf(state.chosen);
    const next = place < 0 ? 0 : Math.min(Math.max(place + by, 0), state.order.length - 1);
    if (state.order.length) choose(state.order[next]);
  }

  function sortBy(name) {
    const { sort } = state;
    const column = columns.find((candidate) => candidate.name === name);
    const descending = sort.column === name ? !sort.descending : column.first === "down";
    state.sort = { column: name, descending };
    updateList();
    list.toTop();
  }

  function toggleContours() {
    const { prediction, truth } = state.layers;
    const contour = !(prediction.contour || truth.contour);
    prediction.contour = truth.contour = contour;
    updateLayers();
  }

  function toggle(layer) {
    if (layer === state.layers.truth && !data.truth) return;
    layer.on = !layer.on;
    updateLayers();
  }

  const windowLines = {};
  for (const [name, title, min, max] of [
    ["level", "The grey level shown as middle grey", 0, 255],
    ["width", "Grey levels from black to white; fewer give more contrast", 1, 510],
  ]) {
    const set = (value) => {
      const { windowing } = state;
      setWindow({ ...windowing, [name]: value ?? windowing[name] });
    };
    const line = sliderLine({ id: `window-${name}`, name, title, min, max, step: 0.5, set });
    find("windowing").append(line.row);
    windowLines[name] = line.show;
  }

  const shortcuts = [
    [["j", "ArrowDown"], "next image of the list", () => step(1)],
    [["k", "ArrowUp"], "previous image", () => step(-1)],
    ...Object.values(state.layers).map((layer, place) => {
      return [[String(place + 1)], `${layer.title} on or off`, () => toggle(layer)];
    }),
    [["c"], "contours on or off", toggleContours],
    [["f", "0"], "fit the picture", () => setView({ ...RESET_VIEW })],
    [["+", "="], "zoom in", () => panes.zoomBy(ZOOM_STEP)],
    [["-"], "zoom out", () => panes.zoomBy(1 / ZOOM_STEP)],
    [["["], "lower the detection threshold (top)", () => nudge("top", -0.01)],
    [["]"], "raise the detection threshold (top)", () => nudge("top", 0.01)],
    [[";"], "lower the mask threshold (bottom)", () => nudge("bottom", -0.01)],
    [["'"], "raise the mask threshold (bottom)", () => nudge("bottom", 0.01)],
    [[","], "reduce the minimum area", () => nudge("min_area_px", -1)],
    [["."], "increase the minimum area", () => nudge("min_area_px", 1)],
    [["w"], "reset window and level", () => setWindow(RESET_WINDOW)],
    [["/"], "find an id", () => find("text").focus()],
    [["?"], "show this list", () => find("help").showModal()],
    [["Escape"], "leave a field, close this list", () => document.activeElement.blur()],
  ];

  function press(event) {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
    const inField =
      target.matches("select") || (target.matches("input") && !NO_TEXT_KEYS.includes(target.type));
    if (inField && key !== "Escape") return;
    if (target.type === "range" && key.startsWith("Arrow")) return; // arrows move the slider
    const shortcut = shortcuts.find(([keys]) => keys.includes(key));
    if (!shortcut) return;
    event.preventDefault();
    shortcut[2]();
  }

  function addListeners() {
    const on = (id, event, act) => find(id).addEventListener(event, () => act(find(id)));
    document.addEventListener("keydown", press);
    on("model", "change", ({ value }) => {
      state.model = Number(value);
      updateRules();
    });
    on("one-rule", "change", ({ checked }) => useOneRule(checked));
    on("reset", "click", reset);
    on("window-reset", "click", () => setWindow(RESET_WINDOW));
    on("zoom-in", "click", () => panes.zoomBy(ZOOM_STEP));
    on("zoom-out", "click", () => panes.zoomBy(1 / ZOOM_STEP));
    on("one-to-one", "click", () => panes.oneToOne());
    on("fit", "click", () => setView({ ...RESET_VIEW }));
    on("help-open", "click", () => find("help").showModal());
    on("help-close", "click", () => find("help").close());
    on("clear", "click", () => {
      state.filter = noFilter();
      showFilter();
      updateList();
    });
    const filters = (id, event, read) =>
      on(id, event, (field) => {
        read(state.filter, field);
        updateList();
      });
    filters("text", "input", (filter, { value }) => (filter.text = value));
    filters("fold", "change", (filter, { value }) => (filter.fold = value === "" ? null : +value));
    filters("embedded", "change", (filter, { checked }) => (filter.embedded = checked));
    data.kinds.forEach((_, kind) => {
      filters(`kind-${kind}`, "change", (filter, { checked }) => (filter.kinds[kind] = checked));
    });
    for (const name of Object.keys(state.filter.ranges)) {
      ["min", "max"].forEach((end, place) => {
        filters(`${name}-${end}`, "input", (filter, { valueAsNumber }) => {
          filter.ranges[name][place] = Number.isNaN(valueAsNumber) ? null : valueAsNumber;
        });
      });
    }
  }

  function showFilter() {
    const { filter } = state;
    find("text").value = filter.text;
    find("fold").value = filter.fold ?? "";
    find("embedded").checked = filter.embedded;
    filter.kinds.forEach((on, kind) => (find(`kind-${kind}`).checked = on));
    for (const [name, [low, high]] of Object.entries(filter.ranges)) {
      find(`${name}-min`).value = low ?? "";
      find(`${name}-max`).value = high ?? "";
    }
  }

  buildPage(payload, data, names, shortModelNames, state, shortcuts, paint);
  addListeners();
  showFilter();
  showRule();
  updateList();
  updateLayers();
  list.reveal(state.order.indexOf(state.chosen));
  if (state.chosen !== NONE) choose(state.chosen);

  const asJson = (metrics) => ({
    areas: Array.from(metrics.areas),
    dice: metrics.dice && Array.from(metrics.dice),
    mean: summaryOf(data, metrics, null).mean,
  });
  return {
    state,
    choose,
    shown: () => showing,
    evaluate: (model, rule) => asJson(evaluated(data, model, { label: null, ...rule })),
    evaluateVote: (k) => asJson(voted(data, k)),
  };
}
