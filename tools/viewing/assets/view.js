// The page of `hjgc view`. What it shows is data that somebody else may have written: it becomes text, never markup.
"use strict";

const all = JSON.parse(document.getElementById("data").textContent);
const ROW = 28;
const VIEWS = [
  ["overview", "Overview"],
  ["graph", "Graph"],
  ["why", "Why dynamic"],
  ["memory", "Memory"],
  ["templates", "Templates"],
];
if (all.diff) VIEWS.push(["compare", "Compare"]);
if (all.measured.length || all.timed.length || all.report) VIEWS.push(["measured", "Measured"]);

// Where the reader is; the address bar holds it, so that a place can be sent to somebody.
const place = { view: "overview", plan: 0, phase: "", schedule: "default", segment: null, launch: null, search: "" };
const opened = new Set();

const plan = () => all.plans[place.plan];
const phase = () => plan().phases.find((one) => one.name === place.phase) || plan().phases[0];
const schedule = () => {
  const known = phase().schedules;
  return known.find((one) => one.name === place.schedule) || known[0];
};

// Elements.

function el(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) made.append(child);
  return made;
}

const bytes = (count) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; count >= 1024 && i < units.length - 1; i += 1) count /= 1024;
  return `${i && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[i]}`;
};
const count = (number) => {
  const units = ["", "k", "M", "G", "T", "P"];
  let i = 0;
  for (; number >= 1000 && i < units.length - 1; i += 1) number /= 1000;
  return `${i && number < 100 ? number.toFixed(1) : Math.round(number)}${units[i]}`;
};
const micros = (us) => (us === null || us === undefined ? "–" : us >= 1000 ? `${(us / 1000).toFixed(2)} ms` : `${us.toFixed(1)} µs`);
const rounded = (value) => (typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(6))) : String(value));
const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");
const shape = (axes) => `[${axes.join(", ")}]`;

function table(titles, rows, right = []) {
  const cell = (tag, value, i) => el(tag, { class: right.includes(i) ? "right" : "" }, value === null ? "–" : value);
  return el(
    "div",
    { class: "wide" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, titles.map((title, i) => cell("th", title, i)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((value, i) => cell("td", value, i))))),
    ),
  );
}

const section = (title, ...children) => el("section", {}, el("h2", {}, title), ...children);
const pairs = (entries) => el("dl", {}, entries.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));

// Of what is taller than a row, the first: a browser lays out thousands of elements at once, not a hundred thousand.
const MOST = 100;
const first = (entries, draw, rest) => [
  ...entries.slice(0, MOST).map(draw),
  ...(entries.length > MOST ? [el("p", { class: "note" }, `and ${entries.length - MOST} more ${rest}`)] : []),
];

// A list of any length, of which only the visible rows exist.
class Rows {
  constructor(label, draw, activate) {
    this.draw = draw;
    this.activate = activate;
    this.rows = [];
    this.current = -1;
    this.room = el("div", { class: "room" });
    this.box = el("div", { class: "list", tabindex: "0", role: "listbox", "aria-label": label }, this.room);
    this.box.addEventListener("scroll", () => this.later());
    this.box.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.later()).observe(this.box);
  }

  show(rows) {
    this.rows = rows;
    this.room.style.height = `${rows.length * ROW}px`;
    this.render();
  }

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.render();
    });
  }

  render() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 8);
    const last = Math.min(this.rows.length, first + Math.ceil((this.box.clientHeight || 600) / ROW) + 16);
    const made = [];
    for (let i = first; i < last; i += 1) {
      const row = this.draw(this.rows[i], i);
      row.classList.add("row");
      row.id = `row-${i}`;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(i === this.current));
      row.style.top = `${i * ROW}px`;
      row.addEventListener("click", () => this.choose(i, true));
      made.push(row);
    }
    this.room.replaceChildren(...made);
    if (this.current >= 0) this.box.setAttribute("aria-activedescendant", `row-${this.current}`);
  }

  choose(i, act = false) {
    if (i < 0 || i >= this.rows.length) return;
    this.current = i;
    const top = i * ROW;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + ROW > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + ROW - this.box.clientHeight;
    this.activate(this.rows[i], act);
    this.render();
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, j: 1, k: -1 };
    if (event.key in steps) {
      this.choose(Math.min(this.rows.length - 1, Math.max(0, this.current + steps[event.key])));
    } else if (event.key === "Home") this.choose(0);
    else if (event.key === "End") this.choose(this.rows.length - 1);
    else if (["Enter", " ", "ArrowRight", "ArrowLeft"].includes(event.key)) this.choose(this.current, true);
    else return;
    event.preventDefault();
  }
}

