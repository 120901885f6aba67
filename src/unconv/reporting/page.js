
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.remove("plain");

  const ERROR = "relative_error", PSNR = "psnr";
  const points = data.series.map(() => new Map());
  for (const point of data.points) points[point.series].set(point.layer, point);
  const single = data.images.map(({ values }) => new Map(values.map((row) => [`${row.series} ${row.layer}`, row])));
  const state = {
    image: 0, layer: data.start.layer, series: data.start.series, metric: ERROR, log: false, hover: null, hidden: new Set(),
  };

  const groupOf = (k) => data.series[k].key.slice(0, 2).join(" ");
  const group = () => data.series.map((_, k) => k).filter((k) => groupOf(k) === groupOf(state.series));
  const mean = (k, i, m = state.metric) => points[k].get(i)?.[m] ?? null;
  const spread = (k, i, m = state.metric) => points[k].get(i)?.spread[m] ?? null;
  const own = (k, i, m = state.metric) => single[state.image]?.get(`${k} ${i}`)?.[m] ?? null;

  function number(value) {
    if (value === null || value === undefined) return "–";
    const text = value === 0 ? "0" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : value.toPrecision(3);
    return (Math.abs(value) < 1e-4 && value ? value.toExponential(2) : text).replaceAll("-", "−");
  }
  function element(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  // ---- tables that sort, all together ------------------------------------------------------------------------
  function compare(a, b, sign) {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const numbers = [Number(a), Number(b)];
    if (!numbers.some(Number.isNaN)) return sign * (numbers[0] - numbers[1]);
    return sign * a.localeCompare(b, "en", { numeric: true });
  }

  function sortBy(button) {
    const heading = button.closest("th");
    const table = button.closest("table");
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const column = heading.cellIndex;
    for (const other of all("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = all("tbody tr", table).map((row) => [row.cells[column].dataset.value, row.dataset.layer]);
    const order = rows.sort((a, b) => compare(a[0], b[0], sign)).map(([, layer]) => layer);
    const place = (row) => order.includes(row.dataset.layer) ? order.indexOf(row.dataset.layer) : order.length;
    for (const body of all("table.data tbody")) body.append(...all("tr", body).sort((a, b) => place(a) - place(b)));
    say(`Tables sorted by ${button.textContent}, ${sign > 0 ? "ascending" : "descending"}.`);
  }

  // ---- what is chosen ----------------------------------------------------------------------------------------
  function say(text) {
    if ($("status")) $("status").textContent = text;
  }

  function choose(change) {
    Object.assign(state, change);
    state.hover = null;
    draw();
    const pieces = [data.images[state.image]?.name, data.layers[state.layer].name, data.series[state.series].name,
      `relative error ${number(own(state.series, state.layer, ERROR) ?? mean(state.series, state.layer, ERROR))}`];
    say(pieces.filter(Boolean).join(", "));
  }

  // the series that has the value just chosen and agrees most with what was chosen before
  function withChoice(axis, value) {
    const before = data.series[state.series].key;
    let best = state.series, most = -1;
    data.series.forEach(({ key }, k) => {
      const same = key[axis] === value ? key.filter((part, a) => part === before[a]).length : -1;
      if (same > most) [best, most] = [k, same];
    });
    return best;
  }

  function fillChoices() {
    data.choices.forEach((names, axis) => {
      const values = [...new Set(data.series.map(({ key }) => key[axis]))];
      const select = $(`choice-${axis}`);
      for (const value of values) select.append(element("option", { value }, names[value] ?? value));
      select.disabled = values.length === 1;
      select.addEventListener("change", () => choose({ series: withChoice(axis, select.value) }));
    });
  }

  // ---- original and reconstruction ---------------------------------------------------------------------------
  const cellAt = (i, j) => document.querySelector(`.cell[data-image="${i}"][data-layer="${j}"]`);

  function drawViewer() {
    if (!$("viewer")) return;
    const original = $(`original-${state.image}`);
    const cell = cellAt(state.image, state.layer);
    const found = cell?.querySelector(`img[data-series="${state.series}"]`);
    show($("original"), original?.src);
    show($("reconstruction"), found?.src);
    $("missing").hidden = Boolean(found);
    $("missing").textContent = found ? "" : "No picture of this reconstruction in this run.";
    $("recovered").querySelector(".tag").hidden = !found;
    const name = data.images[state.image]?.name ?? "";
    const values = [`relative error ${number(own(state.series, state.layer, ERROR))}`];
    const psnr = own(state.series, state.layer, PSNR), ssim = own(state.series, state.layer, "ssim");
    if (psnr !== null) values.push(`PSNR ${number(psnr)} dB`);
    if (ssim !== null) values.push(`SSIM ${number(ssim)}`);
    $("caption").replaceChildren(
      `${name}, ${data.layers[state.layer].name}: ${data.series[state.series].name}`,
      element("span", { class: "values" }, values.join(" · ")),
    );
    $("original").alt = `original, ${name}`;
    $("reconstruction").alt = `reconstruction from ${data.layers[state.layer].name}, ${values.join(", ")}`;
  }

  function show(image, source) {
    image.hidden = !source;
    if (source && image.src !== source) image.src = source;
  }

  function fitFrame() {
    const image = $("original").naturalWidth ? $("original") : $("reconstruction");
    if (!image.naturalWidth) return;
    const ratio = image.naturalWidth / image.naturalHeight;
    const beside = $("viewer").dataset.view === "beside" ? 2 : 1;
    $("frame").style.aspectRatio = String(ratio * beside);
    $("frame").style.maxWidth = `min(100%, calc(${(ratio * beside).toFixed(3)} * min(34rem, 70vh)))`;
  }

  function wipeTo(percent) {
    const at = Math.min(100, Math.max(0, percent));
    $("wipe").value = String(at);
    $("wipe").setAttribute("aria-valuetext", `${Math.round(at)} % original`);
    $("viewer").style.setProperty("--wipe", `${at}%`);
  }

  function startViewer() {
    if (!$("viewer")) return;
    const frame = $("frame");
    const drag = (event) => wipeTo((100 * (event.clientX - frame.getBoundingClientRect().left)) / frame.clientWidth);
    frame.addEventListener("pointerdown", (event) => {
      if ($("viewer").dataset.view !== "wipe" || event.button) return;
      frame.setPointerCapture(event.pointerId);
      drag(event);
      event.preventDefault();
    });
    frame.addEventListener("pointermove", (event) => frame.hasPointerCapture(event.pointerId) && drag(event));
    $("wipe").addEventListener("input", () => wipeTo(Number($("wipe").value)));
    for (const button of all(".views button")) {
      button.addEventListener("click", () => {
        $("viewer").dataset.view = button.dataset.view;
        for (const other of all(".views button")) other.setAttribute("aria-pressed", String(other === button));
        fitFrame();
      });
    }
    for (const image of all("#frame img")) image.addEventListener("load", fitFrame);
    wipeTo(50);
  }

  // ---- all pictures ------------------------------------------------------------------------------------------
  function drawSheet() {
    if (!$("sheet")) return;
    const { key: [recovered, code], name } = data.series[state.series];
    $("sheet-of").textContent = `${data.choices[0][recovered] ?? recovered} from ${data.choices[1][code] ?? code}, ${name}`;
    for (const cell of all(".cell")) {
      const image = Number(cell.dataset.image), layer = Number(cell.dataset.layer);
      for (const picture of all("img", cell)) picture.hidden = Number(picture.dataset.series) !== state.series;
      cell.querySelector(".error").textContent = number(single[image].get(`${state.series} ${layer}`)?.[ERROR]);
      const here = image === state.image && layer === state.layer;
      cell.tabIndex = here ? 0 : -1;
      mark(cell, here);
    }
    for (const heading of all("thead [data-layer]", $("sheet"))) mark(heading, Number(heading.dataset.layer) === state.layer);
  }

  function mark(node, here) {
    if (here) node.setAttribute("aria-current", "true");
    else node.removeAttribute("aria-current");
  }

  function startSheet() {
    if (!$("sheet")) return;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    $("sheet").addEventListener("click", (event) => {
      const cell = event.target.closest(".cell");
      if (cell) choose({ image: Number(cell.dataset.image), layer: Number(cell.dataset.layer) });
    });
    $("sheet").addEventListener("keydown", (event) => {
      const cell = event.target.closest(".cell");
      if (!cell || !(event.key in step)) return;
      const [down, right] = step[event.key];
      const row = cell.closest("tr"), at = cell.closest("td").cellIndex;
      const to = down < 0 ? row.previousElementSibling : down > 0 ? row.nextElementSibling : row;
      const next = to?.cells[at + right]?.querySelector(".cell");
      event.preventDefault();
      if (!next) return;
      choose({ image: Number(next.dataset.image), layer: Number(next.dataset.layer) });
      next.focus();
    });
  }

  // ---- error by layer: uPlot draws axes and lines, the points are drawn on top ----------------------------------
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const DASHED = [[], [7, 4], [1.5, 3.5]];
  let plot = null, drawnWidth = 0;

  function range(values) {
    const present = values.filter((v) => v !== null);
    if (state.metric === ERROR && state.log) {
      return [0.9 * Math.min(0.5, ...present.filter((v) => v > 0)), 1.05 * Math.max(1.2, ...present)];
    }
    if (state.metric === ERROR) return [0, Math.max(1.05, ...present.map((v) => v * 1.03))];
    const low = Math.min(...present), high = Math.max(...present);
    if (state.metric === PSNR) return present.length ? [low - 1, high + 1] : [0, 1];
    return [Math.min(0, ...present), 1];
  }

  function drawPlot() {
    const width = $("plot").clientWidth, names = data.layers.map(({ name }) => name.length > 16 ? `…${name.slice(-15)}` : name);
    if (width < 50) return;
    drawnWidth = width;
    const layers = names.map((_, i) => i);
    const visible = group().filter((k) => !state.hidden.has(k));
    const base = data.series[state.series].key[0] === "image" ? data.baseline[state.metric] ?? null : null;
    const longest = 6.6 * Math.max(...names.map(({ length }) => length)), gap = (width - 66) / names.length;
    const turned = longest > gap - 6, every = Math.ceil((turned ? 14 : longest + 6) / gap);
    const band = visible.includes(state.series) && layers.some((i) => spread(state.series, i));
    const ends = band ? [1, 0].map((e) => layers.map((i) => spread(state.series, i)?.[e] ?? null)) : [];
    const flat = [state.metric === ERROR ? 1 : null, base].map((v) => layers.map(() => v));
    const lines = visible.map((k) => layers.map((i) => mean(k, i)));
    const ring = layers.map((i) => own(state.series, i));
    const [low, high] = range([...lines, ...ends, ring, ...flat].flat());
    const invisible = { stroke: "transparent", width: 0, points: { show: false } };
    const series = [{}, ...ends.map(() => invisible),
      ...[[1, 3], [6, 4]].map((dash) => ({ stroke: colour("muted"), width: 1, dash, points: { show: false } })),
      ...visible.map((k) => ({ stroke: colour(`c${data.series[k].colour}`), width: k === state.series ? 3 : 1.5,
        dash: DASHED[data.series[k].dash], points: { show: false } }))];
    const axis = { stroke: colour("muted"), grid: { stroke: colour("rule"), width: 1 }, ticks: { show: false }, font: "12px sans-serif" };
    plot?.destroy();
    plot = new uPlot({
      width, height: Math.round(Math.min(380, Math.max(250, width * 0.52))), series,
      legend: { show: false }, cursor: { show: false }, padding: [12, 16, 4, 0],
      bands: band ? [{ series: [1, 2], fill: `${colour(`c${data.series[state.series].colour}`)}24` }] : [],
      scales: { x: { time: false, range: [-0.5, names.length - 0.5] }, y: { distr: state.metric === ERROR && state.log ? 3 : 1, range: [low, high] } },
      axes: [{ ...axis, grid: { show: false }, size: turned ? Math.min(96, longest * 0.66 + 24) : 34, rotate: turned ? -40 : 0,
        splits: () => layers.filter((i) => i % every === 0), values: (u, at) => at.map((i) => names[i]) },
      { ...axis, size: 50, values: (u, at) => at.map((v) => v === null ? "" : String(Number(v.toPrecision(3)))) }],
      hooks: { drawAxes: [drawHere], draw: [(u) => drawPoints(u, visible)] },
    }, [layers, ...ends, ...flat, ...lines], $("plot"));
    const slider = $("plot");
    slider.setAttribute("aria-valuenow", String(state.layer + 1));
    slider.setAttribute("aria-valuetext", `${data.layers[state.layer].name}: ${data.series[state.series].name}, mean ${data.metrics[state.metric]} ${number(mean(state.series, state.layer))}`);
  }

  function drawHere(u) {
    for (const [i, name] of [[state.hover, "muted"], [state.layer, "fg"]]) {
      if (i === null) continue;
      u.ctx.fillStyle = colour(name);
      u.ctx.fillRect(u.valToPos(i, "x", true), u.bbox.top, devicePixelRatio, u.bbox.height);
    }
  }

  function drawPoints(u, visible) {
    const { ctx } = u, unit = devicePixelRatio;
    const disc = (i, v, r, stroke, fill) => {
      ctx.beginPath();
      ctx.arc(u.valToPos(i, "x", true), u.valToPos(v, "y", true), r * unit, 0, 2 * Math.PI);
      Object.assign(ctx, { strokeStyle: stroke, fillStyle: fill, lineWidth: 1.75 * unit });
      ctx.setLineDash([]);
      ctx.fill();
      ctx.stroke();
    };
    for (const k of visible) {
      const own_colour = colour(`c${data.series[k].colour}`), size = k === state.series ? 4.2 : 3.2;
      // hollow: not converged for every image
      for (const [i, point] of points[k]) if (mean(k, i) !== null) disc(i, mean(k, i), size, own_colour, point.state ? colour("bg") : own_colour);
    }
    if (!visible.includes(state.series)) return;
    for (const [i] of points[state.series]) if (own(state.series, i) !== null) disc(i, own(state.series, i), 2.4, colour("fg"), colour("bg"));
  }

  let listed = "";

  function drawReadout() {
    const members = group();
    const i = state.hover ?? state.layer;
    const hasImage = data.images.length > 0;
    if (listed !== members.join(" ")) {
      listed = members.join(" ");
      const head = element("thead", {}, element("tr", {}, element("th", { scope: "col", id: "readout-at" }),
        element("th", { scope: "col" }, "mean"), element("th", { scope: "col" }, "range"),
        ...(hasImage ? [element("th", { scope: "col" }, "this image")] : [])));
      const body = element("tbody");
      for (const k of members) body.append(readoutRow(k, hasImage));
      $("readout").replaceChildren(head, body);
    }
    $("readout-at").textContent = `at ${data.layers[i].name}`;
    for (const row of all("tbody tr", $("readout"))) {
      const k = Number(row.dataset.series);
      row.classList.toggle("chosen", k === state.series);
      row.querySelector("button").setAttribute("aria-pressed", String(k === state.series));
      const ends = spread(k, i);
      row.cells[1].textContent = number(mean(k, i));
      row.cells[2].textContent = ends ? `${number(ends[0])} to ${number(ends[1])}` : "–";
      if (hasImage) row.cells[3].textContent = number(own(k, i));
    }
  }

  function readoutRow(k, hasImage) {
    const name = data.series[k].name;
    const box = element("input", { type: "checkbox", "aria-label": `Draw ${name}` });
    box.checked = !state.hidden.has(k);
    box.addEventListener("change", () => { state.hidden[box.checked ? "delete" : "add"](k); drawPlot(); });
    const sample = element("span", { class: `swatch d${data.series[k].dash}`, "aria-hidden": "true" });
    sample.style.color = `var(--c${data.series[k].colour})`;
    const button = element("button", { type: "button" }, name);
    button.addEventListener("click", () => {
      state.hidden.delete(k);
      box.checked = true;
      choose({ series: k });
    });
    return element("tr", { "data-series": k }, element("th", { scope: "row" }, box, sample, button), element("td"), element("td"),
      ...(hasImage ? [element("td")] : []));
  }

  function layerAt(event) {
    const at = plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x");
    return Math.min(data.layers.length - 1, Math.max(0, Math.round(at)));
  }

  function hover(layer) {
    state.hover = layer;
    drawPlot();
    drawReadout();
  }

  function startPlot() {
    const box = $("plot");
    box.addEventListener("pointermove", (event) => {
      const i = layerAt(event);
      if (box.hasPointerCapture(event.pointerId)) {
        if (i !== state.layer) choose({ layer: i });
      } else if (i !== state.hover && event.pointerType === "mouse") hover(i);
    });
    box.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      box.setPointerCapture(event.pointerId);
      choose({ layer: layerAt(event) });
    });
    box.addEventListener("pointerleave", () => hover(null));
    box.addEventListener("keydown", (event) => {
      const last = data.layers.length - 1;
      const to = { ArrowLeft: state.layer - 1, ArrowDown: state.layer - 1, ArrowRight: state.layer + 1, ArrowUp: state.layer + 1,
        Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose({ layer: Math.min(last, Math.max(0, to)) });
    });
    const metrics = Object.keys(data.metrics).filter((m) => m === ERROR || data.points.some((p) => p[m] !== null));
    for (const m of metrics) $("metric").append(element("option", { value: m }, data.metrics[m]));
    $("metric").disabled = metrics.length === 1;
    $("metric").addEventListener("change", () => {
      state.metric = $("metric").value;
      $("log-label").hidden = state.metric !== ERROR;
      draw();
    });
    // a decoding that diverges would press all others against the axis
    state.log = $("log").checked = data.points.some((p) => p[ERROR] > 4);
    $("log").addEventListener("change", () => { state.log = $("log").checked; drawPlot(); });
    new ResizeObserver(() => Math.abs(drawnWidth - box.clientWidth) > 1 && drawPlot()).observe(box);
    for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", drawPlot);
  }

  // ---- everything together -----------------------------------------------------------------------------------
  function draw() {
    if ($("image")) $("image").value = String(state.image);
    $("layer").value = String(state.layer);
    $("previous").disabled = state.layer === 0;
    $("next").disabled = state.layer === data.layers.length - 1;
    data.series[state.series].key.forEach((value, axis) => { $(`choice-${axis}`).value = value; });
    $("plot-title").textContent = `${{ relative_error: "Error", psnr: "PSNR", ssim: "SSIM" }[state.metric]} by layer`;
    const point = points[state.series].get(state.layer), base = data.baseline[state.metric] ?? null;
    $("plot-note").textContent = [
      `Line: mean of ${point?.images ?? 0} images.`,
      data.points.some((p) => p.state) && "Hollow: not converged for every image; the layer may hold more.",
      data.points.some((p) => p.spread[ERROR]) && `Band: ${data.spread}.`,
      data.images.length && "Small ring: the image chosen.",
      base !== null && data.series[state.series].key[0] === "image" && `Dashed: the image’s mean colour alone (${number(base)}).`,
      state.metric === ERROR && "Dotted: an all-zero answer.",
      point?.state && `Here, ${point.state}.`,
      point?.failed && `${point.failed} of ${point.images + point.failed} images failed here.`,
    ].filter(Boolean).join(" ");
    for (const row of all(".data tbody tr")) mark(row, Number(row.dataset.layer) === state.layer);
    drawViewer();
    drawPlot();
    drawReadout();
    drawSheet();
    $("facts").replaceChildren(...[["layer", data.layers[state.layer].name], ...data.layers[state.layer].facts]
      .map(([term, text]) => element("div", {}, element("dt", {}, term), element("dd", {}, text))));
  }

  for (const button of all(".sort")) button.addEventListener("click", () => sortBy(button));
  for (const link of all("[data-figure]")) link.addEventListener("click", () => { link.href = $(link.dataset.figure).src; });
  if (!$("explore")) return;
  fillChoices();
  startViewer();
  startSheet();
  startPlot();
  if ($("image")) $("image").addEventListener("change", () => choose({ image: Number($("image").value) }));
  $("layer").addEventListener("change", () => choose({ layer: Number($("layer").value) }));
  $("previous").addEventListener("click", () => choose({ layer: state.layer - 1 }));
  $("next").addEventListener("click", () => choose({ layer: state.layer + 1 }));
  for (const link of all(".link")) link.addEventListener("click", () => choose({ layer: Number(link.dataset.layer) }));
  draw();
})();
