// The picture of a slide: zoom, move, and overlays that can be chosen. One scale and one position
// place all layers, so that overlays stay on the slide.
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const view = document.getElementById("slide"), layers = document.getElementById("layers");
  const said = document.getElementById("place");
  const bar = document.getElementById("bar");
  const WHEEL = 1.0015, STEP = 1.5, MOST = 16; // most: screen pixels per pixel of the picture
  const number = new Intl.NumberFormat("en");
  let scale = 1, left = 0, top = 0, fitted = true;
  const pointers = new Map();

  const least = () => Math.min(view.clientWidth / facts.width, view.clientHeight / facts.height);

  // Zoom and position that keep at least a part of the slide in the window.
  function place() {
    scale = Math.min(Math.max(scale, Math.min(least(), 1)), MOST);
    const width = facts.width * scale, height = facts.height * scale;
    const inside = (at, size, room) => size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, at));
    left = inside(left, width, view.clientWidth);
    top = inside(top, height, view.clientHeight);
    layers.style.transform = "translate(" + left + "px," + top + "px) scale(" + scale + ")";
    drawScaleBar(bar, facts.mpp * facts.downsample / scale);
  }

  function fit() { scale = least(); left = top = 0; fitted = true; place(); }

  function zoom(factor, x = view.clientWidth / 2, y = view.clientHeight / 2) {
    const before = scale;
    scale = Math.min(Math.max(scale * factor, Math.min(least(), 1)), MOST);
    left = x - (x - left) * scale / before;
    top = y - (y - top) * scale / before;
    fitted = false;
    place();
  }

  function move(x, y) { left += x; top += y; fitted = false; place(); }

  function at(event) {
    const box = view.getBoundingClientRect();
    return [event.clientX - box.left - view.clientLeft, event.clientY - box.top - view.clientTop];
  }

  function tell(event) {
    const [x, y] = at(event).map((value, axis) => (value - (axis ? top : left)) / scale * facts.downsample);
    const inside = x >= 0 && y >= 0 && x < facts.slideWidth && y < facts.slideHeight;
    const size = "; " + (x * facts.mpp / 1000).toFixed(2) + ", " + (y * facts.mpp / 1000).toFixed(2) + " mm";
    said.textContent = inside ? number.format(Math.floor(x)) + ", " + number.format(Math.floor(y)) + " px" + size : "";
  }

  view.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    view.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
  });
  view.addEventListener("pointermove", (event) => {
    tell(event);
    if (!pointers.has(event.pointerId)) return;
    const before = pointers.get(event.pointerId), now = at(event);
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const away = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      zoom(away(now) / away(before), other[0], other[1]);
    } else move(now[0] - before[0], now[1] - before[1]);
    pointers.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"])
    view.addEventListener(name, (event) => pointers.delete(event.pointerId));
  view.addEventListener("pointerleave", () => { said.textContent = ""; });
  view.addEventListener("dblclick", (event) => zoom(event.shiftKey ? 1 / STEP : STEP, ...at(event)));
  view.addEventListener("wheel", (event) => {
    // Without Ctrl the wheel scrolls the page, unless the picture was chosen by a click or Tab.
    if (!event.ctrlKey && document.activeElement !== view) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 33 : event.deltaMode === 2 ? 400 : 1;
    zoom(WHEEL ** -(event.deltaY * lines), ...at(event));
  }, { passive: false });

  const far = () => Math.max(view.clientWidth, view.clientHeight) / 8;
  const keys = {
    "+": () => zoom(STEP), "=": () => zoom(STEP), "-": () => zoom(1 / STEP), "_": () => zoom(1 / STEP),
    "0": fit, "Home": fit,
    "ArrowLeft": () => move(far(), 0), "ArrowRight": () => move(-far(), 0),
    "ArrowUp": () => move(0, far()), "ArrowDown": () => move(0, -far()),
    "o": () => { form.elements.shown.click(); },
  };
  view.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  for (const button of document.querySelectorAll("button[data-zoom]"))
    button.addEventListener("click", { in: () => zoom(STEP), out: () => zoom(1 / STEP), all: fit }[button.dataset.zoom]);

  const form = document.getElementById("overlays");
  function show() {
    const { shown, mask, unknown, opacity } = form.elements;
    const chosen = form.querySelector("input[name=layer]:checked").value;
    for (const image of layers.querySelectorAll("img.overlay")) {
      const key = image.dataset.layer;
      if (key === "mask") image.hidden = !mask.checked;
      else if (key === "unknown") image.hidden = !shown.checked || !unknown.checked;
      else image.hidden = !shown.checked || key !== chosen;
      if (key !== "mask" && key !== "unknown") image.style.opacity = opacity.value / 100;
    }
    document.getElementById("labels-legend").hidden = chosen !== "labels";
    document.getElementById("scale-legend").hidden = chosen === "labels";
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());

  layers.style.width = facts.width + "px";
  layers.style.height = facts.height + "px";
  new ResizeObserver(() => fitted ? fit() : place()).observe(view);
  fit();
  show();
})();