// What a launch is.

const operandEntry = (of, one, [, , space, index]) => {
  const name = of.spaces[space];
  if (name === "parameters") return ["parameters", "", [], 0];
  return name === "buffer" || name === "value" ? one[`${name}s`][index] : of[`${name}s`][index];
};

function templateNames(of, one, launch) {
  const names = new Set();
  for (const [, calls] of one.kernels[launch[3]]) {
    if (typeof calls === "string") names.add(calls);
    else for (const [, variant] of calls) names.add(of.templates[of.variants[variant].template].name);
  }
  return [...names];
}

const mainTemplate = (of, one, launch) => {
  const [, calls] = one.kernels[launch[3]][0];
  return typeof calls === "string" ? calls : of.templates[of.variants[calls[0][1]].template].name;
};

function expand(runs) {
  const numbers = [];
  for (const [first, last] of runs) for (let i = first; i <= last; i += 1) numbers.push(i);
  return numbers;
}

const haystacks = new WeakMap();
function haystack(of, one) {
  if (!haystacks.has(one)) {
    const words = one.kernels.map((_, i) => templateNames(of, one, [0, 0, 0, i]).join("\n"));
    haystacks.set(
      one,
      one.launches.map((launch) =>
        [
          launch[0],
          launch[1],
          words[launch[3]],
          ...launch[2].map((operand) => operandEntry(of, one, operand)[0]),
          ...launch[8].map((node) => one.nodes[node]),
        ]
          .join("\n")
          .toLowerCase(),
      ),
    );
  }
  return haystacks.get(one);
}

// The graph: segments, in them layers that are alike as one row, in them launches.

function graphRows() {
  const one = phase();
  const wanted = place.search.toLowerCase();
  if (wanted) {
    const found = [];
    const words = haystack(plan(), one);
    for (const number of verdictOf().keys()) if (words[number].includes(wanted)) found.push({ kind: "launch", number, depth: 0 });
    return found;
  }
  const rows = [];
  const starts = new Map(one.folds.map((fold) => [fold[0], fold]));
  schedule().segments.forEach((segment, index) => {
    rows.push({ kind: "segment", segment, index });
    for (const [first, last] of segment.launches) {
      for (let i = first; i <= last; i += 1) {
        const fold = starts.get(i);
        if (fold && i + fold[1] * fold[2] - 1 <= last) {
          pushFold(rows, fold);
          i += fold[1] * fold[2] - 1;
        } else rows.push({ kind: "launch", number: i, depth: 1 });
      }
    }
  });
  return rows;
}

function pushFold(rows, [first, length, times]) {
  const key = `${place.plan}/${phase().name}/${first}`;
  rows.push({ kind: "fold", first, length, times, key });
  if (!opened.has(key)) return;
  for (let layer = 0; layer < times; layer += 1) {
    const begin = first + layer * length;
    const inner = `${key}/${layer}`;
    rows.push({ kind: "layer", first: begin, length, key: inner });
    if (opened.has(inner)) for (let i = 0; i < length; i += 1) rows.push({ kind: "launch", number: begin + i, depth: 3 });
  }
}

const verdicts = new WeakMap();
function verdictOf() {
  const of = schedule();
  if (!verdicts.has(of)) {
    const found = new Map();
    for (const [index, segment] of of.segments.entries())
      for (const number of expand(segment.launches)) found.set(number, [segment.verdict, index]);
    verdicts.set(of, found);
  }
  return verdicts.get(of);
}

const total = (first, length) => {
  let us = 0;
  let moved = 0;
  for (let i = first; i < first + length; i += 1) {
    us += phase().launches[i][7] || 0;
    moved += phase().launches[i][6];
  }
  return [plan().prediction.chip ? us : null, moved];
};

const layerName = (name) => (/^(.*?(?:^|\.)\d+)\./.exec(name) || ["", name])[1];

