// Builds title, notes and filters once, and starts the page.

function buildPage(payload, data, names, shortModelNames, state, shortcuts, paint) {
  document.title = payload.title;
  find("title").textContent = find("title").title = payload.title;
  buildNotes(payload.notes);
  buildFilters(payload, data);
  for (const [model, textContent] of shortModelNames.entries()) {
    find("model").append(element("option", { value: model, textContent, title: names[model] }));
  }
  find("one-rule-line").hidden = payload.models.length < 2;
  names.forEach((name, model) => {
    if (names.length < 2) return;
    const title = `Show ${name} beside the others`;
    const box = checkbox(`shown-${model}`, shortModelNames[model], title, (on) => {
      state.shown[model] = on;
      paint();
    });
    box.input.checked = state.shown[model];
    find("shown").append(box.label);
  });
  for (const [keys, text] of shortcuts) {
    const caps = keys.flatMap((key) => [element("kbd", { textContent: key }), " "]);
    find("shortcuts").append(
      element("tr", {}, element("td", {}, ...caps), element("td", { textContent: text })));
  }
}

/** The first note is always visible, the others when the notes are opened. */
function buildNotes([first, ...others]) {
  const notes = find("notes");
  notes.hidden = first === undefined;
  notes.querySelector("summary").textContent = first ?? "";
  notes.querySelector("summary").title = first ?? "";
  notes.classList.toggle("single", others.length === 0);
  notes.querySelector("ul").append(...others.map((textContent) => element("li", { textContent })));
}

function buildFilters(payload, data) {
  data.kinds.forEach((name, kind) => {
    const { input, label } = checkbox(`kind-${kind}`, name, `Show: ${name}`, () => {});
    label.dataset.kind = kind;
    label.append(element("output", { id: `kind-${kind}-count` }));
    input.checked = true;
    find("kinds").append(label);
    const part = element("span");
    part.dataset.kind = kind;
    find("bar").append(part);
  });
  find("images").classList.toggle("no-truth", !data.truth);
  const folds = [...new Set(payload.images.fold)].filter((fold) => fold !== null);
  folds.sort((a, b) => a - b);
  find("fold").append(element("option", { value: "", textContent: "all folds" }));
  for (const fold of folds) {
    find("fold").append(element("option", { value: fold, textContent: `fold ${fold}` }));
  }
  find("fold").hidden = folds.length === 0;
  for (const { name, text = name, title, truth } of COLUMNS) {
    if (["id", "fold", "kind"].includes(name) || (truth && !data.truth)) continue;
    const ends = ["min", "max"].map((end) => {
      const attributes = { "aria-label": `${end} ${text}`, placeholder: end, step: "any" };
      return element("input", { id: `${name}-${end}`, type: "number", title, attributes });
    });
    const label = element("span", { textContent: text });
    find("ranges").append(element("div", { className: "line" }, label, ...ends));
  }
}

const OLD_BROWSER =
  "This browser cannot unpack the page's data: open it in Chrome or Edge 80, Firefox 113 or " +
  "Safari 16.4, or a later one.";

async function begin() {
  if (typeof DecompressionStream === "undefined") throw new Error(OLD_BROWSER);
  // A page saved by a browser is already filled, so it is emptied first.
  for (const filled of document.querySelectorAll("[data-filled]")) filled.replaceChildren();
  const payload = JSON.parse(find("payload").textContent);
  const data = viewerData(payload, await unpacked(payload.packed));
  const page = start(payload, data);
  Object.assign(window.viewer, page);
  await page.shown();
}

window.viewer = { ready: begin() };
window.viewer.ready.catch((error) => {
  find("fatal").textContent = error.message;
  find("fatal").hidden = false;
  document.querySelector("main").hidden = true;
});
