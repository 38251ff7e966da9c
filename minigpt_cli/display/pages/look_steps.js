// Arithmetic: the steps of one character through the model, with its real numbers and the lines of Python that compute them.

const FIRST = 8;  // numbers of a vector that are shown
const C = c.n_embd, H = c.n_head, K = c.n_kv_head, D = C / H;
const keyHead = (h) => Math.floor(h * K / H);  // the key and value head that serves a query head

const short = (x) => x === 0 ? "0" : Math.abs(x) < 0.01 || Math.abs(x) >= 1000 ? x.toExponential(1) : x.toFixed(Math.abs(x) < 10 ? 2 : 0);

// ---- what a step shows

// The first numbers of a vector, coloured by sign and size.
function vector(label, values, size) {
  const first = [...values.subarray(0, FIRST)], top = Math.max(1e-9, ...first.map(Math.abs));
  const numbers = first.map((x) => {
    const style = `--t:${(Math.abs(x) / top).toFixed(2)};--of:var(--c${x < 0 ? 1 : 0})`;
    return el("span", { class: "tint", style }, short(x));
  });
  if (values.length > FIRST) numbers.push(el("span", { class: "dim" }, `… ${values.length} in all`));
  const name = el("span", {}, label, " ", el("small", { class: "dim" }, `(${size} = ${values.length})`));
  return el("div", { class: "vector" }, name, el("span", { class: "numbers" }, ...numbers));
}

// A bar for each of some entries {name, value, share}: the largest, in their order.
function bars(entries, most = 10) {
  const largest = entries.slice().sort((a, b) => b.share - a.share).slice(0, most);
  const rows = entries.filter((entry) => largest.includes(entry)).map(({ name, value, share }) => {
    const bar = el("b", { style: `width:${100 * Math.max(0, share)}%` });
    return el("div", {}, el("span", { class: "name" }, name), el("span", {}, value), el("span", { class: "bars", "aria-hidden": "true" }, bar));
  });
  return el("div", { class: "next three" }, ...rows);
}

// An entry for each token that the chosen one may look at.
function seen(entry) {
  const last = look.without.has("mask") ? look.ids.length - 1 : look.at;
  return look.ids.slice(0, last + 1).map((id, n) => ({ name: nameOf(id), ...entry(n) }));
}

// Of a watched value (T, of * width), what belongs to the chosen token: all of it, or one part.
function rowIn(name, width = C, part = 0, of = 1) {
  const at = (look.at * of + part) * width;
  return look.watch[name].subarray(at, at + width);
}

const ofQuery = (layer, h, name) => rowIn(`${layer}.${name}`, D, h, H);
const ofKey = (layer, h, name) => rowIn(`${layer}.${name}`, D, keyHead(h), K);

function scores(layer, h) {
  const q = ofQuery(layer, h, "q"), keys = look.watch[layer + ".k"], scale = look.without.has("scale") ? 1 : D ** -0.5;
  const all = look.ids.map((_, n) => {
    const key = (n * K + keyHead(h)) * D;
    return q.reduce((sum, x, d) => sum + x * keys[key + d], 0) * scale;
  });
  const shown = seen((n) => ({ value: short(all[n]), share: all[n] }));
  const low = Math.min(...shown.map((entry) => entry.share)), high = Math.max(...shown.map((entry) => entry.share));
  return bars(shown.map((entry) => ({ ...entry, share: (entry.share - low) / (high - low || 1) })));
}

function router(layer) {
  const p = [...rowIn(layer + ".router", c.n_experts)];
  return bars(p.map((share, e) => ({ name: "expert " + e, value: share.toFixed(3), share })));
}

function added(layer, before, what, name, after) {
  return [vector("x", rowIn(`${layer}.${before}`), "C"), vector("+ " + what, rowIn(`${layer}.${name}`), "C"), vector("= x", rowIn(after), "C")];
}

function likeliest(logits) {
  const p = probabilities(logits), order = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, 5);
  return bars(order.map((id) => ({ name: nameOf(id), value: p[id].toFixed(3), share: p[id] })));
}

// ---- the steps: a title, a sentence, and what is shown for a layer and a head