let slowest = 1;
function drawRow(row) {
  const one = phase();
  const bar = (us) => {
    const made = el("span", { class: "bar" }, el("span", { class: "fill" }));
    made.firstChild.style.width = `${Math.min(100, (100 * (us || 0)) / slowest)}%`;
    return made;
  };
  const line = (kind, depth, label, op, us, moved, number = "") => {
    const made = el(
      "div",
      { class: kind },
      el("span", { class: "number" }, String(number)),
      el("span", { class: "name" }, label),
      el("span", { class: "op" }, op),
      el("span", { class: "right" }, us === undefined ? "" : micros(us)),
      us === undefined ? el("span", {}) : bar(us),
      el("span", { class: "right" }, moved === undefined ? "" : bytes(moved)),
    );
    made.children[1].style.paddingLeft = `${depth * 14}px`;
    return made;
  };
  if (row.kind === "segment") {
    const { segment, index } = row;
    const graphs = segment.verdict === "static" ? graphsOf(segment) : "runs launch by launch";
    const sign = segment.verdict === "static" ? "■" : "◇";
    return line(`segment ${segment.verdict}`, 0, `${sign} ${index} ${segment.verdict}, ${segment.count} launches`, graphs, segment.us ?? null, segment.bytes);
  }
  if (row.kind === "fold") {
    const [us, moved] = total(row.first, row.length * row.times);
    const sign = opened.has(row.key) ? "▾" : "▸";
    return line("fold", 1, `${sign} layer x ${row.times}`, `${row.length} launches each`, us, moved, row.first);
  }
  if (row.kind === "layer") {
    const [us, moved] = total(row.first, row.length);
    const sign = opened.has(row.key) ? "▾" : "▸";
    return line("layer", 2, `${sign} ${layerName(one.launches[row.first][0])}`, `${row.length} launches`, us, moved, row.first);
  }
  const launch = one.launches[row.number];
  return line("launch", row.depth, launch[0], `${launch[1]} · ${mainTemplate(plan(), one, launch)}`, launch[7], launch[6], row.number);
}

function graphsOf(segment) {
  if (!segment.sizes.length) return "one graph for every request";
  const last = segment.buckets.length - 1;
  return `${last + 1} graphs, up to ${segment.buckets[0]} … ${segment.buckets[last]} rows`;
}

let list = null;
let detail = null;

function showGraph(main) {
  const one = phase();
  slowest = one.launches.reduce((most, launch) => Math.max(most, launch[7] || 0), 1e-9);
  list = new Rows("Segments and launches", drawRow, (row, act) => {
    if (act && (row.kind === "fold" || row.kind === "layer")) {
      if (!opened.delete(row.key)) opened.add(row.key);
      list.show(graphRows());
    }
    if (row.kind === "launch") go({ launch: row.number, segment: (verdictOf().get(row.number) || [])[1] ?? null }, true);
    if (row.kind === "segment") go({ segment: row.index, launch: null }, true);
    describe(row);
  });
  detail = el("aside", { class: "detail", "aria-live": "polite", tabindex: "0", "aria-label": "Details" });
  const choices = (label, names, current, key) =>
    el(
      "label",
      {},
      `${label} `,
      el(
        "select",
        { onchange: (event) => go({ [key]: event.target.value, launch: null, segment: null }) },
        names.map((name) => el("option", { value: name, selected: name === current }, name)),
      ),
    );
  main.append(
    el(
      "div",
      { class: "tools" },
      choices("Phase", plan().phases.map((p) => p.name), one.name, "phase"),
      choices("Schedule", one.schedules.map((s) => s.name), schedule().name, "schedule"),
      el("span", { class: "note" }, `costs of ${rowsOf(one)} after ${one.start} cached tokens; ${chipNote()}`),
    ),
    el("div", { class: "split" }, list.box, detail),
  );
  const rows = reveal();
  list.show(rows);
  const at = rows.findIndex((row) =>
    place.launch !== null ? row.kind === "launch" && row.number === place.launch : row.kind === "segment" && row.index === place.segment,
  );
  if (at >= 0) {
    list.box.scrollTop = Math.max(0, at * ROW - 200);
    list.choose(at);
  } else if (rows.length) describe(rows[0]);
  else describe(null);
}

const rowsOf = (one) => (one.rows === 1 ? "1 row" : `${one.rows} rows`);
const chipNote = () => {
  const known = plan().prediction;
  return known.chip ? `times predicted for the ${known.chip}` : `no times: ${known.why_not}`;
};

// The rows, with what hides the launch that the address names unfolded.
function reveal() {
  if (place.launch !== null && !place.search) {
    for (const [first, length, times] of phase().folds) {
      const layer = Math.floor((place.launch - first) / length);
      if (layer < 0 || layer >= times) continue;
      opened.add(`${place.plan}/${phase().name}/${first}`);
      opened.add(`${place.plan}/${phase().name}/${first}/${layer}`);
    }
  }
  return graphRows();
}

