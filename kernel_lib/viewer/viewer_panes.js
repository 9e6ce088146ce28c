// The panes: a canvas for each shown model, zoomed and moved together.

const ZOOM_STEP = 1.25;
const LARGEST_SCALE = 48;

/** Makes the panes in #panes; `on` has handlers of view, window, pointer and scale. */
function makePanes(on) {
  const box = find("panes");
  let panes = [];
  let hovered = null; // the pane and event of the pointer's last move, while it is over a pane
  let scene = null; // as drawn last: {picture, shown, layers, windowing, view}

  /** Screen pixels per picture pixel, and the picture's corner, in pixels of the canvas. */
  function placed({ canvas }, { picture, view }) {
    const fit = Math.min(canvas.width / picture.width, canvas.height / picture.height);
    const free = fit * view.zoom;
    const scale = Math.abs(free - 1) < 1e-6 ? 1 : free; // exactly 1:1, without smoothing
    const left = Math.round(canvas.width / 2 - view.x * picture.width * scale);
    const top = Math.round(canvas.height / 2 - view.y * picture.height * scale);
    return { fit, scale, left, top };
  }

  function arrange(names) {
    if (names.join("\n") === panes.map(({ name }) => name).join("\n")) return;
    panes = names.map((name) => {
      const canvas = element("canvas", { attributes: { role: "img", "aria-label": name } });
      const caption = element("figcaption");
      const figure = element("figure", {}, element("div", {}, canvas), caption);
      return { name, canvas, caption, figure, layered: document.createElement("canvas") };
    });
    box.replaceChildren(...panes.map(({ figure }) => figure));
    panes.forEach(listen);
  }

  /** Fits canvases to the space, in as many columns as make the pictures largest. */
  function size() {
    const { clientWidth, clientHeight } = box;
    const side = (columns) =>
      Math.min(clientWidth / columns, clientHeight / Math.ceil(panes.length / columns) - 22);
    let best = 1;
    for (let columns = 2; columns <= panes.length; columns++) {
      if (side(columns) > side(best)) best = columns;
    }
    box.style.gridTemplateColumns = `repeat(${best}, minmax(0, 1fr))`;
    for (const { canvas } of panes) {
      const frame = canvas.parentElement;
      const width = Math.max(1, Math.round(frame.clientWidth * devicePixelRatio));
      const height = Math.max(1, Math.round(frame.clientHeight * devicePixelRatio));
      // Setting a size, even the same, clears the canvas.
      const same = canvas.width === width && canvas.height === height;
      if (!same) Object.assign(canvas, { width, height });
    }
  }

  /** Composes layers and contours of every pane, then draws them. */
  function paint(next) {
    scene = next;
    arrange(scene.shown.map(({ name }) => name));
    size();
    panes.forEach((pane, k) => {
      const { picture, layers, windowing } = scene;
      const shown = scene.shown[k];
      const title = `${shown.name} ${shown.result}`;
      pane.caption.replaceChildren(
        element("b", { textContent: shown.short, title }),
        element("span", { textContent: shown.result, title }));
      if (!picture) return;
      const { width, height } = picture;
      const { layered } = pane;
      if (layered.width !== width || layered.height !== height) {
        Object.assign(layered, { width, height });
      }
      const context = pane.layered.getContext("2d", { willReadFrequently: true });
      const pixels = context.createImageData(width, height);
      context.putImageData(composed(picture, shown, layers, windowing, pixels), 0, 0);
      const outline = (layer, mask) =>
        layer.on && layer.contour && mask ? outlineOf(mask, width, height) : null;
      pane.truth = outline(layers.truth, picture.truth);
      pane.prediction = outline(layers.prediction, shown.mask);
    });
    draw();
  }

  function draw() {
    for (const pane of panes) {
      const context = pane.canvas.getContext("2d", { willReadFrequently: true });
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, pane.canvas.width, pane.canvas.height);
      if (!scene.picture) continue;
      const { scale, left, top } = placed(pane, scene);
      context.setTransform(scale, 0, 0, scale, left, top);
      context.imageSmoothingEnabled = scale < 1;
      context.imageSmoothingQuality = "high";
      context.drawImage(pane.layered, 0, 0);
      const px = devicePixelRatio / scale;
      if (pane.truth) strokeContour(context, pane.truth, TRUTH_COLOUR, false, px);
      if (pane.prediction) strokeContour(context, pane.prediction, PREDICTION_COLOUR, true, px);
    }
    reportPointer();
    on.scale(panes.length && scene.picture ? placed(panes[0], scene).scale : NaN);
  }

  /** The point of the picture under the pointer, as shares 0–1 of its width and height. */
  function pointAt(pane, event) {
    const bounds = pane.canvas.getBoundingClientRect();
    const { scale, left, top } = placed(pane, scene);
    const x = (event.clientX - bounds.left) * (pane.canvas.width / bounds.width);
    const y = (event.clientY - bounds.top) * (pane.canvas.height / bounds.height);
    return [(x - left) / scale / scene.picture.width, (y - top) / scale / scene.picture.height];
  }

  function reportPointer() {
    const isKnown = hovered && scene.picture && panes.includes(hovered.pane);
    if (isKnown) on.pointer(panes.indexOf(hovered.pane), pointAt(hovered.pane, hovered.event));
    else on.pointer(-1, null);
  }

  function zoomBy(factor, [x, y] = [scene.view.x, scene.view.y]) {
    if (!scene.picture) return;
    const { fit } = placed(panes[0], scene);
    const { view } = scene;
    const smallest = Math.min(0.25, 1 / fit); // 1:1 is always possible
    const zoom = Math.min(Math.max(view.zoom * factor, smallest), LARGEST_SCALE / fit);
    const kept = view.zoom / zoom; // the point under the pointer stays under it
    on.view({ zoom, x: x + (view.x - x) * kept, y: y + (view.y - y) * kept });
  }

  function oneToOne() {
    if (scene.picture) zoomBy(1 / placed(panes[0], scene).scale);
  }

  function listen(pane) {
    const { canvas } = pane;
    let drag = null;
    const ready = () => scene && scene.picture;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (ready()) zoomBy(Math.exp(-event.deltaY * 0.0015), pointAt(pane, event));
    }, { passive: false });
    canvas.addEventListener("dblclick", () => on.view({ zoom: 1, x: 0.5, y: 0.5 }));
    canvas.addEventListener("pointerdown", (event) => {
      if (!ready() || event.button === 1) return;
      canvas.setPointerCapture(event.pointerId);
      const windowing = event.button === 2 || event.shiftKey;
      const { view } = scene;
      drag = { x: event.clientX, y: event.clientY, windowing, view, from: scene.windowing };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!ready()) return;
      hovered = { pane, event };
      if (!drag) {
        reportPointer();
        return;
      }
      const [right, down] = [event.clientX - drag.x, event.clientY - drag.y];
      if (drag.windowing) {
        const { width, level } = drag.from;
        on.windowing({ width: width + right, level: level + down / 2 });
        return;
      }
      const scale = placed(pane, scene).scale / devicePixelRatio;
      const x = drag.view.x - right / scale / scene.picture.width;
      const y = drag.view.y - down / scale / scene.picture.height;
      on.view({ ...drag.view, x, y });
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => (drag = null));
    }
    canvas.addEventListener("pointerleave", () => {
      hovered = null;
      if (scene) reportPointer();
    });
  }

  function look(view) {
    scene = { ...scene, view };
    draw();
  }

  new ResizeObserver(() => {
    if (!scene) return;
    size();
    draw();
  }).observe(box);
  return { paint, look, zoomBy, oneToOne };
}
