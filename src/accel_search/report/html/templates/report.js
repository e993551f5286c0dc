"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const make = (name, attributes = {}, ...children) => {
    const svg = ["svg", "g", "path", "line", "rect", "text", "circle"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    // Text is only ever added as text: nothing in the data can become an element.
    node.append(...children);
    return node;
  };

  /* Light and dark: the system's choice until the button says otherwise. */
  const root = document.documentElement;
  const stored = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("accel-search-theme");
      localStorage.setItem("accel-search-theme", value);
    } catch { /* A browser that keeps nothing for files still shows the page. */ }
    return null;
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  $("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    stored(root.dataset.theme);
  });

  /* Copying works on a file's page too, where some browsers have no clipboard. */
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = $(button.dataset.copy).textContent;
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        const field = make("textarea");
        field.value = text;
        document.body.append(field);
        field.select();
        document.execCommand("copy");
        field.remove();
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  for (const radio of document.querySelectorAll('input[name="metric"]')) {
    radio.addEventListener("change", () => {
      $("maps").classList.toggle("loss", radio.value === "loss");
      $("maps").classList.toggle("speed", radio.value === "speed");
    });
  }

  const data = $("data") ? JSON.parse($("data").textContent) : null;

  /* Shapes tell the verdicts apart as well as colours do. */
  const SHAPES = {
    pass: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
    open: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
    fail: (r) => `M${-r},${-r}L${r},${r}M${-r},${r}L${r},${-r}`,
    win: (r) => {
      const points = [...Array(10).keys()].map((i) => {
        const [size, turn] = [i % 2 ? r * 0.75 : r * 1.8, (i * Math.PI) / 5];
        return `${(size * Math.sin(turn)).toFixed(2)},${(-size * Math.cos(turn)).toFixed(2)}`;
      });
      return `M${points.join("L")}Z`;
    },
    rival: (r) => `M0,${-r * 1.3}L${r * 1.2},${r}L${-r * 1.2},${r}Z`,
  };
  const shapeOf = (state) => ({ pass: "pass", fail: "fail", dropped: "fail", win: "win", rival: "rival" })[state] || "open";
  const isFilled = (state) => ["pass", "win", "rival"].includes(state);
  const mark = (state, r = 4.5) => make("path", {
    class: `mark k-${state}`, d: SHAPES[shapeOf(state)](r), stroke: "currentColor",
    fill: isFilled(state) ? "currentColor" : "none", "fill-opacity": state === "pass" ? ".55" : "1",
  });
  const icon = (state) => {
    const svg = make("svg", { width: 14, height: 14, viewBox: "-8 -8 16 16", "aria-hidden": "true" });
    svg.append(mark(state));
    return svg;
  };
  const number = (value, places) => (value === null || value === undefined ? "–" : value.toFixed(places).replace(/^-(0\.?0*)$/, "$1"));
  const percent = (value) => number(100 * value, 1);

  /* One sortable table, filled from data. */
  class Table {
    constructor(table, rows, { key, direction, page, valueOf, draw, onShow }) {
      Object.assign(this, { table, rows, key, direction, page, valueOf, draw, onShow, shown: page });
      this.passes = () => true;
      for (const head of table.tHead.querySelectorAll("th")) {
        head.querySelector("button").addEventListener("click", () => this.sort(head.dataset.key));
      }
      this.show();
    }
    sort(key) {
      const numeric = this.table.querySelector(`th[data-key="${key}"]`).classList.contains("num");
      const first = numeric && key !== "l" && key !== "sec" ? -1 : 1;
      this.direction = this.key === key ? -this.direction : first;
      this.key = key;
      this.show();
    }
    show() {
      for (const head of this.table.tHead.querySelectorAll("th")) {
        if (head.dataset.key === this.key) head.setAttribute("aria-sort", this.direction > 0 ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      }
      const order = new Intl.Collator(undefined, { numeric: true });
      this.found = this.rows.filter(this.passes).sort((a, b) => {
        const [x, y] = [this.valueOf(a, this.key), this.valueOf(b, this.key)];
        // What was not measured comes last, whichever way it is sorted.
        if (x === null || y === null) return (x === null) - (y === null);
        return this.direction * (typeof x === "string" ? order.compare(x, y) : x - y);
      });
      const body = make("tbody");
      for (const row of this.found.slice(0, this.shown)) body.append(this.draw(row));
      this.table.tBodies[0].replaceWith(body);
      this.onShow?.(this);
    }
    more() { this.shown += 200; this.show(); }
  }

  if (data?.rows) search(data);
  if ($("configurations")) sweep();
  if ($("pictures")) pictures();

  function search({ rows, rivals, bound, states }) {
    rows.forEach((row, index) => { row.id = index; row.text = [row.c, ...row.full, states[row.st]].join(" ").toLowerCase(); });
    let chosen = null;
    let drawn = null;
    const stateOf = (row) => (row.win ? "win" : row.st);

    const interval = (three, scale, places) =>
      three && three[1] !== null ? `${number(scale * three[1], places)} to ${number(scale * three[2], places)}` : "unknown";
    const withInterval = (three, scale, places, unit) => {
      if (!three) return "–";
      return `${number(scale * three[0], places)}${unit} [${interval(three, scale, places)}]`;
    };
    const say = (row) => [row.c, row.s && `speedup ${withInterval(row.s, 1, 2, "")}`, row.l && `loss ${withInterval(row.l, 100, 1, " %")}`, states[row.st] || ""].filter(Boolean);

    function choose(row, fromChart) {
      chosen = row;
      const facts = [
        ["Speedup", withInterval(row.s, 1, 2, " ×")], ["Loss of score", withInterval(row.l, 100, 1, " %")],
        ["Worst tenth of prompts", row.tail == null ? "–" : `${number(100 * row.tail, 1)} %`],
        ["Verdict", states[row.st] || "rival"], ["Prompts scored", row.n || "–"], ["Seconds an image", number(row.sec, 4)],
        ["PSNR", row.psnr === null ? "–" : `${number(row.psnr, 1)} dB`], ["SSIM", number(row.ssim, 3)],
        ["Peak memory", row.mem ? `${number(row.mem / 2 ** 30, 2)} GiB` : "–"], ["Seconds to measure", number(row.spent, 1)],
      ].filter(([, value]) => value !== "–");
      const list = make("dl", { class: "facts" });
      for (const [name, value] of facts) list.append(make("div", {}, make("dt", {}, name), make("dd", {}, String(value))));
      const title = make("p", {}, make("strong", {}, row.full.join(" + ") || row.c));
      if (row.win) title.append(" ", make("span", { class: "star" }, "★ the winner"));
      $("detail").replaceChildren(title, ...(row.why ? [make("p", { class: "message" }, row.why)] : []), list);
      if (!fromChart) $("detail").scrollIntoView({ block: "nearest" });
      table.show();
      ring();
    }

    /* The chart. */
    const chart = $("chart");
    const tip = make("div", { class: "tip", hidden: "" });
    const points = [
      ...rows.filter((row) => row.s && row.l),
      ...rivals.map((each) => ({ ...each, c: `${each.steps} steps`, full: [`${each.steps} steps, nothing applied`], st: "rival", psnr: null, ssim: null, sec: null, rival: true })),
    ].sort((a, b) => a.l[0] - b.l[0] || a.s[0] - b.s[0]);
    let places = [];

    function quantile(sorted, share) { return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]; }
    function ticks(low, high, count) {
      const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
      const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw);
      const found = [];
      for (let at = Math.ceil(low / step) * step; at <= high + 1e-9; at += step) found.push(Math.abs(at) < step / 1e6 ? 0 : at);
      return { found, decimals: Math.max(0, Math.min(4, Math.ceil(-Math.log10(step) + (step / power === 2.5 ? 1 : 0)))) };
    }

    function draw() {
      const [width, height] = [chart.clientWidth, chart.clientHeight];
      if (!width) return;
      const narrow = width < 520;
      const edge = { left: narrow ? 44 : 56, right: 18, top: 20, bottom: 48 };
      const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
      const small = points.length <= 16;
      const losses = points.map((each) => 100 * each.l[0]).sort((a, b) => a - b);
      const limit = 100 * bound;
      const ends = small ? points.flatMap((each) => [each.s[1] ?? each.s[0], each.s[2] ?? each.s[0]]) : points.map((each) => each.s[0]);
      let [left, right] = [Math.min(0, losses[0] ?? 0), Math.max(limit * 1.5, losses.at(-1) ?? 0)];
      // A few that lose everything would press all others together: they stand at the edge.
      if (losses.length > 8) right = Math.min(right, Math.max(limit * 4, 1.3 * quantile(losses, 0.8)));
      const room = (right - left || 1) * 0.06;
      [left, right] = [left - room, right + room];
      let [low, high] = [Math.min(1, ...ends), Math.max(1.05, ...ends)];
      const pad = (high - low) * 0.06;
      [low, high] = [Math.max(0, low - pad), high + pad];
      const x = (loss) => edge.left + ((Math.min(loss, right) - left) / (right - left)) * (width - edge.left - edge.right);
      const y = (speed) => height - edge.bottom - ((speed - low) / (high - low)) * (height - edge.top - edge.bottom);
      const bottom = height - edge.bottom;

      const acrossTicks = ticks(left, right, narrow ? 4 : 8), upTicks = ticks(low, high, narrow ? 5 : 6);
      for (const at of acrossTicks.found) {
        svg.append(make("line", { class: "tick", x1: x(at), x2: x(at), y1: edge.top, y2: bottom }),
          make("text", { x: x(at), y: bottom + 18, "text-anchor": "middle" }, at.toFixed(acrossTicks.decimals)));
      }
      for (const at of upTicks.found) {
        svg.append(make("line", { class: "tick", x1: edge.left, x2: width - edge.right, y1: y(at), y2: y(at) }),
          make("text", { x: edge.left - 8, y: y(at) + 4, "text-anchor": "end" }, `${at.toFixed(Math.max(1, upTicks.decimals))}×`));
      }
      svg.append(make("rect", { class: "beyond", x: x(limit), y: edge.top, width: Math.max(0, width - edge.right - x(limit)), height: bottom - edge.top }));
      svg.append(make("line", { class: "bound", x1: x(limit), x2: x(limit), y1: edge.top, y2: bottom }));
      if (low < 1) svg.append(make("line", { class: "unit", x1: edge.left, x2: width - edge.right, y1: y(1), y2: y(1) }));
      svg.append(make("text", { class: "strong", x: (edge.left + width - edge.right) / 2, y: height - 10, "text-anchor": "middle" }, "Loss of CLIP score, %  (left is better)"),
        make("text", { class: "strong", x: edge.left - (narrow ? 36 : 44), y: 13 }, "Speedup"));
      const roomRight = width - edge.right - x(limit) > 110;
      svg.append(make("text", { x: x(limit) + (roomRight ? 6 : -6), y: bottom - 8, "text-anchor": roomRight ? "start" : "end" }, `bound ${+limit.toFixed(2)} %`));

      const front = points.filter((each) => each.front).sort((a, b) => a.l[0] - b.l[0]);
      if (front.length > 1) {
        let path = `M${x(100 * front[0].l[0])},${y(front[0].s[0])}`;
        for (const each of front.slice(1)) path += `H${x(100 * each.l[0])}V${y(each.s[0])}`;
        svg.append(make("path", { class: "front", d: path }));
      }
      places = points.map((row) => ({ row, x: x(100 * row.l[0]), y: y(row.s[0]) }));
      // The winner and the rivals lie on top.
      const rank = (row) => (row.win ? 2 : row.rival ? 1 : 0);
      for (const place of [...places].sort((a, b) => rank(a.row) - rank(b.row))) {
        const { row } = place;
        const group = make("g", { transform: `translate(${place.x},${place.y})`, class: `k-${stateOf(row)}`, "data-id": row.id ?? `steps-${row.steps}` });
        place.errors = () => {
          const within = (at, least, most) => Math.max(least, Math.min(most, at));
          const up = (speed) => within(y(speed), edge.top, bottom) - place.y;
          const along = (loss) => within(x(100 * loss), edge.left, width - edge.right) - place.x;
          const lines = [];  // None along an axis on which the interval is unknown.
          if (row.s[1] !== null) lines.push(make("line", { class: "error", x1: 0, x2: 0, y1: up(row.s[1]), y2: up(row.s[2]) }));
          if (row.l[1] !== null) lines.push(make("line", { class: "error", x1: along(row.l[1]), x2: along(row.l[2]), y1: 0, y2: 0 }));
          return lines;
        };
        if (small || row.win || row.rival) group.append(...place.errors());
        const dot = mark(stateOf(row), points.length > 300 && !row.win && !row.rival ? 3 : 4.5);
        group.append(dot);
        if (row.rival) {
          const left = place.x > edge.left + 62;
          group.append(make("text", { x: left ? -9 : 9, y: 15, "text-anchor": left ? "end" : "start" }, row.c));
        }
        place.node = group;
        svg.append(group);
      }
      const beyond = places.filter(({ row }) => 100 * row.l[0] > right).length;
      if (beyond) svg.append(make("text", { x: width - edge.right - 4, y: edge.top + 12, "text-anchor": "end" }, `${beyond} lose more: at the edge ▸`));
      drawn = svg;
      chart.replaceChildren(svg, tip);
      dim();
      ring();
    }
    function dim() {
      const shown = new Set(table ? table.found : rows);
      for (const { row, node } of places) node.classList.toggle("dim", !row.rival && !shown.has(row));
    }
    function ring() {
      drawn?.querySelector(".ring")?.remove();
      const place = places.find((each) => each.row === chosen);
      if (!place) return;
      const ring = make("g", { class: "ring", transform: `translate(${place.x},${place.y})` }, make("circle", { r: 10 }), ...place.errors());
      drawn.append(ring);
    }
    function hint(place) {
      tip.hidden = !place;
      if (!place) return;
      tip.replaceChildren(...say(place.row).flatMap((line, index) => (index ? [make("br"), line] : [make("strong", {}, line)])));
      const flip = place.x > chart.clientWidth / 2;
      tip.style.left = flip ? "auto" : `${place.x + 14}px`;
      tip.style.right = flip ? `${chart.clientWidth - place.x + 14}px` : "auto";
      tip.style.top = `${Math.max(4, Math.min(place.y - 20, chart.clientHeight - 110))}px`;
    }
    function nearest(event) {
      const box = chart.getBoundingClientRect();
      let [best, least] = [null, 26 ** 2];
      for (const place of places) {
        const away = (place.x - event.clientX + box.left) ** 2 + (place.y - event.clientY + box.top) ** 2;
        if (away < least && !place.node.classList.contains("dim")) [best, least] = [place, away];
      }
      return best;
    }
    chart.addEventListener("pointermove", (event) => hint(nearest(event)));
    chart.addEventListener("pointerleave", () => hint(null));
    chart.addEventListener("click", (event) => { const place = nearest(event); if (place) choose(place.row, true); });
    chart.addEventListener("keydown", (event) => {
      const open = places.filter((place) => !place.node.classList.contains("dim"));
      const at = open.findIndex((place) => place.row === chosen);
      const next = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: open.length - 1 }[event.key];
      if (event.key === "Escape") hint(null);
      if (event.key === "Enter" && chosen) $("detail").scrollIntoView({ block: "nearest" });
      if (next === undefined || !open.length) return;
      event.preventDefault();
      const place = open[Math.max(0, Math.min(open.length - 1, next))];
      choose(place.row, true);
      hint(place);
    });

    /* The table. */
    const value = (row, key) => {
      if (key === "s" || key === "l") return row[key] ? row[key][0] : null;
      if (key === "st") return states[row.st];
      return row[key] ?? null;
    };
    let table = null;
    const cell = (three, scale, places) => {
      const found = make("td", { class: "num" }, three ? number(scale * three[0], places) : "–");
      if (three) found.append(make("span", { class: "ends" }, interval(three, scale, places)));
      return found;
    };
    table = new Table($("table"), rows, {
      key: "s", direction: -1, page: 25, valueOf: value,
      draw: (row) => {
        const link = make("button", { type: "button", class: "link" }, row.c.replaceAll(", ", ",\u00a0"));
        link.addEventListener("click", () => choose(row, false));
        const head = make("th", { scope: "row" }, link);
        if (row.win) head.append(" ", make("span", { class: "star" }, "★ winner"));
        const badge = make("span", { class: "badge", title: row.why || "" }, icon(row.st), make("span", { class: "word" }, row.st));
        const line = make("tr", {}, head, cell(row.s, 1, 2), cell(row.l, 100, 1), make("td", {}, badge),
          make("td", { class: "num wide" }, String(row.n || "–")), make("td", { class: "num wide" }, number(row.sec, 4)),
          make("td", { class: "num wide" }, number(row.psnr, 1)), make("td", { class: "num wide" }, number(row.ssim, 3)));
        if (row === chosen) line.classList.add("chosen");
        return line;
      },
      onShow: (each) => {
        const shown = Math.min(each.shown, each.found.length);
        $("count").textContent = `${shown.toLocaleString("en")} of ${each.found.length.toLocaleString("en")}` +
          (each.found.length < rows.length ? `, ${rows.length.toLocaleString("en")} in all` : "");
        $("more").hidden = shown === each.found.length;
      },
    });
    $("more").addEventListener("click", () => table.more());
    function filter() {
      const squeeze = (text) => text.toLowerCase().replace(/\s*=\s*/g, " = ");
      const words = squeeze($("find").value).split(/,?\s+(?!=)(?<!= )/).filter(Boolean);
      const state = $("state").value;
      // Whole values: "cache_interval = 1" is not also 10.
      const has = (row, word) => {
        const at = row.text.indexOf(word);
        return at >= 0 && (!/= \S+$/.test(word) || !/[\d.]/.test(row.text[at + word.length] ?? ""));
      };
      table.passes = (row) => words.every((word) => has(row, word)) && (!state || row.st === state) && (!$("only-front").checked || row.front);
      table.shown = table.page;
      table.show();
      dim();
    }
    $("filters").addEventListener("input", filter);
    $("filters").addEventListener("submit", (event) => event.preventDefault());

    for (const [state, said] of [["win", "winner"], ["pass", "within the bound"], ["open", "open or inconclusive"], ["fail", "beyond the bound, given up"], ["rival", "fewer steps"]]) {
      const present = { win: points.some((p) => p.win), rival: rivals.length, pass: 1, open: points.some((p) => ["open", "inconclusive"].includes(p.st)), fail: points.some((p) => ["fail", "dropped"].includes(p.st)) }[state];
      if (present) $("legend").append(make("span", {}, icon(state), said));
    }
    draw();
    new ResizeObserver(draw).observe(chart);
  }

  function pictures() {
    const shots = [...document.querySelectorAll(".shot")];
    const dialog = $("light"), stage = $("light-stage");
    let at = 0;
    $("differences").addEventListener("change", (event) => $("pictures").classList.toggle("differ", event.target.checked));
    const columns = shots.filter((shot) => shot.dataset.row === "0").length;
    function show(index) {
      at = (index + shots.length) % shots.length;
      const shot = shots[at], under = shot.querySelector(".under"), over = shot.querySelector(".over");
      stage.querySelector(".over").src = over.src;
      stage.querySelector(".over").alt = over.alt;
      const below = stage.querySelector(".under");
      if (under) below.src = under.src; else below.removeAttribute("src");
      $("light-title").textContent = over.alt;
      $("light-difference").disabled = !under;
      differ(shot.classList.contains("difference") || stage.classList.contains("wanted"));
    }
    function differ(wanted) {
      stage.classList.toggle("wanted", wanted);
      stage.classList.toggle("differ", wanted && !$("light-difference").disabled);
      $("light-difference").setAttribute("aria-pressed", String(wanted));
    }
    shots.forEach((shot, index) => shot.addEventListener("click", () => {
      stage.classList.toggle("wanted", $("differences").checked);
      show(index);
      dialog.showModal();
    }));
    $("light-difference").addEventListener("click", () => differ(!stage.classList.contains("wanted")));
    $("light-next").addEventListener("click", () => show(at + 1));
    $("light-previous").addEventListener("click", () => show(at - 1));
    $("light-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
      if (step) { event.preventDefault(); show(at + step); }
      if (event.key.toLowerCase() === "d") differ(!stage.classList.contains("wanted"));
    });
    dialog.addEventListener("close", () => shots[at].focus());
  }

  /* A sweep's table is in the page; its rows are sorted and filtered in place. */
  function sweep() {
    const table = $("configurations");
    const lines = [...table.tBodies[0].rows];
    const rows = lines.map((line) => ({
      line, text: line.textContent.toLowerCase(), kind: line.dataset.kind,
      values: Object.fromEntries([...line.cells].map((cell) => [cell.dataset.key, cell.dataset.value])),
    }));
    const list = new Table(table, rows, {
      key: "model", direction: 1, page: rows.length,
      valueOf: (row, key) => {
        const text = row.values[key];
        if (text === undefined || text === "") return null;
        return Number.isNaN(Number(text)) ? text : Number(text);
      },
      draw: (row) => row.line,
      onShow: (each) => { $("count").textContent = `${each.found.length} of ${rows.length}`; },
    });
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("filters").addEventListener("input", () => {
      const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
      const kind = $("state").value;
      list.passes = (row) => words.every((word) => row.text.includes(word)) && (!kind || row.kind === kind);
      list.show();
    });
  }
})();