function describe(row) {
  if (row === null) detail.replaceChildren(el("p", {}, "Nothing here is called so."));
  else if (row.kind === "launch") detail.replaceChildren(...describeLaunch(row.number));
  else if (row.kind === "segment") detail.replaceChildren(...describeSegment(row));
  else {
    const [us, moved] = total(row.first, row.length * (row.times || 1));
    const alike = row.times ? `${row.times} layers that are alike: the same ops and kernels` : "One layer";
    detail.replaceChildren(el("h2", {}, alike), pairs([["launches", `${row.length} a layer`], ["predicted", micros(us)], ["bytes", bytes(moved)]]));
  }
}

function describeSegment({ segment, index }) {
  const made = [
    el("h2", {}, `Segment ${index}: ${segment.verdict}`),
    pairs([
      ["launches", String(segment.count)],
      ["graphs", segment.verdict === "static" ? (segment.sizes.length ? `up to ${segment.buckets.join(", ")} rows` : "one for every request") : "none"],
      ["predicted", micros(segment.us)],
      ["flops", count(segment.flops)],
      ["bytes", bytes(segment.bytes)],
      ...(segment.to_host || segment.to_device ? [["to the host and back", `${bytes(segment.to_host)}, ${bytes(segment.to_device)}`]] : []),
    ]),
  ];
  return segment.verdict === "dynamic" ? [...made, ...why(phase().name, schedule().name, index)] : made;
}

// Of a dynamic segment, or of one launch of it.
function why(phaseName, scheduleName, index, number = null) {
  const found = plan().dynamic.filter((d) => d.phase === phaseName && d.schedule === scheduleName && d.segment === index);
  const causes = found.flatMap((entry) => entry.causes);
  return first(causes.filter((cause) => number === null || cause.launch === number), causeOf, "launches, each with its own reason");
}

const causeOf = (cause) =>
  el(
    "div",
    { class: "cause" },
    el("p", {}, `${cause.code}: ${cause.sentence}`),
    el("ol", { class: "chain" }, cause.chain.map((link) => el("li", {}, el("span", { class: "kind" }, link.kind.replace("_", " ")), ` ${link.name}`))),
    el("p", {}, el("strong", {}, "To make it static: "), cause.change || "nothing is known"),
  );

function describeLaunch(number) {
  const of = plan();
  const one = phase();
  const launch = one.launches[number];
  const [verdict, index] = verdictOf().get(number) || ["not in this schedule", null];
  const known = of.prediction;
  const roof = known.chip
    ? [
        ["moving its bytes", micros((1e6 * launch[6]) / known.read)],
        ["its operations", micros((1e6 * launch[5]) / known.matrix)],
        ["bound by", launch[6] / known.read >= launch[5] / known.matrix ? "bytes" : "operations"],
      ]
    : [];
  const kernels = one.kernels[launch[3]].flatMap(([target, calls]) =>
    typeof calls === "string" ? [[target, "any", calls, "", "", ""]] : calls.map(([high, variant, grid]) => kernelRow(of, target, high, variant, grid)),
  );
  return [
    el("h2", {}, launch[0]),
    pairs([
      ["op", launch[1]],
      ["launch", `${number} of ${one.name}`],
      ["verdict", index === null ? verdict : `${verdict}, segment ${index} of ${schedule().name}`],
      ["predicted", micros(launch[7])],
      ...tookOf(one.name, number),
      ...roof,
      ["flops", count(launch[5])],
      ["bytes", bytes(launch[6])],
      ...Object.entries(launch[4]).map(([name, value]) => [name, rounded(value)]),
    ]),
    ...(verdict === "dynamic" ? why(one.name, schedule().name, index, number) : []),
    el("h3", {}, "Operands"),
    table(
      ["role", "", "where", "name", "type"],
      launch[2].map((operand) => {
        const [name, dtype, axes] = operandEntry(of, one, operand);
        return [operand[0], ["", "written", "read, written"][operand[1]], of.spaces[operand[2]], name, dtype ? `${dtype} ${shape(axes)}` : ""];
      }),
    ),
    el("h3", {}, "Kernels"),
    table(["target", "rows up to", "template", "grid", "threads, registers, shared", "axes"], kernels),
    el("h3", {}, "ONNX nodes"),
    launch[8].length ? el("ul", {}, launch[8].map((node) => el("li", {}, one.nodes[node]))) : el("p", {}, of.missing.length ? "not known: the plan has no debug section" : "none of its own"),
  ];
}

