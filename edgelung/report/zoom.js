// The slide at full resolution. The canvas drawer: WebGL refuses pictures from file://.
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const viewer = OpenSeadragon({
    element: document.getElementById("slide"),
    drawer: "canvas",
    crossOriginPolicy: false,
    showNavigationControl: false,
    showNavigator: true,
    navigatorPosition: "BOTTOM_RIGHT",
    navigatorOpacity: 1,
    navigatorBackground: "#fff",
    animationTime: 0.5,
    maxZoomPixelRatio: 4,
    visibilityRatio: 0.5,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    tileSources: {
      Image: {
        xmlns: "http://schemas.microsoft.com/deepzoom/2008",
        Url: facts.folder + "/",
        Format: "jpeg",
        Overlap: "0",
        TileSize: String(facts.tile),
        Size: { Width: String(facts.slideWidth), Height: String(facts.slideHeight) },
      },
    },
  });
  const form = document.getElementById("overlays");
  const images = facts.layers.map((layer) => {
    const image = document.createElement("img");
    image.className = "overlay";
    image.dataset.layer = layer.key;
    image.alt = layer.title;
    image.src = layer.picture;
    image.style.pointerEvents = "none";
    return image;
  });

  function show() {
    const { shown, mask, unknown, opacity } = form.elements;
    const chosen = form.querySelector("input[name=layer]:checked").value;
    for (const image of images) {
      const key = image.dataset.layer;
      const plain = key === "mask" || key === "unknown"; // shown as it is, over the others
      const visible = key === "mask" ? mask.checked : shown.checked && (plain ? unknown.checked : key === chosen);
      // OpenSeadragon sets `display` of an overlay itself.
      image.style.opacity = !visible ? 0 : plain ? 1 : opacity.value / 100;
    }
    document.getElementById("labels-legend").hidden = chosen !== "labels";
    document.getElementById("scale-legend").hidden = chosen === "labels";
  }

  viewer.addHandler("open", () => {
    facts.layers.forEach((layer, index) => viewer.addOverlay({
      element: images[index],
      location: new OpenSeadragon.Rect(0, 0, layer.across, layer.down),
    }));
    show();
  });
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  const acts = {
    in: () => viewer.viewport.zoomBy(1.5), out: () => viewer.viewport.zoomBy(1 / 1.5),
    all: () => viewer.viewport.goHome(),
  };
  for (const button of document.querySelectorAll("button[data-zoom]"))
    button.addEventListener("click", () => { acts[button.dataset.zoom](); viewer.viewport.applyConstraints(); });

  const bar = document.getElementById("bar");
  viewer.addHandler("viewport-change", () => {
    const zoom = viewer.viewport.viewportToImageZoom(viewer.viewport.getZoom(true)); // screen pixels per pixel
    drawScaleBar(bar, facts.mpp / zoom);
  });

  const number = new Intl.NumberFormat("en"), said = document.getElementById("place");
  new OpenSeadragon.MouseTracker({
    element: viewer.canvas,
    moveHandler: (event) => {
      if (!viewer.world.getItemCount()) return;
      const point = viewer.viewport.viewerElementToImageCoordinates(event.position);
      const x = Math.floor(point.x), y = Math.floor(point.y);
      const inside = x >= 0 && y >= 0 && x < facts.slideWidth && y < facts.slideHeight;
      said.textContent = inside ? number.format(x) + ", " + number.format(y) + " px" : "";
    },
  });
})();