const NORM = c.rms_norm ? "RMSNorm" : "LayerNorm";
const STATIONS = {
  id: {
    title: "Id", words: "The tokenizer has a number for every token.",
    numbers: () => [el("p", { class: "large" }, `${nameOf(look.ids[look.at])} is token `, el("strong", {}, String(look.ids[look.at])),
      ` of ${V}; it stands at place ${look.at}.`)],
  },
  embedding: {
    title: "Embedding", words: "The row of the embedding with this number" + (c.rope_theta ? "." : ", plus the row of its position."),
    numbers: () => [vector("x", rowIn("0.stream"), "C")],
  },
  norm1: {
    title: NORM, words: "Attention reads a copy of x that is scaled to a common size.", layer: true,
    numbers: (l) => [vector("x", rowIn(l + ".stream"), "C"), vector("norm(x)", rowIn(l + ".norm1"), "C")],
  },
  qkv: {
    title: "Query, key, value", layer: true, head: true,
    words: "Three products with learned matrices, cut into heads: what it looks for, what it offers, what it gives.",
    numbers: (l, h) => [vector("q", ofQuery(l, h, "q before rotation"), "D"), vector("k", ofKey(l, h, "k before rotation"), "D"),
      vector("v", ofKey(l, h, "v"), "D")],
  },
  rotation: {
    title: "Rotation", layer: true, head: true,
    words: "Each pair of numbers of q and k is turned by an angle that grows with the position; their product then depends on the distance.",
    numbers: (l, h) => [vector("q before", ofQuery(l, h, "q before rotation"), "D"), vector("q at place " + look.at, ofQuery(l, h, "q"), "D")],
  },
  scores: {
    title: "Scores", words: "The product of q with the key of each token up to this one, divided by √D.", layer: true, head: true,
    numbers: (l, h) => [scores(l, h)],
  },
  softmax: {
    title: "Softmax", words: "Scores become weights that add up to 1. Tokens that come later have no weight.", layer: true, head: true,
    numbers: (l, h) => { const w = weightsOf(l, h); return [bars(seen((n) => ({ value: w[n].toFixed(3), share: w[n] })))]; },
  },
  mix: {
    title: "Mix", words: "The sum of the values of these tokens, each times its weight.", layer: true, head: true,
    numbers: (l, h) => [vector(`head ${l}.${h}`, ofQuery(l, h, "head_out"), "D")],
  },
  out: {
    title: "Out", words: "All heads side by side, times a learned matrix.", layer: true,
    numbers: (l) => [vector("attention(x)", rowIn(l + ".attention_out"), "C")],
  },
  add1: {
    title: "Add", words: "The result is added to x: every layer writes into the same stream.", layer: true,
    numbers: (l) => added(l, "stream", "attention", "attention_out", l + ".middle"),
  },
  norm2: {
    title: NORM, words: "The feed-forward reads a scaled copy too.", layer: true,
    numbers: (l) => [vector("norm(x)", rowIn(l + ".norm2"), "C")],
  },
  mlp: c.n_experts ? {
    title: "Experts", words: "A router chooses some feed-forwards; their results are weighted by its probabilities.", layer: true,
    numbers: (l) => [router(l), vector("experts(x)", rowIn(l + ".mlp_out"), "C")],
  } : {
    title: "Feed-forward (mlp)", words: "Wider, a non-linearity, and back: computed for each token alone.", layer: true,
    numbers: (l) => [vector("mlp(x)", rowIn(l + ".mlp_out"), "C")],
  },
  add2: {
    title: "Add", words: "And is added as well: this is what the next layer reads.", layer: true,
    numbers: (l) => added(l, "middle", "mlp", "mlp_out", l + 1 + ".stream"),
  },
  head: {
    title: "Head", words: "After the last layer: one product for each token of the vocabulary, and softmax makes probabilities of them.",
    numbers: () => [vector("logits", rowOf(look.at), "V"), likeliest(rowOf(look.at))],
  },
};
if (!c.rope_theta) delete STATIONS.rotation;  // classic adds positions to the embedding

// ---- going from step to step

const NAMES = Object.keys(STATIONS), step = { at: 0, layer: 0, head: 0 };

function makeStations() {
  const buttons = NAMES.map((name, i) => el("button", { type: "button", tabindex: -1, onclick: () => go(i) }, STATIONS[name].title));
  byId("stations").append(...buttons.map((button) => el("li", {}, button)));
  byId("steps").addEventListener("keydown", (e) => {
    const move = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[e.key];
    if (!move || e.target.tagName === "SELECT") return;
    e.preventDefault();
    go(step.at + move[0], step.layer + move[1]);
  });
}

function go(at, layer = step.layer, head = step.head) {
  const within = (x, n) => Math.max(0, Math.min(n - 1, x));
  Object.assign(step, { at: within(at, NAMES.length), layer: within(layer, c.n_layer), head: within(head, H) });
  showStation();
  const { title, layer: inLayer } = STATIONS[NAMES[step.at]];
  byId("step_said").textContent = `Step ${step.at + 1} of ${NAMES.length}: ${title}` + (inLayer ? `, layer ${step.layer}` : "");
}

function choice(label, count, chosen, set) {
  const options = Array.from({ length: count }, (_, i) => el("option", { value: i, selected: i === chosen }, String(i)));
  return el("label", {}, label + " ", el("select", { onchange: (e) => set(Number(e.target.value)) }, ...options));
}

function showStation() {
  const name = NAMES[step.at], { title, words, numbers, layer: inLayer, head: ofHead } = STATIONS[name];
  [...byId("stations").children].forEach((item, i) => item.classList.toggle("chosen", i === step.at));
  const choices = el("span", { class: "choices" });
  if (inLayer) choices.append(choice("layer", c.n_layer, step.layer, (layer) => go(step.at, layer)));
  if (ofHead) choices.append(choice("head", H, step.head, (head) => go(step.at, step.layer, head)));
  const code = data.code[name].map(({ file, line, text }) =>
    el("figure", { class: "code" }, el("figcaption", { class: "dim" }, `${file}, line ${line}`), el("pre", {}, text)));
  const button = (text, to) => el("button", { type: "button", disabled: !NAMES[to], onclick: () => go(to) }, text);
  const buttons = el("p", { class: "tools" }, button("← Back", step.at - 1), button("Next →", step.at + 1));
  byId("station").replaceChildren(el("h3", {}, title, choices), el("p", {}, words), ...numbers(step.layer, step.head), ...code, buttons);
}