// What the bench timed of a launch of the first plan, a kind at a time.
const took = new Map(all.timed.flatMap((kind) => kind.launches.map((number) => [`${kind.phase}/${number}`, kind])));
function tookOf(name, number) {
  const kind = place.plan ? undefined : took.get(`${name}/${number}`);
  return kind ? [["measured", `${micros(kind.us)}, as all ${kind.kind}`]] : [];
}

function kernelRow(of, target, high, variant, grid) {
  const { template, axes, built, pdl } = of.variants[variant];
  const code = built ? `${built.threads}, ${built.registers ?? "–"}, ${bytes(built.shared)}` : "not built ahead";
  const words = Object.entries(axes).map(([name, value]) => `${name} ${value}`);
  return [target, high === null ? "any" : String(high), of.templates[template].name + (pdl ? " (starts early)" : ""), grid, code, words.join(", ")];
}

// The other views.

function stacked(parts) {
  const whole = parts.reduce((sum, [, amount]) => sum + amount, 0);
  const bar = el("div", { class: "stack", role: "img", "aria-label": parts.map(([name, amount]) => `${name} ${bytes(amount)}`).join(", ") });
  parts.forEach(([, amount], i) => {
    const piece = el("span", { class: `part part-${i % 6}` });
    piece.style.width = `${(100 * amount) / whole}%`;
    bar.append(piece);
  });
  const key = el("ul", { class: "key" }, parts.map(([name, amount], i) => el("li", {}, el("span", { class: `swatch part-${i % 6}` }), ` ${name} ${bytes(amount)} (${share(amount, whole)})`)));
  return el("div", {}, bar, key);
}

function showOverview(main) {
  const of = plan();
  const { ledger, model } = of;
  const graphs = Object.values(ledger.graph || {}).reduce((sum, amount) => sum + amount, 0);
  const defaults = of.phases.map((one) => [one, one.schedules.find((s) => s.name === "default") || one.schedules[0]]);
  main.append(
    section(
      model.name,
      pairs([
        ["file", `${of.file.name}, ${bytes(of.file.bytes)}, by hjgc ${of.hjgc}`],
        ["architecture", `${model.architecture}, ${model.layers} layers, vocabulary ${model.vocab_size}, context ${model.context}`],
        ["targets", of.targets.join(", ")],
        ["dtypes", Object.entries(of.dtypes).map(([role, dtype]) => `${role} ${dtype}`).join(", ")],
        ["options", Object.entries(of.options).map(([name, value]) => `${name} ${value}`).join(", ") || "none"],
        ["prediction", chipNote()],
      ]),
    ),
    section(
      "Memory on the device",
      stacked([
        ["weights", ledger.weights],
        ["KV cache and other states", ledger.states],
        ["arena", ledger.arena],
        ["constants and parameters", ledger.constants + ledger.parameters],
        ["graphs, one of each", graphs],
        ...freeOn(of.prediction, ledger.total + graphs),
      ]),
      el("p", { class: "note" }, `${bytes(ledger.total)} before anything is captured; of the cache ${bytes(ledger.kv_per_token)} for each token of context`),
    ),
    section(
      "What replays",
      table(
        ["phase", "costs of", "launches", "static", "of the launches", "of the bytes", "of the predicted time", "predicted"],
        defaults.map(([one, way]) => {
          const sum = (key, verdict) => way.segments.filter((s) => !verdict || s.verdict === verdict).reduce((n, s) => n + (s[key] || 0), 0);
          const row = (key) => share(sum(key, "static"), sum(key));
          return [one.name, `${rowsOf(one)} after ${one.start}`, String(sum("count")), String(sum("count", "static")), row("count"), row("bytes"), row("us"), micros(sum("us") || null)];
        }),
        [2, 3, 4, 5, 6, 7],
      ),
    ),
    section("Prompt lengths", ...coverage(of)),
  );
}

const freeOn = (chip, held) => (chip.memory > held ? [[`free on the ${chip.chip}`, chip.memory - held]] : []);

function coverage(of) {
  const prompt = of.phases.find((one) => one.name === "prefill");
  const segment = prompt && prompt.schedules[0].segments.find((s) => s.verdict === "static");
  const made = [];
  if (segment && segment.buckets.length > 1) {
    const last = segment.buckets[segment.buckets.length - 1];
    const strip = el("div", { class: "strip", role: "img", "aria-label": `graphs for up to ${segment.buckets.join(", ")} tokens` });
    let before = 0;
    segment.buckets.forEach((bucket, i) => {
      const piece = el("span", { class: `part part-${i % 2}`, title: `${before + 1} to ${bucket} tokens` });
      piece.style.width = `${(100 * (bucket - before)) / last}%`;
      strip.append(piece);
      before = bucket;
    });
    made.push(strip, el("p", { class: "note" }, `a graph each for up to ${segment.buckets.join(", ")} tokens`));
  }
  const words = { plain: "launch by launch", parts: "in parts", not_built: "with code that is not built ahead" };
  if (of.lengths.length)
    made.push(table(["tokens", "run", "why", "what would change it"], of.lengths.map((l) => [`${l.low} to ${l.high}`, words[l.how] + (l.target ? ` (${l.target})` : ""), l.why, l.change])));
  return made;
}

