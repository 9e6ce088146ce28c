// What stands in the page once: title, notes, choices; and the page's beginning.

function buildPage(payload, model, names, shortened, state, shortcuts, paint) {
  document.title = payload.title;
  find("title").textContent = find("title").title = payload.title;
  buildNotes(payload.notes);
  buildFilters(payload, model);
  for (const [voice, textContent] of shortened.entries()) {
    find("voice").append(element("option", { value: voice, textContent, title: names[voice] }));
  }
  find("one-rule-line").hidden = payload.voices.length < 2;
  names.forEach((name, voice) => {
    if (names.length < 2) return;
    const title = `Show ${name} beside the others`;
    const box = checkbox(`shown-${voice}`, shortened[voice], title, (on) => {
      state.shown[voice] = on;
      paint();
    });
    box.input.checked = state.shown[voice];
    find("shown").append(box.label);
  });
  for (const [keys, text] of shortcuts) {
    const caps = keys.flatMap((key) => [element("kbd", { textContent: key }), " "]);
    find("shortcuts").append(
      element("tr", {}, element("td", {}, ...caps), element("td", { textContent: text })));
  }
}

/** The first note is seen at once, the others behind it. */
function buildNotes([first, ...others]) {
  const notes = find("notes");
  notes.hidden = first === undefined;
  notes.querySelector("summary").textContent = first ?? "";
  notes.querySelector("summary").title = first ?? "";
  notes.classList.toggle("alone", others.length === 0);
  notes.querySelector("ul").append(...others.map((textContent) => element("li", { textContent })));
}

function buildFilters(payload, model) {
  model.kinds.forEach((name, kind) => {
    const short = KIND_SHORT[name] ?? name;
    const { input, label } = checkbox(`kind-${kind}`, short, `Show: ${name}`, () => {});
    label.dataset.kind = kind;
    label.append(element("output", { id: `kind-${kind}-count` }));
    input.checked = true;
    find("kinds").append(label);
    const part = element("span");
    part.dataset.kind = kind;
    find("bar").append(part);
  });
  find("images").classList.toggle("no-truth", !model.truth);
  const folds = [...new Set(payload.images.fold)].filter((fold) => fold !== null);
  folds.sort((a, b) => a - b);
  find("fold").append(element("option", { value: "", textContent: "all folds" }));
  for (const fold of folds) {
    find("fold").append(element("option", { value: fold, textContent: `fold ${fold}` }));
  }
  find("fold").hidden = folds.length === 0;
  for (const { name, title, truth } of COLUMNS) {
    if (["id", "fold", "kind"].includes(name) || (truth && !model.truth)) continue;
    const ends = ["min", "max"].map((end) => {
      const attributes = { "aria-label": `${end} ${name}`, placeholder: end, step: "any" };
      return element("input", { id: `${name}-${end}`, type: "number", title, attributes });
    });
    const label = element("span", { textContent: name });
    find("ranges").append(element("div", { className: "line" }, label, ...ends));
  }
}

const OLD_BROWSER =
  "This browser cannot unpack the page's numbers: open it in Chrome or Edge 80, Firefox 113 or " +
  "Safari 16.4, or a later one.";

async function begin() {
  if (typeof DecompressionStream === "undefined") throw new Error(OLD_BROWSER);
  // A browser may save the page as it stands, filled: opened again, it is filled again.
  for (const filled of document.querySelectorAll("[data-filled]")) filled.replaceChildren();
  const payload = JSON.parse(find("payload").textContent);
  const model = modelOf(payload, await unpacked(payload.packed));
  const page = start(payload, model);
  Object.assign(window.viewer, page);
  await page.shown();
}

window.viewer = { ready: begin() };
window.viewer.ready.catch((error) => {
  find("fatal").textContent = error.message;
  find("fatal").hidden = false;
  document.querySelector("main").hidden = true;
});
