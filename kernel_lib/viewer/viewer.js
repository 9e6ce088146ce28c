// The page: one state, what changes it, and what is drawn from it.

const RESET_VIEW = { zoom: 1, x: 0.5, y: 0.5 };
const RESET_WINDOW = { width: 255, level: 127.5 };
const NO_FILTER = { text: "", fold: null, embedded: false };
const NO_TEXT_KEYS = ["range", "checkbox"];

function start(payload, model) {
  const { voices, vote } = payload;
  const VOTE = vote ? voices.length : NO_NUMBER; // the vote's place after the voices
  const names = vote ? [...voices.map(({ name }) => name), vote.name] : voices.map((v) => v.name);
  const chosenRules = voices.map(({ rule }) => ({ label: null, ...rule }));
  const pictureOf = new Map(payload.pictures.map(({ row }, index) => [row, index]));
  const decoded = decoder(payload.pictures);
  const columns = COLUMNS.filter(({ truth }) => !truth || model.truth);
  const noRanges = () => Object.fromEntries(
    columns.filter(({ name }) => !["id", "fold", "kind"].includes(name))
      .map(({ name }) => [name, [null, null]]),
  );
  const noFilter = () => ({ ...NO_FILTER, kinds: model.kinds.map(() => true), ranges: noRanges() });

  const state = {
    chosen: payload.pictures.length ? payload.pictures[0].row : model.n ? 0 : NO_NUMBER,
    rules: chosenRules.map((rule) => ({ ...rule })),
    oneRule: payload.one_rule,
    voice: vote ? VOTE : 0,
    k: vote ? vote.at_least : 1,
    shown: names.map((_, voice) => voice === (vote ? VOTE : 0)),
    sort: { column: model.truth ? "dice" : "area", descending: !model.truth },
    filter: noFilter(),
    layers: {
      image: { title: "radiograph", on: true, opacity: 1 },
      probability: { title: "probability", on: false, opacity: 0.6 },
      prediction: { title: "prediction", on: true, opacity: 0.3, fill: true, contour: true },
      truth: { title: "truth", on: true, opacity: 0.3, fill: false, contour: true },
    },
    windowing: { ...RESET_WINDOW },
    view: { ...RESET_VIEW },
    pointer: { pane: -1, at: null },
    picture: null, // of the chosen image, once decoded
    order: new Uint32Array(0),
  };
  const short = shortIds(payload.images.id);
  const shortened = shortNames(names);
  let scene = { picture: null, shown: [] }; // what the panes show

  // Numbers are kept until their rule moves.
  const kept = new Map();
  function numbersOfVoice(voice) {
    if (voice === VOTE && !votesHold()) return null;
    const key = JSON.stringify(voice === VOTE ? state.k : state.rules[voice]);
    if (kept.get(voice)?.key !== key) {
      const numbers =
        voice === VOTE ? voted(model, state.k) : evaluated(model, voice, state.rules[voice]);
      kept.set(voice, { key, numbers });
    }
    return kept.get(voice).numbers;
  }
  const asChosen = names.map((_, voice) => {
    if (voice === VOTE) return voted(model, vote.at_least);
    return evaluated(model, voice, chosenRules[voice]);
  });
  const scoresOfVoice = (voice) =>
    voice === VOTE ? model.vote.scores : model.voices[voice].scores;

  function votesHold() {
    const same = (one, other) => Object.keys(other).every((name) => one[name] === other[name]);
    return vote.voices.every((voice) => same(state.rules[voice], chosenRules[voice]));
  }

  // The rule.
  const moved = () =>
    state.oneRule ? voices.map((_, voice) => voice) : state.voice === VOTE ? [] : [state.voice];
  const leading = () => (state.voice === VOTE ? vote.voices[0] : state.voice);

  function setRule(name, value) {
    if (name === "k") state.k = value ?? state.k;
    else if (value !== null) for (const voice of moved()) moveRule(voice, name, value);
    rulesMoved();
  }

  function moveRule(voice, name, value) {
    const rule = state.rules[voice];
    if (name === "label on") {
      const on = value && voices[voice].labels;
      rule.label = on ? (chosenRules[voice].label ?? 0.5) : null;
    } else if (name === "label") {
      if (voices[voice].labels) rule.label = value;
    } else {
      rule[name] = value;
      if (name === "top") rule.bottom = Math.min(rule.bottom, value);
      if (name === "bottom") rule.top = Math.max(rule.top, value);
    }
  }

  function nudge(name, by) {
    const rule = state.rules[leading()];
    if (name === "min_area_px") {
      const place = areaStep(rule.min_area_px) + by;
      setRule(name, AREA_STEPS[Math.min(Math.max(place, 0), AREA_STEPS.length - 1)]);
    } else {
      const next = Math.round((rule[name] + by) * 1e4) / 1e4; // no dust of 0.1 + 0.2
      setRule(name, Math.min(Math.max(next, 0), 1));
    }
  }

  function restore() {
    const ended = state.voice === VOTE ? voices.keys() : moved(); // a vote's hold together
    for (const voice of ended) state.rules[voice] = { ...chosenRules[voice] };
    if (vote) state.k = vote.at_least;
    rulesMoved();
  }

  function tieRules(one) {
    state.oneRule = one;
    if (one) {
      const { label, ...rule } = state.rules[leading()];
      state.rules = voices.map(({ labels }) => ({ ...rule, label: labels ? label : null }));
    }
    rulesMoved();
  }

  // What is drawn. Numbers and list first, then the picture.
  const ruleLines = makeRule(payload, setRule);
  const showLayers = makeLayers(state.layers, Boolean(model.truth), (name, changes) => {
    Object.assign(state.layers[name], changes);
    layersMoved();
  });
  const list = makeList(columns, sortBy, choose);
  const panes = makePanes({
    view: setView,
    windowing: setWindow,
    pointer: (pane, at) => {
      state.pointer = { pane, at };
      showPointer();
    },
    drawn: (scale) => (find("zoom").textContent = `${fixed(scale, 2)}×`),
  });

  function rulesMoved() {
    showRule();
    listMoved();
    paint();
  }

  function listMoved() {
    const numbers = numbersOfVoice(state.voice);
    const scores = scoresOfVoice(state.voice);
    const { filter, sort } = state;
    state.order = listed(model, numbers, scores, filter, sort, pictureOf);
    showList(numbers, scores);
    const chosen = asChosen[state.voice];
    const rows = state.order;
    const summed = (one, which) => one && summaryOf(model, one, which);
    const group = (id, title, which) => {
      return { id, title, now: summed(numbers, which), chosen: summed(chosen, which) };
    };
    const all = group("all", `all ${whole(model.n)}`, null);
    const some = rows.length < model.n;
    const groups = some ? [all, group("listed", `listed ${whole(rows.length)}`, rows)] : [all];
    showNumbers(model, groups);
    find("caution").hidden = numbers !== null;
    showKinds(numbers);
    showChosen();
  }

  function showRule() {
    const rule = state.rules[leading()];
    const still = moved().length === 0;
    for (const name of ["top", "min_area_px", "bottom"]) ruleLines[name].show(rule[name], still);
    if (ruleLines.label) {
      const none = still || !voices[leading()].labels;
      ruleLines.on.input.checked = rule.label !== null;
      ruleLines.on.input.disabled = none;
      ruleLines.label.show(rule.label, none || rule.label === null);
    }
    if (vote) ruleLines.k.show(state.k);
    find("rule-hint").hidden = !still;
    find("voice").value = state.voice;
    find("voice").title = `Whose rule, numbers and list: ${names[state.voice]}`;
    find("one-rule").checked = state.oneRule;
  }

  function showList(numbers, scores) {
    const { order, chosen, sort } = state;
    const texts = cellTexts(payload, model, numbers, scores, short);
    const kinds = numbers && numbers.kinds;
    const ids = payload.images.id;
    list.draw({ order, chosen, sort, ids, texts, kinds, embedded: pictureOf });
    find("count").textContent = `${whole(order.length)} of ${whole(model.n)} images`;
  }

  function showKinds(numbers) {
    const counts = numbers ? summaryOf(model, numbers, null).counts : model.kinds.map(() => NaN);
    model.kinds.forEach((name, kind) => {
      find(`kind-${kind}-count`).textContent = ` ${fixed(counts[kind], 0)}`;
      find("bar").children[kind].style.flexGrow = counts[kind] || 0;
    });
  }

  function showChosen() {
    const { chosen, voice } = state;
    if (chosen === NO_NUMBER) return;
    const facts = factsOf(payload, model, numbersOfVoice(voice), scoresOfVoice(voice), chosen);
    find("chosen").replaceChildren(...facts.map(([name, value]) => {
      const bold = element("b", { id: `chosen-${name}`, textContent: value, title: value });
      const small = element("small", { textContent: name });
      return element("span", { className: name }, small, " ", bold);
    }));
  }

  /** Per shown voice: its levels (of the vote: shares), its mask, and a word of its numbers. */
  function scenes() {
    const shown = names.map((_, voice) => voice).filter((voice) => state.shown[voice]);
    const { picture, chosen } = state;
    const maskOfVoice = (voice) => {
      const rule = state.rules[voice];
      return maskOf(picture.maps[voice], isKept(model, voice, rule, chosen), rule.bottom);
    };
    return shown.map((voice) => {
      const numbers = numbersOfVoice(voice);
      const dice = numbers?.dice ? `dice ${fixed(numbers.dice[chosen], 4)}, ` : "";
      const px = numbers && scaledArea(model, numbers.areas[chosen], chosen);
      const area = numbers ? `${whole(px)} ${AREA_UNIT}` : "–";
      const words = `${dice}${area}`;
      const one = { voice, name: names[voice], short: shortened[voice], words };
      if (!picture) return one;
      if (voice !== VOTE) {
        return { ...one, levels: picture.maps[voice], mask: maskOfVoice(voice) };
      }
      const masks = vote.voices.map(maskOfVoice);
      const votes = votesOf(masks);
      const levels = votes.map((count) => Math.round((255 * count) / masks.length));
      const mask = votedMask(masks, state.k, vote.union);
      return { ...one, levels, mask, votes, voters: masks.length };
    });
  }

  function paint() {
    const there = pictureOf.has(state.chosen);
    find("panes").hidden = !there;
    find("absent").hidden = there;
    if (!there) {
      const id = payload.images.id[state.chosen];
      find("absent").textContent = model.n ? absentWords(id) : "There is no image.";
    }
    const { picture, layers, windowing, view } = state;
    scene = { picture: there ? picture : null, shown: scenes(), layers, windowing, view };
    panes.paint(scene); // which tells the pointer too
  }

  function showPointer() {
    const { pane, at } = state.pointer;
    const { width, height } = payload.images;
    const row = state.chosen;
    find("pointer").textContent =
      pixelWords(scene.picture, scene.shown[pane], at, width[row], height[row]);
  }

  function layersMoved() {
    showLayers(state.layers);
    for (const [name, show] of Object.entries(windowLines)) show(state.windowing[name]);
    paint();
  }

  function setWindow({ width, level }) {
    const within = (value, low, high) => Math.min(Math.max(value, low), high);
    state.windowing = { width: within(width, 1, 510), level: within(level, 0, 255) };
    layersMoved();
  }

  function setView(view) {
    state.view = view;
    panes.look(view);
  }

  // What the reader does.
  let showing = Promise.resolve();
  function choose(row) {
    state.chosen = row;
    showing = showPicture(row);
    return showing;
  }

  async function showPicture(row) {
    showList(numbersOfVoice(state.voice), scoresOfVoice(state.voice));
    list.reveal(state.order.indexOf(row));
    showChosen();
    const picture = pictureOf.has(row) ? await decoded(pictureOf.get(row)) : null;
    if (state.chosen !== row) return; // the reader went on meanwhile
    state.picture = picture;
    paint();
    const place = state.order.indexOf(row);
    for (const near of [state.order[place + 1], state.order[place - 1]]) {
      if (pictureOf.has(near)) decoded(pictureOf.get(near)); // so that j and k are at once
    }
  }

  function step(by) {
    const place = state.order.indexOf(state.chosen);
    const next = place < 0 ? 0 : Math.min(Math.max(place + by, 0), state.order.length - 1);
    if (state.order.length) choose(state.order[next]);
  }

  function sortBy(name) {
    const { sort } = state;
    const column = columns.find((one) => one.name === name);
    const descending = sort.column === name ? !sort.descending : column.first === "down";
    state.sort = { column: name, descending };
    listMoved();
    list.toTop();
  }

  function contours() {
    const { prediction, truth } = state.layers;
    const contour = !(prediction.contour || truth.contour);
    prediction.contour = truth.contour = contour;
    layersMoved();
  }

  function flip(layer) {
    if (layer.title === "truth" && !model.truth) return;
    layer.on = !layer.on;
    layersMoved();
  }

  const windowLines = {};
  for (const [name, title, min, max] of [
    ["level", "The grey shown as middle grey", 0, 255],
    ["width", "How many greys from black to white; fewer: more contrast", 1, 510],
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
      return [[String(place + 1)], `${layer.title} on or off`, () => flip(layer)];
    }),
    [["c"], "contours on or off", contours],
    [["f", "0"], "the whole picture", () => setView({ ...RESET_VIEW })],
    [["+", "="], "larger", () => panes.zoomBy(ZOOM_STEP)],
    [["-"], "smaller", () => panes.zoomBy(1 / ZOOM_STEP)],
    [["["], "top lower", () => nudge("top", -0.01)],
    [["]"], "top higher", () => nudge("top", 0.01)],
    [[";"], "bottom lower", () => nudge("bottom", -0.01)],
    [["'"], "bottom higher", () => nudge("bottom", 0.01)],
    [[","], "min area smaller", () => nudge("min_area_px", -1)],
    [["."], "min area larger", () => nudge("min_area_px", 1)],
    [["w"], "reset window and level", () => setWindow(RESET_WINDOW)],
    [["/"], "find an id", () => find("text").focus()],
    [["?"], "this list", () => find("help").showModal()],
    [["Escape"], "leave a field, close this list", () => document.activeElement.blur()],
  ];

  function press(event) {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
    const inField =
      target.matches("select") || (target.matches("input") && !NO_TEXT_KEYS.includes(target.type));
    if (inField && key !== "Escape") return;
    if (target.type === "range" && key.startsWith("Arrow")) return; // they move the slider
    const found = shortcuts.find(([keys]) => keys.includes(key));
    if (!found) return;
    event.preventDefault();
    found[2]();
  }

  function listenToAll() {
    const on = (id, event, act) => find(id).addEventListener(event, () => act(find(id)));
    document.addEventListener("keydown", press);
    on("voice", "change", ({ value }) => {
      state.voice = Number(value);
      rulesMoved();
    });
    on("one-rule", "change", ({ checked }) => tieRules(checked));
    on("as-chosen", "click", restore);
    on("window-reset", "click", () => setWindow(RESET_WINDOW));
    on("zoom-in", "click", () => panes.zoomBy(ZOOM_STEP));
    on("zoom-out", "click", () => panes.zoomBy(1 / ZOOM_STEP));
    on("one", "click", () => panes.oneToOne());
    on("fit", "click", () => setView({ ...RESET_VIEW }));
    on("help-open", "click", () => find("help").showModal());
    on("help-close", "click", () => find("help").close());
    on("clear", "click", () => {
      state.filter = noFilter();
      showFilter();
      listMoved();
    });
    const filters = (id, event, read) =>
      on(id, event, (field) => {
        read(state.filter, field);
        listMoved();
      });
    filters("text", "input", (filter, { value }) => (filter.text = value));
    filters("fold", "change", (filter, { value }) => (filter.fold = value === "" ? null : +value));
    filters("embedded", "change", (filter, { checked }) => (filter.embedded = checked));
    model.kinds.forEach((_, kind) => {
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

  buildPage(payload, model, names, shortened, state, shortcuts, paint);
  listenToAll();
  showFilter();
  showRule();
  listMoved();
  layersMoved();
  list.reveal(state.order.indexOf(state.chosen));
  if (state.chosen !== NO_NUMBER) choose(state.chosen);

  const plain = (numbers) => ({
    areas: Array.from(numbers.areas),
    dice: numbers.dice && Array.from(numbers.dice),
    mean: summaryOf(model, numbers, null).mean,
  });
  return {
    state,
    choose,
    shown: () => showing,
    evaluate: (voice, rule) => plain(evaluated(model, voice, { label: null, ...rule })),
    evaluateVote: (k) => plain(voted(model, k)),
  };
}