const onDevice = (cost) => (cost.bytes || cost.predicted_us ? `${bytes(cost.bytes)} and ${micros(cost.predicted_us)}` : "nothing");

function showWhy(main) {
  const of = plan();
  for (const name of of.missing) main.append(el("p", { class: "note" }, `Not known, the plan has no debug section: ${name}`));
  if (!of.dynamic.length) main.append(el("p", {}, "Nothing is dynamic: every launch replays."));
  main.append(...first(of.dynamic, segmentOf, "dynamic segments: the graph has all"));
  if (of.almost.length) main.append(section("Fusions that almost fired", table(["rule", "ONNX node", "what stopped it"], of.almost.map((a) => [a.rule, a.node, a.why]))));
}

function segmentOf(entry) {
  const cost = entry.cost;
  return section(
    `${entry.phase}, schedule ${entry.schedule}, segment ${entry.segment}`,
    el("p", {}, `for each token: ${onDevice(cost.per_token)} on the device, ${bytes(cost.per_token.to_host)} to the host, ${bytes(cost.per_token.to_device)} back`),
    first(entry.causes, causeOf, "launches: the graph has the reason of each"),
    el("button", { type: "button", onclick: () => go({ view: "graph", phase: entry.phase, schedule: entry.schedule, segment: entry.segment, launch: null }) }, "Show in the graph"),
  );
}

function showMemory(main) {
  const one = phase();
  const buffers = one.buffers;
  const canvas = el("canvas", { class: "arena", role: "img", "aria-label": `The arena of ${one.name}: ${buffers.length} buffers; the list below names them` });
  const said = el("p", { class: "note", "aria-live": "polite" }, "The arena over the step: from left to right launch by launch, from top to bottom by address.");
  const arena = buffers.reduce((most, b) => Math.max(most, b[4] + b[3]), 1);
  const steps = Math.max(1, one.launches.length);
  let chosen = -1;
  // All buffers, painted when the size changes; the one that is chosen goes on top of a copy.
  const painted = document.createElement("canvas");
  const fill = (pen, b, color) => {
    const x = (canvas.width * b[5]) / steps;
    const y = (canvas.height * b[4]) / arena;
    const w = Math.max(1, (canvas.width * (b[6] + 1 - b[5])) / steps);
    const h = Math.max(1, (canvas.height * b[3]) / arena);
    pen.fillStyle = color;
    pen.fillRect(x, y, w, h);
  };
  const paint = () => {
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (painted.width && painted.height) pen.drawImage(painted, 0, 0);
    if (chosen >= 0) fill(pen, buffers[chosen], "#d97706");
  };
  const paintAll = () => {
    const scale = window.devicePixelRatio || 1;
    painted.width = canvas.width = canvas.clientWidth * scale;
    painted.height = canvas.height = canvas.clientHeight * scale;
    const pen = painted.getContext("2d");
    buffers.forEach((b, i) => fill(pen, b, `hsl(${(i * 47) % 360} 45% 55%)`));
    paint();
  };
  const words = (b) => `${b[0]}: ${b[1]} ${shape(b[2])}, ${bytes(b[3])} at ${b[4]}, launches ${b[5]} to ${b[6]}`;
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const step = ((event.clientX - box.left) / box.width) * steps;
    const at = ((event.clientY - box.top) / box.height) * arena;
    const found = buffers.findIndex((b) => b[5] <= step && step < b[6] + 1 && b[4] <= at && at < b[4] + b[3]);
    if (found === chosen) return;
    chosen = found;
    said.textContent = found < 0 ? "Nothing lies here then." : words(buffers[found]);
    paint();
  });
  const rows = new Rows(
    "Buffers of the arena",
    (i) => el("div", {}, el("span", { class: "name" }, words(buffers[i]))),
    (i) => {
      chosen = i;
      said.textContent = words(buffers[i]);
      paint();
    },
  );
  main.append(
    el(
      "div",
      { class: "tools" },
      el(
        "label",
        {},
        "Phase ",
        el("select", { onchange: (event) => go({ phase: event.target.value, launch: null, segment: null }) }, plan().phases.map((p) => el("option", { value: p.name, selected: p.name === one.name }, p.name))),
      ),
    ),
    section("Arena", canvas, said, rows.box),
    section("Beside it", table(["what", "entries", "bytes"], [["weights", "weights"], ["states", "states"], ["constants", "constants"]].map(([name, key]) => [name, String(plan()[key].length), bytes(plan()[key].reduce((n, e) => n + e[3], 0))]), [1, 2])),
  );
  const states = new Rows("States", (s) => el("div", {}, el("span", { class: "name" }, `${s[0]}: ${s[4]}, ${s[1]} ${shape(s[2])}, ${bytes(s[3])}`)), () => {});
  main.append(section("States", states.box));
  states.show(plan().states);
  rows.show(buffers.map((_, i) => i));
  new ResizeObserver(paintAll).observe(canvas);
}

