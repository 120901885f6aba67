
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.remove("plain");

  const SVG = "http://www.w3.org/2000/svg";
  const ERROR = 0, PSNR = 1;
  const points = data.series.map(() => new Map());
  for (const [k, i, values, spread, seconds, images, failed] of data.points) {
    points[k].set(i, { values, spread, seconds, images, failed });
  }
  const single = data.images.map(({ values }) => {
    const found = new Map();
    for (const [k, i, ...rest] of values) found.set(`${k} ${i}`, rest);
    return found;
  });
  const state = {
    image: 0, stage: data.start.stage, series: data.start.series, metric: ERROR, log: false, hover: null, hidden: new Set(),
  };

  const groupOf = (k) => data.series[k].key.slice(0, 2).join(" ");
  const group = () => data.series.map((_, k) => k).filter((k) => groupOf(k) === groupOf(state.series));
  const mean = (k, i, m = state.metric) => points[k].get(i)?.values[m] ?? null;
  const spread = (k, i, m = state.metric) => points[k].get(i)?.spread[m] ?? null;
  const own = (k, i, m = state.metric) => single[state.image]?.get(`${k} ${i}`)?.[m] ?? null;

  function number(value, digits = 3) {
    if (value === null || value === undefined) return "–";
    let text;
    if (value === 0 || Math.abs(value) >= 10 ** (1 - digits)) text = value.toFixed(digits);
    else {
      const [mantissa, exponent] = value.toExponential(1).split("e");
      text = Number(exponent) >= -4 ? value.toFixed(1 - Number(exponent)) : `${mantissa}e${Number(exponent)}`;
    }
    return text.replaceAll("-", "−");
  }
  const shown = (value, m = state.metric) => number(value, m === PSNR ? 1 : 3);

  function element(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }
  function svg(name, attributes = {}, ...children) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  // ---- tables that sort, all together -------------------------------------------------------------------------

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
    const column = Number(button.dataset.column);
    for (const other of all("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const cells = (row) => all("th, td", row).filter((cell) => !cell.classList.contains("mark"));
    // one step finer than the column that it was asked for: the row's stage, so that every table can follow
    const rows = all("tbody tr", table).map((row) => [cells(row)[indexOf(table, column)]?.dataset.value, row]);
    rows.sort((a, b) => compare(a[0], b[0], sign));
    const order = new Map();
    for (const [, row] of rows) if (!order.has(row.dataset.stage)) order.set(row.dataset.stage, order.size);
    for (const other of all("table.data")) {
      const body = other.tBodies[0];
      const last = order.size;
      const moved = other === table ? rows.map(([, row]) => row)
        : all("tr", body).sort((a, b) => (order.get(a.dataset.stage) ?? last) - (order.get(b.dataset.stage) ?? last));
      body.append(...moved);
    }
    say(`Tables sorted by ${button.getAttribute("aria-label") ?? button.textContent}, ${sign > 0 ? "ascending" : "descending"}.`);
  }

  function indexOf(table, column) {
    return all(".sort", table).findIndex((button) => Number(button.dataset.column) === column);
  }

  // ---- what is chosen -----------------------------------------------------------------------------------------

  function say(text) {
    if ($("status")) $("status").textContent = text;
  }

  function choose(change) {
    Object.assign(state, change);
    state.hover = null;
    draw();
    const pieces = [data.images[state.image]?.name, data.stages[state.stage].name, data.series[state.series].name,
      `relative error ${number(own(state.series, state.stage, ERROR) ?? mean(state.series, state.stage, ERROR))}`];
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

  // ---- original and reconstruction ----------------------------------------------------------------------------

  const cellAt = (i, j) => document.querySelector(`.cell[data-image="${i}"][data-stage="${j}"]`);

  function drawViewer() {
    if (!$("viewer")) return;
    const original = $(`original-${state.image}`);
    const cell = cellAt(state.image, state.stage);
    const found = cell?.querySelector(`img[data-series="${state.series}"]`);
    show($("original"), original?.src);
    show($("reconstruction"), found?.src);
    $("missing").hidden = Boolean(found);
    $("missing").textContent = found ? "" : "No picture of this reconstruction in this run.";
    $("recovered").querySelector(".tag").hidden = !found;
    const name = data.images[state.image]?.name ?? "";
    const values = [`relative error ${number(own(state.series, state.stage, ERROR))}`];
    const psnr = own(state.series, state.stage, PSNR), ssim = own(state.series, state.stage, 2);
    if (psnr !== null) values.push(`PSNR ${number(psnr, 1)} dB`);
    if (ssim !== null) values.push(`SSIM ${number(ssim)}`);
    $("caption").replaceChildren(
      `${name}, ${data.stages[state.stage].name}: ${data.series[state.series].name}`,
      element("span", { class: "values" }, values.join(" · ")),
    );
    $("original").alt = `original, ${name}`;
    $("reconstruction").alt = `reconstruction from ${data.stages[state.stage].name}, ${values.join(", ")}`;
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
    for (const layer of all("#frame img")) {
      layer.classList.toggle("pixels", layer.naturalWidth < 128 && layer.naturalWidth < layer.clientWidth);
    }
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
    const drag = (event) => {
      const box = frame.getBoundingClientRect();
      wipeTo((100 * (event.clientX - box.left)) / box.width);
    };
    frame.addEventListener("pointerdown", (event) => {
      if ($("viewer").dataset.view !== "wipe" || event.button) return;
      frame.setPointerCapture(event.pointerId);
      drag(event);
      event.preventDefault();
    });
    frame.addEventListener("pointermove", (event) => {
      if (frame.hasPointerCapture(event.pointerId)) drag(event);
    });
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

  // ---- all pictures -------------------------------------------------------------------------------------------

  function drawSheet() {
    const { key, name } = data.series[state.series];
    if (!$("sheet")) return;
    const [recovered, code] = key;
    $("sheet-of").textContent = `${data.choices[0][recovered] ?? recovered} from ${data.choices[1][code] ?? code}, ${name}`;
    for (const cell of all(".cell")) {
      const image = Number(cell.dataset.image), stage = Number(cell.dataset.stage);
      for (const picture of all("img", cell)) picture.hidden = Number(picture.dataset.series) !== state.series;
      cell.querySelector(".error").textContent = number(single[image].get(`${state.series} ${stage}`)?.[ERROR]);
      const here = image === state.image && stage === state.stage;
      cell.tabIndex = here ? 0 : -1;
      if (here) cell.setAttribute("aria-current", "true");
      else cell.removeAttribute("aria-current");
    }
    for (const heading of all("thead [data-stage]", $("sheet"))) mark(heading, Number(heading.dataset.stage) === state.stage);
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
      if (cell) choose({ image: Number(cell.dataset.image), stage: Number(cell.dataset.stage) });
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
      choose({ image: Number(next.dataset.image), stage: Number(next.dataset.stage) });
      next.focus();
    });
  }

  // ---- error against depth ------------------------------------------------------------------------------------

  function niceTicks(low, high, count = 5) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
    const ticks = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-6; t += step) ticks.push(Math.abs(t) < step / 1e6 ? 0 : t);
    return ticks;
  }

  function scale(values) {
    const m = state.metric;
    const present = values.filter((v) => v !== null);
    if (m === ERROR && state.log) {
      const positive = present.filter((v) => v > 0);
      const low = 10 ** Math.floor(Math.log10(Math.min(0.5, ...positive)) + 1e-9);
      const high = Math.max(1.2, ...positive) * 1.05;
      const ticks = [];
      for (let p = low; p <= high; p *= 10) for (const f of high / low > 500 ? [1] : [1, 2, 5]) if (f * p <= high) ticks.push(f * p);
      const span = Math.log(high / low);
      return { at: (v) => (v > 0 ? Math.max(0, Math.log(v / low) / span) : 0), ticks, text: (t) => String(Number(t.toPrecision(1))) };
    }
    let low = 0, high = 1;
    if (m === ERROR) high = Math.max(1.05, ...present.map((v) => v * 1.03));
    else if (m === PSNR) {
      [low, high] = present.length ? [Math.min(...present), Math.max(...present)] : [0, 1];
      const room = 0.06 * (high - low) || 1;
      [low, high] = [low - room, high + room];
    } else low = Math.min(0, ...present);
    const ticks = niceTicks(low, high);
    const digits = ticks.length > 1 ? Math.max(0, Math.ceil(-Math.log10(ticks[1] - ticks[0]) - 1e-9)) : 0;
    return { at: (v) => (v - low) / (high - low), ticks, text: (t) => t.toFixed(digits).replace("-", "−") };
  }

  const SHAPES = [
    (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
    (x, y, r) => `M${x - r * 0.9} ${y - r * 0.9}h${1.8 * r}v${1.8 * r}h${-1.8 * r}z`,
    (x, y, r) => `M${x} ${y - 1.25 * r}l${1.2 * r} ${2.1 * r}h${-2.4 * r}z`,
    (x, y, r) => `M${x} ${y - 1.3 * r}l${1.3 * r} ${1.3 * r}l${-1.3 * r} ${1.3 * r}l${-1.3 * r} ${-1.3 * r}z`,
    (x, y, r) => `M${x} ${y + 1.25 * r}l${1.2 * r} ${-2.1 * r}h${-2.4 * r}z`,
    (x, y, r) => `M${x - 1.2 * r} ${y - 0.5 * r}h${2.4 * r}v${r}h${-2.4 * r}z`,
    (x, y, r) => `M${x - 0.5 * r} ${y - 1.2 * r}h${r}v${2.4 * r}h${-r}z`,
  ];

  const look = (k) => `c${data.series[k].colour} d${data.series[k].dash}`;
  const shape = (k, x, y, r) => svg("path", { class: "point", d: SHAPES[data.series[k].colour](x, y, r) });

  let geometry = null;

  function drawPlot() {
    const width = Math.max(240, $("plot").clientWidth);
    const names = data.stages.map(({ short }) => (short.length > 16 ? `${short.slice(0, 15)}…` : short));
    const count = names.length;
    const longest = Math.max(...names.map((name) => name.length)) * 6.6;
    const left = 50, right = 16, top = 14;
    const gap = (width - left - right) / count;
    const turned = longest > gap - 6;
    const height = Math.round(Math.min(380, Math.max(250, width * 0.52)));
    const bottom = (turned ? Math.min(96, longest * 0.64 + 22) : 24) + 20;
    const x = (i) => left + gap * (i + 0.5);
    const visible = group().filter((k) => !state.hidden.has(k));
    const drawn = visible.includes(state.series) ? [...visible.filter((k) => k !== state.series), state.series] : visible;
    const stages = [...Array(count).keys()];
    const values = visible.flatMap((k) => stages.map((i) => mean(k, i)));
    if (visible.includes(state.series)) for (const i of stages) values.push(...(spread(state.series, i) ?? []), own(state.series, i));
    const axis = scale(values);
    const y = (v) => height - bottom - axis.at(v) * (height - bottom - top);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" });
    for (const tick of axis.ticks) {
      picture.append(svg("path", { class: "grid", d: `M${left} ${y(tick).toFixed(1)}H${width - right}` }));
      picture.append(svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, axis.text(tick)));
    }
    if (state.metric === ERROR) {
      picture.append(svg("path", { class: "one", d: `M${left} ${y(1).toFixed(1)}H${width - right}` }));
    }
    picture.append(svg("path", { class: "here", d: `M${x(state.stage)} ${top}V${height - bottom}` }));
    if (state.hover !== null && state.hover !== state.stage) {
      picture.append(svg("path", { class: "hover", d: `M${x(state.hover)} ${top}V${height - bottom}` }));
    }
    const every = Math.ceil((turned ? 13 : longest + 6) / gap);
    stages.forEach((i) => {
      const here = i === (state.hover ?? state.stage);
      if (i % every && !here) return;
      if (!here && every > 1 && Math.abs(i - (state.hover ?? state.stage)) < every) return;
      const at = turned ? { transform: `translate(${x(i) + 4} ${height - bottom + 14}) rotate(-40)`, "text-anchor": "end" }
        : { x: x(i), y: height - bottom + 17, "text-anchor": "middle" };
      picture.append(svg("text", { ...at, class: here ? "tick-here" : "" }, names[i]));
    });
    const title = data.prefix ? `stage (${data.prefix}…), in network order` : "stage, in network order";
    picture.append(svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, title));
    for (const k of drawn) picture.append(drawLine(k, stages, x, y, Math.max(0.5, Math.min(1, gap / 16))));
    labelValue(picture, x, y, width - right, top);
    $("plot").replaceChildren(picture);
    geometry = { left, gap, width, count };
    const slider = $("plot");
    slider.setAttribute("aria-valuenow", String(state.stage + 1));
    slider.setAttribute("aria-valuetext", `${data.stages[state.stage].name}: ${data.series[state.series].name}, mean ${data.metrics[state.metric]} ${shown(mean(state.series, state.stage))}`);
  }

  function drawLine(k, stages, x, y, size) {
    const chosen = k === state.series;
    const line = svg("g", { class: `${look(k)}${chosen ? " chosen" : ""}` });
    // a stage without a value breaks the line: nothing is drawn between stages that were not measured
    for (const run of runs(stages, (i) => mean(k, i) !== null)) {
      const ends = run.filter((i) => spread(k, i));
      if (chosen && ends.length > 1) {
        const up = ends.map((i) => `${x(i)} ${y(spread(k, i)[1]).toFixed(1)}`);
        const down = ends.map((i) => `${x(i)} ${y(spread(k, i)[0]).toFixed(1)}`).reverse();
        line.append(svg("path", { class: "band", d: `M${[...up, ...down].join("L")}Z` }));
      }
      line.append(svg("path", { class: "line", d: `M${run.map((i) => `${x(i)} ${y(mean(k, i)).toFixed(1)}`).join("L")}` }));
    }
    for (const i of stages) {
      if (mean(k, i) !== null) line.append(shape(k, x(i), y(mean(k, i)), size * (chosen ? 4.2 : 3.2)));
      if (chosen && own(k, i) !== null) line.append(svg("circle", { class: "this", cx: x(i), cy: y(own(k, i)), r: size * 3.4 }));
    }
    return line;
  }

  function runs(items, good) {
    const result = [];
    for (const item of items) {
      if (!good(item)) result.push([]);
      else if (result.length) result.at(-1).push(item);
      else result.push([item]);
    }
    return result.filter((run) => run.length);
  }

  function labelValue(picture, x, y, right, top) {
    const i = state.hover ?? state.stage;
    const value = mean(state.series, i);
    if (value === null || state.hidden.has(state.series)) return;
    const near = x(i) > right - 60;
    picture.append(svg("text", {
      class: "value", x: x(i) + (near ? -9 : 9), y: Math.max(top + 10, y(value) - 9), "text-anchor": near ? "end" : "start",
    }, shown(value)));
  }

  let listed = "";

  function drawReadout() {
    const members = group();
    const i = state.hover ?? state.stage;
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
    $("readout-at").textContent = `at ${data.stages[i].name}`;
    for (const row of all("tbody tr", $("readout"))) {
      const k = Number(row.dataset.series);
      row.classList.toggle("chosen", k === state.series);
      row.querySelector("button").setAttribute("aria-pressed", String(k === state.series));
      const ends = spread(k, i);
      row.cells[1].textContent = shown(mean(k, i));
      row.cells[2].textContent = ends ? `${shown(ends[0])} to ${shown(ends[1])}` : "–";
      if (hasImage) row.cells[3].textContent = shown(own(k, i));
    }
  }

  function readoutRow(k, hasImage) {
    const name = data.series[k].name;
    const box = element("input", { type: "checkbox", "aria-label": `Draw ${name}` });
    box.checked = !state.hidden.has(k);
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(k);
      else state.hidden.add(k);
      drawPlot();
    });
    const sample = svg("svg", { class: `swatch ${look(k)}`, width: 30, height: 12, viewBox: "0 0 30 12", "aria-hidden": "true" },
      svg("path", { class: "line", d: "M0 6H30" }), shape(k, 15, 6, 3.2));
    const button = element("button", { type: "button" }, name);
    button.addEventListener("click", () => {
      state.hidden.delete(k);
      box.checked = true;
      choose({ series: k });
    });
    return element("tr", { "data-series": k }, element("th", { scope: "row" }, box, sample, button), element("td"), element("td"),
      ...(hasImage ? [element("td")] : []));
  }

  function stageAt(event) {
    const box = $("plot").getBoundingClientRect();
    const at = ((event.clientX - box.left) * geometry.width) / box.width;
    return Math.min(geometry.count - 1, Math.max(0, Math.floor((at - geometry.left) / geometry.gap)));
  }

  function startPlot() {
    const plot = $("plot");
    plot.addEventListener("pointermove", (event) => {
      const i = stageAt(event);
      if (plot.hasPointerCapture(event.pointerId)) {
        if (i !== state.stage) choose({ stage: i });
      } else if (i !== state.hover && event.pointerType === "mouse") {
        state.hover = i;
        drawPlot();
        drawReadout();
      }
    });
    plot.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      plot.setPointerCapture(event.pointerId);
      choose({ stage: stageAt(event) });
    });
    plot.addEventListener("pointerleave", () => {
      state.hover = null;
      drawPlot();
      drawReadout();
    });
    plot.addEventListener("keydown", (event) => {
      const last = data.stages.length - 1;
      const to = { ArrowLeft: state.stage - 1, ArrowDown: state.stage - 1, ArrowRight: state.stage + 1, ArrowUp: state.stage + 1,
        Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose({ stage: Math.min(last, Math.max(0, to)) });
    });
    const metrics = data.metrics.map((_, m) => m).filter((m) => m === ERROR || data.points.some((p) => p[2][m] !== null));
    for (const m of metrics) $("metric").append(element("option", { value: m }, data.metrics[m]));
    $("metric").disabled = metrics.length === 1;
    $("metric").addEventListener("change", () => {
      state.metric = Number($("metric").value);
      $("log-label").hidden = state.metric !== ERROR;
      draw();
    });
    // a decoding that diverges would press all others against the axis
    state.log = $("log").checked = data.points.some((p) => p[2][ERROR] > 4);
    $("log").addEventListener("change", () => {
      state.log = $("log").checked;
      drawPlot();
    });
    new ResizeObserver(() => {
      if (geometry && Math.abs(geometry.width - plot.clientWidth) > 1) drawPlot();
    }).observe(plot);
  }

  // ---- everything together ------------------------------------------------------------------------------------

  function drawFacts() {
    $("facts").replaceChildren(...[["stage", data.stages[state.stage].name], ["kind", data.stages[state.stage].kind], ...data.stages[state.stage].facts]
      .map(([term, text]) => element("div", {}, element("dt", {}, term), element("dd", {}, text))));
  }

  function draw() {
    if ($("image")) $("image").value = String(state.image);
    $("stage").value = String(state.stage);
    $("previous").disabled = state.stage === 0;
    $("next").disabled = state.stage === data.stages.length - 1;
    data.series[state.series].key.forEach((value, axis) => { $(`choice-${axis}`).value = value; });
    const title = ["Error", "PSNR", "SSIM"][state.metric];
    $("plot-title").textContent = `${title} against depth`;
    const point = points[state.series].get(state.stage);
    const ring = data.images.length ? " Ring: the image chosen." : "";
    const band = data.points.some((p) => p[3][0]) ? ` Band: ${data.spread}.` : "";
    const one = state.metric === ERROR ? " Dotted line at 1: an all-zero answer." : "";
    const failed = point?.failed ? ` ${point.failed} of ${point.images + point.failed} images failed here.` : "";
    $("plot-note").textContent = `Line: mean of ${point?.images ?? 0} images.${band}${ring}${one}${failed}`;
    for (const row of all(".data tbody tr")) mark(row, Number(row.dataset.stage) === state.stage);
    drawViewer();
    drawPlot();
    drawReadout();
    drawSheet();
    drawFacts();
  }

  for (const button of all(".sort")) button.addEventListener("click", () => sortBy(button));
  if (!$("explore")) return;
  fillChoices();
  startViewer();
  startSheet();
  startPlot();
  if ($("image")) $("image").addEventListener("change", () => choose({ image: Number($("image").value) }));
  $("stage").addEventListener("change", () => choose({ stage: Number($("stage").value) }));
  $("previous").addEventListener("click", () => choose({ stage: Math.max(0, state.stage - 1) }));
  $("next").addEventListener("click", () => choose({ stage: Math.min(data.stages.length - 1, state.stage + 1) }));
  for (const button of all(".link")) {
    button.addEventListener("click", () => choose({ stage: Number(button.dataset.stage) }));
  }
  draw();
})();
