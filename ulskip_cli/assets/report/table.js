// The table of points: sorted by any column, filtered by text, by facets and by the gate.
const points = (function () {
  const STEP = 100, MOST_CHIPS = 12;
  const { columns, rows } = data;
  const at = Object.fromEntries(columns.map((column, i) => [column.key, i]));
  const table = document.getElementById("table");
  const facets = columns
    .map((column, i) => ({ ...column, i, values: column.facet ? distinct(i) : [] }))
    .filter((column) => column.values.length > 1);
  const words = rows.map((row) => columns.map((column, i) => shown(row[i], column)).join(" ").toLowerCase());
  let limit = STEP;

  function distinct(i) {
    const values = [...new Set(rows.map((row) => row[i]))].filter((value) => value !== null);
    return values.sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b))));
  }

  function shown(value, column) {
    if (value === null) return "";
    if (column.kind === "strip") return data.strips[value].kept.join(" ");
    const first = Array.isArray(value) ? value[0] : value;
    return typeof first === "number" ? number(first, column) : String(first);
  }

  function number(value, column) {
    if (column.kind === "share") return `${(100 * value).toFixed(1)}%`;
    return value.toFixed(column.digits ?? 2).replace(column.trim ? /\.?0+$/ : /$^/, "");
  }

  function order(value) {
    return Array.isArray(value) ? value[0] : value;
  }

  function chosen(facet) {
    return state.has(facet.key) ? state.get(facet.key).split("|") : [];
  }

  function visible() {
    const query = (state.get("q") || "").toLowerCase().split(/\s+/).filter(Boolean);
    const picks = facets.map((facet) => [facet.i, chosen(facet)]).filter(([, values]) => values.length);
    const found = [];
    rows.forEach((row, i) => {
      if (state.get("gate") && !String(row[at.gate]).startsWith("passes") && row[at.strategy] !== "full") return;
      if (picks.some(([column, values]) => !values.includes(String(row[column])))) return;
      if (query.some((word) => !words[i].includes(word))) return;
      found.push(i);
    });
    const sort = state.get("sort") || "";
    const key = sort.replace(/^-/, "");
    if (key in at) {
      const sign = sort.startsWith("-") ? -1 : 1;
      const value = (i) => order(rows[i][at[key]]);
      found.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
      });
    }
    return found;
  }

  function cell(value, column, row, i) {
    const kind = column.kind;
    const td = make("td", { class: kind === "text" || kind === "strip" ? "word" : kind === "read" ? "last" : null });
    if (kind === "read") {
      if (value) td.append(make("button", { type: "button", class: "read", onclick: () => reader.open(i) }, "read"));
    } else if (value === null) td.append(column.measured && row[at.absent] ? row[at.absent] : "–");
    else if (column.key === "strategy") td.append(dot(value), row[at.approach] ?? value);
    else if (kind === "strip") td.append(strip(data.strips[value], row[at.strategy]));
    else if (kind === "gate") td.append(gate(value));
    else if (kind === "share") {
      const meter = make("span", { class: `meter${value[0] < data.gate ? " bad" : ""}`, "aria-hidden": "true" });
      meter.append(make("i", { style: `width:${Math.min(100, 100 * value[0])}%` }));
      td.append(meter, make("span", { class: "pct" }, shown(value, column)));
      if (value[1] !== null) td.title = `95% interval ${number(value[1], column)} to ${number(value[2], column)}`;
    } else if (kind === "interval") {
      td.append(shown(value, column));
      if (value[1] !== null)
        td.append(make("span", { class: "ends" }, `${number(value[1], column)}–${number(value[2], column)}`));
    } else if (kind === "score") td.append(shown(value, column), make("span", { class: value[1] ? "star" : "star none" }, "*"));
    else td.append(shown(value, column));
    return td;
  }

  function gate(word) {
    const kind = word.endsWith("?") ? "tie" : word === "passes" ? "good" : "bad";
    return make("span", { class: `tag ${kind}` }, word);
  }

  function strip(schedule, strategy) {
    const colour = data.colours[strategy] || "var(--soft)";
    const stops = [];
    for (let layer = 0; layer < schedule.n; layer++) {
      const [from, to] = [layer / schedule.n, (layer + 1) / schedule.n].map((share) => `${(100 * share).toFixed(2)}%`);
      const kept = schedule.kept.includes(layer);
      const fill = !kept
        ? "var(--wash)"
        : schedule.last.includes(layer) ? colour : `color-mix(in srgb, ${colour} 45%, var(--wash))`;
      stops.push(`${fill} ${from} calc(${to} - 1px)`, `var(--card) calc(${to} - 1px) ${to}`);
    }
    const style = `--n:${schedule.n};background:linear-gradient(90deg,${stops.join(",")})`;
    const label = `${schedule.kept.length} of ${schedule.n} layers: ${schedule.kept.join(", ")}`;
    return make("span", { class: "strip", style, role: "img", "aria-label": label, title: label });
  }

  function head() {
    const sort = state.get("sort") || "";
    const cells = columns.filter((column) => !column.hidden).map((column) => {
      const mine = sort.replace(/^-/, "") === column.key;
      const direction = !mine ? "none" : sort.startsWith("-") ? "descending" : "ascending";
      const word = column.kind === "text" || column.kind === "strip";
      const th = make("th", { scope: "col", class: word ? "word" : column.kind === "read" ? "last" : null });
      if (column.kind === "read") th.append(make("span", {}, column.title));
      else {
        th.setAttribute("aria-sort", direction);
        th.append(make("button", { type: "button", title: column.tip, onclick: () => sortBy(column) }, column.title));
      }
      return th;
    });
    return make("thead", {}, make("tr", {}, ...cells));
  }

  function sortBy(column) {
    const sort = state.get("sort");
    const first = column.kind === "text" ? column.key : `-${column.key}`;
    const second = column.kind === "text" ? `-${column.key}` : column.key;
    keep("sort", sort === first ? second : sort === second ? null : first);
    draw();
    document.querySelectorAll("#table th button").forEach((button) => {
      if (button.textContent === column.title) button.focus();
    });
  }

  function draw() {
    const found = visible();
    const body = make("tbody", {});
    for (const i of found.slice(0, limit)) {
      const tr = make("tr", {});
      columns.forEach((column, c) => column.hidden || tr.append(cell(rows[i][c], column, rows[i], i)));
      body.append(tr);
    }
    table.replaceChildren(head(), body);
    const count = document.getElementById("count");
    count.textContent = found.length === rows.length ? `${rows.length} points` : `${found.length} of ${rows.length} points`;
    const more = document.getElementById("more");
    more.hidden = found.length <= limit;
    more.textContent = `Show ${Math.min(STEP, found.length - limit)} more of ${found.length - limit}`;
  }

  function filters() {
    const bar = document.getElementById("filters");
    const search = make("input", {
      type: "search", placeholder: "Filter by any word", "aria-label": "Filter by any word", value: state.get("q") || "",
      oninput: (event) => settled(() => again("q", event.target.value)),
    });
    bar.append(search, ...facets.map((facet) => (facet.values.length <= MOST_CHIPS ? chips(facet) : select(facet))));
    if (at.gate !== undefined) {
      const label = `passes the gate (${(100 * data.gate).toFixed(0)}% of full)`;
      bar.append(make("span", { class: "facet" }, chip(label, () => Boolean(state.get("gate")),
        () => again("gate", state.get("gate") ? null : "pass"))));
    }
    bar.append(make("button", { type: "button", class: "chip", onclick: () => {
      [...facets.map((facet) => facet.key), "q", "gate", "sort"].forEach((key) => keep(key, null));
      search.value = "";
      bar.dispatchEvent(new Event("refresh"));
      again("q", null);
    } }, "Reset"));
  }

  function again(key, value) {
    keep(key, value);
    limit = STEP;
    draw();
  }

  function chip(label, pressed, toggle, strategy) {
    const button = make("button", { type: "button", class: "chip", "aria-pressed": String(pressed()) },
      strategy ? dot(strategy) : null, label);
    const refresh = () => button.setAttribute("aria-pressed", String(pressed()));
    button.addEventListener("click", () => { toggle(); refresh(); });
    document.getElementById("filters").addEventListener("refresh", refresh);
    return button;
  }

  function chips(facet) {
    const group = make("span", { class: "facet", role: "group", "aria-label": facet.title }, make("span", {}, facet.title));
    for (const value of facet.values) {
      const name = String(value);
      const toggle = () => {
        const now = chosen(facet);
        const next = now.includes(name) ? now.filter((one) => one !== name) : [...now, name];
        again(facet.key, next.join("|"));
      };
      const label = facet.key === "target_speedup" ? `${name}x` : name;
      group.append(chip(label, () => chosen(facet).includes(name), toggle, facet.key === "strategy" ? name : null));
    }
    return group;
  }

  function select(facet) {
    const options = facet.values.map((value) =>
      make("option", { value: String(value), selected: chosen(facet).includes(String(value)) }, String(value)));
    const field = make("select", { "aria-label": facet.title, onchange: (event) => again(facet.key, event.target.value) },
      make("option", { value: "" }, "all"), ...options);
    document.getElementById("filters").addEventListener("refresh", () => { field.value = ""; });
    return make("span", { class: "facet" }, make("span", {}, facet.title), field);
  }

  document.getElementById("more").addEventListener("click", () => { limit += STEP; draw(); });
  filters();
  draw();
  return { at, rows };
})();