function showTemplates(main) {
  const of = plan();
  if (!of.templates.length) main.append(el("p", {}, "This plan has no kernel templates: its ops run as references."));
  of.templates.forEach((template, number) => {
    const mine = of.variants.filter((variant) => variant.template === number);
    const body = el("div", {});
    const box = el("details", { class: "template" }, el("summary", {}, el("strong", {}, template.name), ` ${mine.length} variants, sha256 ${template.digest.slice(0, 16)}${template.only ? `, for ${template.only} alone` : ""}`), body);
    box.addEventListener("toggle", () => {
      if (!box.open || body.childElementCount) return;
      const rows = mine.map((v) => [v.target, v.built ? String(v.built.threads) : "–", v.built && v.built.registers !== null ? String(v.built.registers) : "–", v.built ? bytes(v.built.shared) : "–", v.built ? v.built.sha256.slice(0, 16) : "not built", Object.entries(v.axes).map(([a, value]) => `${a} ${value}`).join(", ")]);
      body.append(table(["target", "threads", "registers", "shared", "code sha256", "axes"], rows, [1, 2, 3]));
      for (const [name, text] of template.files) body.append(el("h3", {}, name), el("pre", { tabindex: "0" }, text));
    });
    main.append(box);
  });
}

function showCompare(main) {
  const { diff } = all;
  const said = (value) => (value === null || value === undefined ? "–" : String(value));
  main.append(
    section(
      diff.same ? "The plans are the same" : "Causes",
      diff.same ? el("p", {}, "Nothing differs but where they lie.") : table(["kind", "what", "before", "after"], diff.causes.map((c) => [c.kind, c.name, said(c.before), said(c.after)])),
      diff.notes.map((note) => el("p", { class: "note" }, note)),
    ),
    section("Launches, aligned by where they come from", table(["phase", "by", "in both", "only before", "only after"], diff.aligned.map((a) => [a.phase, a.by, String(a.pairs), String(a.only_a), String(a.only_b)]), [2, 3, 4])),
  );
  const rows = new Rows(
    "Changes",
    (c) => el("div", { class: "change" }, el("span", { class: "op" }, c.area), el("span", { class: "name" }, `${c.item}: ${c.field}`), el("span", {}, said(c.before)), el("span", {}, said(c.after))),
    () => {},
  );
  main.append(section(`All ${diff.changes.length} changes`, rows.box));
  rows.show(diff.changes);
}

function showMeasured(main) {
  if (all.measured.length)
    main.append(section("Measured and predicted", table(["what", "measured p50", "predicted", "predicted of measured"], all.measured.map((m) => [m.what, `${m.measured.toFixed(3)} ms`, m.predicted === null ? "–" : `${m.predicted.toFixed(3)} ms`, m.predicted === null ? "–" : share(m.predicted, m.measured)]), [1, 2, 3])));
  for (const name of new Set(all.timed.map((kind) => kind.phase))) showTimed(main, name);
  if (!all.report) return;
  const shown = all.report.segments;
  main.append(
    section(
      "What a session did",
      table(["phase", "schedule", "segment", "rows up to", "state", "replays", "plain runs", "why"], shown.map((e) => [e.phase, e.schedule, String(e.segment), String(e.key), e.state, String(e.hits), String(e.plain_runs), e.why || ""]), [2, 3, 5, 6]),
    ),
  );
}

