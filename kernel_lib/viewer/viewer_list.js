// The list of images: only the rows in sight are in the page, whatever N is.

const ROW_PX = 24;
const LONG_NAME = 30;
const KIND_SHORT = {
  "false negative": "FN", "false positive": "FP", "true positive": "TP", "true negative": "TN",
};
const COLUMNS = [
  { name: "id", title: "The image's id", first: "up" },
  { name: "fold", title: "The fold that held the image out", first: "up" },
  {
    name: "kind", text: "result", first: "up",
    title: "False negative (FN), false positive (FP), true positive (TP) or true negative (TN)",
  },
  { name: "dice", text: "Dice", title: "Dice, lowest first", first: "up", truth: true },
  { name: "area", title: `Area of the predicted mask, ${AREA_UNIT}`, first: "down" },
  { name: "truth", title: `Area of the ground-truth mask, ${AREA_UNIT}`, first: "down", truth: true },
  {
    name: "max-probability", text: "max prob.", first: "down",
    title: "Max probability: of the image where models classify it, else of any pixel",
  },
];

/** An element with properties, attributes (by `attributes`) and children; text is escaped. */
function element(tag, { attributes = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const find = (id) => document.getElementById(id);

/** Ids without a long common prefix, so that they differ in a narrow column. */
function shortIds(ids, between = ".") {
  let shared = ids.length > 1 ? ids[0].length : 0;
  for (const id of ids) while (!id.startsWith(ids[0].slice(0, shared))) shared--;
  const cut = ids.length ? ids[0].lastIndexOf(between, shared - 1) + 1 : 0; // parts of a UID stay
  return cut > 8 ? ids.map((id) => `…${id.slice(cut)}`) : ids;
}

/** Names of runs, the long ones without their common prefix. */
function shortNames(names) {
  const isLong = (name) => name.length > LONG_NAME;
  const short = shortIds(names.filter(isLong), "_");
  return names.map((name) => (isLong(name) ? short.shift() : name));
}

/** Makes the list and returns functions that draw it and scroll it. */
function makeList(columns, sortBy, choose) {
  const [box, head, rows] = [find("list"), find("head"), find("rows")];
  let view = null;
  const pool = [];
  for (const { name, text = name, title } of columns) {
    const button = element("button", { textContent: text, title: `${title}. Click to sort.` });
    button.addEventListener("click", () => sortBy(name));
    const attributes = { role: "columnheader" };
    head.append(element("div", { className: `cell ${name}`, attributes }, button));
  }
  box.addEventListener("scroll", () => drawRows());
  new ResizeObserver(() => drawRows()).observe(box);
  rows.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) choose(Number(row.dataset.row));
  });

  function pooled(count) {
    while (pool.length < count) {
      const cells = columns.map(({ name }) =>
        element("div", { className: `cell ${name}`, attributes: { role: "gridcell" } }),
      );
      const row = element("div", { className: "row", attributes: { role: "row" } }, ...cells);
      pool.push({ row, cells });
      rows.append(row);
    }
    while (pool.length > count) pool.pop().row.remove();
    return pool;
  }

  function drawRows() {
    if (!view) return;
    const { order, chosen, ids, texts, embedded, kinds } = view;
    const first = Math.max(0, Math.floor(box.scrollTop / ROW_PX) - 4);
    const last = Math.min(order.length, first + Math.ceil(box.clientHeight / ROW_PX) + 8);
    pooled(Math.max(0, last - first)).forEach(({ row, cells }, k) => {
      const image = order[first + k];
      const isEmbedded = embedded.has(image);
      row.style.top = `${(first + k) * ROW_PX}px`;
      row.id = `row-${image}`;
      row.dataset.row = image;
      row.dataset.kind = kinds ? kinds[image] : NONE;
      row.classList.toggle("absent", !isEmbedded);
      row.setAttribute("aria-selected", image === chosen);
      row.setAttribute("aria-rowindex", first + k + 2);
      columns.forEach(({ name }, column) => {
        cells[column].textContent = texts[name](image);
        if (name !== "id") return;
        const note = isEmbedded ? "" : "\nno picture in this page";
        cells[column].title = ids[image] + note;
      });
    });
  }

  function draw(next) {
    view = next;
    rows.style.height = `${next.order.length * ROW_PX}px`;
    box.setAttribute("aria-rowcount", next.order.length + 1);
    box.setAttribute("aria-activedescendant", `row-${next.chosen}`);
    columns.forEach(({ name }, column) => {
      const sorted = next.sort.column === name;
      const direction = next.sort.descending ? "descending" : "ascending";
      head.children[column].setAttribute("aria-sort", sorted ? direction : "none");
    });
    drawRows();
  }

  /** Scrolls as little as shows the row at this place of the order. */
  function reveal(place) {
    if (place < 0) return;
    const room = box.clientHeight - ROW_PX; // the head covers one row
    const top = place * ROW_PX;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + ROW_PX > box.scrollTop + room) box.scrollTop = top + ROW_PX - room;
  }

  const toTop = () => (box.scrollTop = 0);

  return { draw, reveal, toTop };
}
