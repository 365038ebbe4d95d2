// Source, reference and the answers of chosen points to one example, side by side, with the differences marked.
const reader = (function () {
  const root = document.getElementById("reader");
  const { at, rows } = points;
  let answers = null, picked = null;
  let drawn = null;

  // The texts are large: they are parsed when the section comes into sight, or is asked for.
  function load() {
    if (answers) return;
    answers = JSON.parse(document.getElementById("answers").textContent);
    if (answers.sets.length) build();
  }

  function set() {
    return answers.sets[Math.min(Number(state.get("set")) || 0, answers.sets.length - 1)];
  }

  function text(index) {
    return answers.texts[index];
  }

  function runOf(row) {
    return set().runs.findIndex((run) => run.row === row);
  }

  // At first one point a strategy and target: the smallest batch.
  function usual() {
    const seen = new Set();
    const order = set().runs.map((run, i) => i).sort((a, b) => batch(a) - batch(b));
    const chosen = order.filter((i) => {
      const key = `${name(i)}`;
      return seen.has(key) ? false : seen.add(key);
    });
    return chosen.sort((a, b) => a - b).slice(0, 12);
  }

  function batch(run) {
    return at.batch_size === undefined ? 0 : rows[set().runs[run].row][at.batch_size];
  }

  function name(run) {
    const row = rows[set().runs[run].row];
    const target = row[at.target_speedup];
    return `${row[at.approach] ?? row[at.strategy]}${target && row[at.strategy] !== "full" ? ` ${target}x` : ""}`;
  }

  function label(run) {
    const many = set().runs.filter((_, i) => name(i) === name(run)).length > 1;
    return many && batch(run) ? `${name(run)} · batch ${batch(run)}` : name(run);
  }

  function order() {
    const examples = set().examples.map((_, i) => i);
    const query = (state.get("find") || "").toLowerCase();
    const kept = examples.filter((i) => !query || [set().examples[i].source, set().examples[i].reference,
      ...picked.map((run) => set().runs[run].outputs[i])].some((one) => text(one).toLowerCase().includes(query)));
    if (state.get("order") !== "changed") return kept;
    const score = new Map(kept.map((i) => [i, Math.min(1, ...picked.map((run) => {
      const full = set().runs[run].baseline;
      return full === null ? 1 : diff.alike(text(set().runs[full].outputs[i]), text(set().runs[run].outputs[i]));
    }))]));
    return kept.sort((a, b) => score.get(a) - score.get(b) || a - b);
  }

  function build() {
    picked = state.has("runs") ? state.get("runs").split(",").map(Number).filter((run) => run in set().runs) : usual();
    drawn = { steer: make("div", { class: "steer" }), picks: make("div", { class: "picks", role: "group", "aria-label": "Points" }),
      body: make("div", {}) };
    root.replaceChildren(make("div", { class: "reader", tabindex: "-1", onkeydown: keys }, drawn.steer, drawn.picks, drawn.body));
    steer();
    picks();
    draw();
  }

  function keys(event) {
    if (["INPUT", "SELECT"].includes(event.target.tagName)) return;
    if (event.key === "ArrowRight" || event.key === "j") step(1);
    else if (event.key === "ArrowLeft" || event.key === "k") step(-1);
    else return;
    event.preventDefault();
  }

  function step(by) {
    const list = order();
    const here = list.indexOf(Number(state.get("ex")) || 0);
    keep("ex", list[(here + by + list.length) % list.length] ?? 0);
    draw();
  }

  function steer() {
    const sets = answers.sets.length > 1 ? [make("select", { "aria-label": "Data",
      onchange: (event) => { keep("set", event.target.value); keep("runs", null); keep("ex", null); build(); } },
      ...answers.sets.map((one, i) => make("option", { value: i, selected: one === set() }, one.label)))] : [];
    drawn.where = make("span", { class: "where", role: "status", "aria-live": "polite" });
    const search = make("input", { type: "search", placeholder: "Find in texts", "aria-label": "Find in texts",
      value: state.get("find") || "", oninput: (event) => settled(() => { keep("find", event.target.value); first(); }) });
    const sorted = make("select", { "aria-label": "Order", onchange: (event) => { keep("order", event.target.value); first(); } },
      make("option", { value: "" }, "in the task's order"),
      make("option", { value: "changed", selected: state.get("order") === "changed" }, "most changed first"));
    const missing = make("input", { type: "checkbox", onchange: (event) => { keep("missing", event.target.checked ? null : "0"); draw(); } });
    missing.checked = state.get("missing") !== "0";
    drawn.steer.replaceChildren(...sets,
      make("button", { type: "button", "aria-label": "Previous example", onclick: () => step(-1) }, "←"), drawn.where,
      make("button", { type: "button", "aria-label": "Next example", onclick: () => step(1) }, "→"), sorted, search,
      make("span", { class: "group", role: "group", "aria-label": "Differences against" }, base("reference"), base("full")),
      make("label", { class: "legend" }, missing, " show what is missing"),
      make("span", { class: "legend" }, make("ins", {}, "only here"), " ", make("del", {}, "missing here")));
  }

  function against() {
    return state.get("base") === "full" ? "full" : "reference";
  }

  function base(which) {
    const title = which === "full" ? "against full's answer" : "against the reference";
    return make("button", { type: "button", "aria-pressed": String(against() === which),
      onclick: () => { keep("base", which === "full" ? "full" : null); steer(); draw(); } }, title);
  }

  function first() {
    keep("ex", order()[0] ?? null);
    draw();
  }

  function picks() {
    drawn.picks.replaceChildren(...set().runs.map((run, i) => make("button", { type: "button", class: "chip",
      "aria-pressed": String(picked.includes(i)), onclick: () => {
        picked = picked.includes(i) ? picked.filter((one) => one !== i) : [...picked, i].sort((a, b) => a - b);
        keep("runs", picked.join(","));
        picks();
        draw();
      } }, dot(rows[run.row][at.strategy]), label(i))));
  }

  function draw() {
    const list = order();
    const i = list.includes(Number(state.get("ex"))) ? Number(state.get("ex")) : list[0];
    if (i === undefined) {
      drawn.where.textContent = "none";
      drawn.body.replaceChildren(make("p", { class: "note" }, "No example has these words."));
      return;
    }
    drawn.where.textContent = `${list.indexOf(i) + 1} of ${list.length}`;
    const example = set().examples[i];
    const given = make("div", { class: "given" },
      make("div", { class: "text" }, make("b", {}, `Source ${example.id}`), text(example.source)),
      make("div", { class: "text" }, make("b", {}, "Reference"), text(example.reference)));
    const cards = make("div", { class: `answers${state.get("missing") === "0" ? " hide-missing" : ""}` });
    for (const run of picked) cards.append(card(run, i, example));
    drawn.body.replaceChildren(given, cards);
  }

  function card(run, i, example) {
    const { row, outputs, flags, baseline } = set().runs[run];
    const own = text(outputs[i]);
    const full = baseline === null ? null : text(set().runs[baseline].outputs[i]);
    const to = against() === "full" ? full : text(example.reference);
    const body = make("div", { class: "body" });
    if (to === null) body.append(own);
    else for (const [kind, space, part] of diff.parts(to, own)) {
      if (kind === "=") body.append(space + part);
      else if (kind === "+") body.append(space, make("ins", {}, part));
      else body.append(make("del", {}, space + part));
    }
    if (!own) body.append(make("span", { class: "legend" }, "(empty)"));
    const notes = [`${(100 * diff.alike(text(example.reference), own)).toFixed(0)}% of words shared with the reference`];
    if (full !== null && run !== baseline) notes.push(own === full ? "the same as full" : `${(100 * diff.alike(full, own)).toFixed(0)}% with full`);
    const flag = (flags[i] || []).map((one) => make("span", { class: "tag bad" }, one.replace("_", " ")));
    const colour = data.colours[rows[row][at.strategy]];
    return make("article", { class: "answer", style: colour ? `--c:${colour}` : null },
      make("header", {}, make("b", {}, label(run)), make("span", {}, ...flag)), body,
      make("footer", {}, notes.join(" · ")));
  }

  // Shows one point's answers beside full's.
  function open(row) {
    load();
    const which = answers.sets.findIndex((one) => one.runs.some((run) => run.row === row));
    if (which < 0) return;
    keep("set", which || null);
    const run = runOf(row);
    const full = set().runs[run].baseline;
    keep("runs", [...new Set([full ?? run, run])].join(","));
    build();
    document.getElementById("examples").scrollIntoView();
    root.firstChild.focus({ preventScroll: true });
  }

  const asked = ["ex", "runs", "base", "find", "order", "set"].some((key) => state.has(key));
  if (asked || !("IntersectionObserver" in window)) load();
  else {
    const sight = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) { sight.disconnect(); load(); }
    }, { rootMargin: "400px" });
    sight.observe(root);
  }
  return { open };
})();