function showTimed(main, name) {
  const kinds = all.timed.filter((kind) => kind.phase === name);
  const of = all.plans[0].phases.find((one) => one.name === name);
  const rows = kinds.map((kind) => {
    const predicted = of.launches[kind.launches[0]][7];
    return [kind.kind, of.launches[kind.launches[0]][1], String(kind.launches.length), micros(kind.us), micros(predicted), predicted === null ? "–" : share(predicted, kind.us)];
  });
  const heading = `Launches of ${name}, ${count(kinds[0].rows)} rows after ${count(kinds[0].start)}`;
  main.append(section(heading, table(["kind", "op", "launches", "measured", "predicted", "predicted of measured"], rows, [2, 3, 4, 5])));
}

// Where we are.

const SHOW = { overview: showOverview, graph: showGraph, why: showWhy, memory: showMemory, templates: showTemplates, compare: showCompare, measured: showMeasured };

function spell() {
  const said = new URLSearchParams();
  for (const [name, value] of Object.entries(place)) {
    const usual = { view: "overview", plan: 0, phase: plan().phases[0].name, schedule: "default" }[name];
    if (value !== null && value !== "" && value !== usual) said.set(name, String(value));
  }
  return said.toString();
}

function read() {
  const said = new URLSearchParams(location.hash.slice(1));
  const within = (name, most) => (/^\d{1,9}$/.test(said.get(name) || "") && Number(said.get(name)) < most ? Number(said.get(name)) : null);
  place.plan = within("plan", all.plans.length) || 0;
  place.phase = plan().phases.some((one) => one.name === said.get("phase")) ? said.get("phase") : plan().phases[0].name;
  place.schedule = said.get("schedule") || "default";
  place.launch = within("launch", phase().launches.length);
  place.segment = within("segment", schedule().segments.length);
  place.search = said.get("search") || "";
  const asked = said.get("view") || (said.has("launch") || said.has("segment") || said.has("search") ? "graph" : "overview");
  place.view = VIEWS.some(([name]) => name === asked) ? asked : "overview";
}

// Browsers stop taking changes of the address after a hundred or two within seconds, which an arrow key held down
// reaches: those that follow one another within so many milliseconds are one.
const PAUSE = 300;
let waiting = 0;
function address() {
  const wanted = `#${spell()}`;
  if (wanted !== location.hash) history.replaceState(null, "", wanted);
}

function go(changes, quietly = false) {
  Object.assign(place, changes);
  if (!waiting) {
    address();
    waiting = setTimeout(() => {
      waiting = 0;
      address();
    }, PAUSE);
  }
  if (!quietly) render();
}

function render() {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const mine = tab.dataset.view === place.view;
    tab.setAttribute("aria-selected", String(mine));
    tab.tabIndex = mine ? 0 : -1;
  }
  const main = document.getElementById("main");
  main.replaceChildren();
  SHOW[place.view](main);
}

function begin() {
  read();
  const tabs = el("div", { role: "tablist", "aria-label": "Views" });
  for (const [name, title] of VIEWS) {
    const tab = el("button", { type: "button", role: "tab", "aria-controls": "main", onclick: () => go({ view: name }) }, title);
    tab.dataset.view = name;
    tabs.append(tab);
  }
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = VIEWS.findIndex(([name]) => name === place.view);
    go({ view: VIEWS[(at + step + VIEWS.length) % VIEWS.length][0] });
    tabs.querySelector("[aria-selected=true]").focus();
  });
  const search = el("input", { type: "search", id: "search", placeholder: "Search: ONNX node, template, buffer  ( / )", "aria-label": "Search launches", value: place.search });
  search.addEventListener("input", () => {
    go({ view: "graph", search: search.value, launch: null, segment: null });
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      search.value = "";
      go({ search: "" });
    } else if (event.key === "Enter" && list && list.rows.length) {
      list.box.focus();
      list.choose(0);
    }
  });
  const plans =
    all.plans.length > 1
      ? el("label", {}, "Plan ", el("select", { id: "plan", onchange: (event) => go({ plan: Number(event.target.value), launch: null, segment: null }) }, all.plans.map((p, i) => el("option", { value: String(i), selected: i === place.plan }, `${"AB"[i]}: ${p.file.name}`))))
      : null;
  const theme = el("button", { type: "button", id: "theme", onclick: () => {
    const dark = document.documentElement.dataset.theme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  } }, "Light / dark");
  document.getElementById("top").replaceChildren(el("h1", {}, all.plans[0].file.name), tabs, search, plans || "", theme);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      search.focus();
    }
  });
  window.addEventListener("hashchange", () => {
    read();
    search.value = place.search;
    render();
  });
  render();
  document.documentElement.dataset.ready = "yes";
}

begin();
