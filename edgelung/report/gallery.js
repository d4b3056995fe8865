"use strict";
// The gallery of a predictions page. The rows are columns of equal length in the order of priority:
// filtering walks through numbers only, and no more than one screenful of tiles exists at a time.
(() => {
  const data = JSON.parse(document.getElementById("rows").textContent);
  const { classes, statuses, folders, rows, errors, thumbnails, base } = data;
  const count = rows.name.length, PER_PAGE = 60;
  const SHOWN_BY_BROWSERS = /\.(jpe?g|jpe|jfif|png|webp|bmp)$/i;
  const form = document.getElementById("filters");
  const list = document.getElementById("tiles");
  const said = document.getElementById("found");
  const number = new Intl.NumberFormat("en");
  let found = [], page = 0;

  const path = (row) => folders[rows.folder[row]] + rows.name[row];

  function filter() {
    const value = (name) => (form.elements[name] ? form.elements[name].value : "");
    const chosen = (name) => (value(name) === "" ? null : Number(value(name)));
    const label = chosen("label"), status = chosen("status"), truth = chosen("truth");
    const outcome = value("outcome"), text = value("name").toLowerCase();
    const low = value("low") === "" ? -1 : Number(value("low")) * 1e4;
    const high = value("high") === "" ? 1e4 : Number(value("high")) * 1e4;
    const bounded = value("low") !== "" || value("high") !== "";
    found = [];
    for (let row = 0; row < count; row++) {
      if (label !== null && rows.label[row] !== label) continue;
      if (status !== null && rows.status[row] !== status) continue;
      if (truth !== null && rows.truth[row] !== truth) continue;
      if (bounded && (rows.confidence[row] < Math.max(low, 0) || rows.confidence[row] > high)) continue;
      if (outcome !== "" && (rows.truth[row] < 0 || rows.label[row] < 0 ||
          (rows.truth[row] === rows.label[row]) !== (outcome === "right"))) continue;
      if (text !== "" && !path(row).toLowerCase().includes(text)) continue;
      found.push(row);
    }
    show(0);
  }

  function element(name, text, style) {
    const one = document.createElement(name);
    if (text) one.textContent = text;
    if (style) one.className = style;
    return one;
  }

  function shortened(name) {
    return name.length <= 20 ? name : name.slice(0, 8) + "…" + name.slice(-11);
  }

  function link(row) {
    return base === null || rows.outside[row] ? null :
      base + path(row).split("/").map(encodeURIComponent).join("/");
  }

  function picture(row, what) {
    const source = thumbnails[row] ? "data:image/webp;base64," + thumbnails[row] :
      rows.confidence[row] >= 0 && SHOWN_BY_BROWSERS.test(rows.name[row]) ? link(row) : null;
    if (source === null) return element("span", "no picture", "blank");
    const image = element("img");
    image.alt = what;
    image.addEventListener("error", () => image.replaceWith(element("span", "not found", "blank")));
    image.src = source;
    return image;
  }

  function card(row) {
    const item = element("li", "", "tile"), status = statuses[rows.status[row]];
    const label = classes[rows.label[row]], truth = classes[rows.truth[row]];
    item.append(picture(row, "tile" + (label ? ", predicted " + label : "") + (truth ? ", truth " + truth : "")));
    const first = element("div");
    if (status !== "ok") first.append(element("b", status, "inconclusive"), " ");
    if (label) {
      const tone = truth === undefined ? "" : truth === label ? "pass" : "fail";
      first.append(element("b", label, status === "ok" ? tone : "muted"), " ");
      first.append((rows.confidence[row] / 1e4).toFixed(3));
    }
    item.append(first);
    if (truth) item.append(element("div", "truth " + truth));
    if (errors[row]) item.append(element("div", errors[row], "muted"));
    const target = link(row), name = element(target === null ? "span" : "a", shortened(path(row)), "name");
    name.title = path(row);
    if (target !== null) name.href = target;
    item.append(name);
    return item;
  }

  function show(at, scroll) {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(Math.max(at, 0), pages - 1);
    list.replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(card));
    said.textContent = number.format(found.length) + " of " + number.format(count) +
      " rows; page " + number.format(page + 1) + " of " + number.format(pages);
    for (const button of document.querySelectorAll("button[data-step]"))
      button.disabled = button.dataset.step < 0 ? page === 0 : page === pages - 1;
    if (scroll) form.scrollIntoView();
  }

  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("button[data-step]"))
    button.addEventListener("click", () => show(page + Number(button.dataset.step), true));
  filter();
})();
