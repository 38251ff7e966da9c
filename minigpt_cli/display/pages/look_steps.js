// Arithmetic: the steps of one character through the model, with its real numbers and the lines of Python that compute them.

const FIRST = 8;  // numbers of a vector that are shown

const formatted = (x) => x === 0 ? "0" : Math.abs(x) < 0.01 || Math.abs(x) >= 1000 ? x.toExponential(1) : x.toFixed(Math.abs(x) < 10 ? 2 : 0);

// The first numbers of a vector, coloured by sign and size.
function vector(label, values, shape) {
  const first = [...values.subarray(0, FIRST)], top = Math.max(1e-9, ...first.map(Math.abs));
  return el("div", { class: "vector" }, el("span", {}, label, " ", el("small", { class: "dim" }, `(${shape})`)), el("span", { class: "numbers" },
    ...first.map((x) => el("span", { class: "tint", style: `--t:${(Math.abs(x) / top).toFixed(2)};--of:var(--c${x < 0 ? 1 : 0})` }, formatted(x))),
    values.length > FIRST ? el("span", { class: "dim" }, `… ${values.length} in all`) : ""));
}

// A number for each of some tokens, as bars: the largest, in the order of the text.
function perToken(entries, most = 10) {
  const shown = entries.slice().sort((a, b) => b.share - a.share).slice(0, most).sort((a, b) => a.order - b.order);
  return el("div", { class: "next three" }, ...shown.map(({ name, value, share }) => el("div", {}, el("span", { class: "name" }, name), el("span", {}, value),
    el("span", { class: "bars", "aria-hidden": "true" }, el("b", { style: `width:${100 * Math.max(0, share)}%` })))));
}

// What is watched in a layer, for the chosen token: a row of (T, width).
function rowIn(name, width, part = 0, of = 1) {
  const at = (look.at * of + part) * width;
  return look.watch[name].subarray(at, at + width);
}

const C = c.n_embd, D = C / c.n_head, shared = (h) => Math.floor(h * c.n_kv_head / c.n_head);
const normName = c.rms_norm ? "RMSNorm" : "LayerNorm";

function scoresOf(layer, h) {
  const q = rowIn(layer + ".q", D, h, c.n_head), keys = look.watch[layer + ".k"];
  return look.ids.map((_, n) => {
    const key = (n * c.n_kv_head + shared(h)) * D;
    return q.reduce((sum, x, d) => sum + x * keys[key + d], 0) * (look.without.has("scale") ? 1 : D ** -0.5);
  });
}

function seen(layer, h, value) {  // an entry for each token that the chosen one may look at
  return [...weightsOf(layer, h).keys()].filter((n) => n <= look.at || look.without.has("mask")).map((n) => ({ order: n, name: nameOf(look.ids[n]), ...value(n) }));
}

const STATIONS = {
  id: ["Id", "The tokenizer has a number for every token.", () => [el("p", { class: "large" }, `${nameOf(look.ids[look.at])} is token `, el("strong", {}, String(look.ids[look.at])), ` of ${V}; it stands at place ${look.at}.`)]],
  embedding: ["Embedding", c.rope_theta ? "The row of the embedding with this number." : "The row of the embedding with this number, plus the row of its position.",
    () => [vector("x", rowIn("0.stream", C), `C = ${C}`)]],
  norm1: [normName, "Attention reads a copy of x that is scaled to a common size.", (l) => [vector("x", rowIn(l + ".stream", C), `C = ${C}`), vector("norm(x)", rowIn(l + ".norm1", C), `C = ${C}`)]],
  qkv: ["Query, key, value", "Three products with learned matrices, cut into heads: what it looks for, what it offers, what it gives.",
    (l, h) => [vector("q", rowIn(l + ".q before rotation", D, h, c.n_head), `D = ${D}`), vector("k", rowIn(l + ".k before rotation", D, shared(h), c.n_kv_head), `D = ${D}`), vector("v", rowIn(l + ".v", D, shared(h), c.n_kv_head), `D = ${D}`)]],
  rotation: ["Rotation", "Each pair of numbers of q and k is turned by an angle that grows with the position; a product of q and k then depends on their distance.",
    (l, h) => [vector("q before", rowIn(l + ".q before rotation", D, h, c.n_head), `D = ${D}`), vector(`q at position ${look.at}`, rowIn(l + ".q", D, h, c.n_head), `D = ${D}`)]],
  scores: ["Scores", "The product of q with the key of each token up to this one, divided by √D.",
    (l, h) => { const s = scoresOf(l, h), low = Math.min(...s.slice(0, look.at + 1)), high = Math.max(...s.slice(0, look.at + 1)); return [perToken(seen(l, h, (n) => ({ value: formatted(s[n]), share: (s[n] - low) / (high - low || 1) })))]; }],
  softmax: ["Softmax", "Scores become weights that add up to 1. Tokens that come later have no weight.", (l, h) => { const w = weightsOf(l, h); return [perToken(seen(l, h, (n) => ({ value: w[n].toFixed(3), share: w[n] })))]; }],
  mix: ["Mix", "The sum of the values of these tokens, each times its weight.", (l, h) => [vector(`head ${l}.${h}`, rowIn(l + ".head_out", D, h, c.n_head), `D = ${D}`)]],
  out: ["Out", "All heads side by side, times a learned matrix.", (l) => [vector("attention(x)", rowIn(l + ".attention_out", C), `C = ${C}`)]],
  add1: ["Add", "The result is added to x: every layer writes into the same stream.", (l) => [vector("x", rowIn(l + ".stream", C), `C = ${C}`), vector("+ attention", rowIn(l + ".attention_out", C), `C = ${C}`), vector("= x", rowIn(l + ".middle", C), `C = ${C}`)]],
  norm2: [normName, "The feed-forward reads a scaled copy too.", (l) => [vector("norm(x)", rowIn(l + ".norm2", C), `C = ${C}`)]],
  mlp: [c.n_experts ? "Experts" : "Feed-forward (mlp)", c.n_experts ? "A router chooses some feed-forwards; their results are weighted by its probabilities." : "Wider, a non-linearity, and back: computed for each token alone.",
    (l) => [...(c.n_experts ? [perToken([...rowIn(l + ".router", c.n_experts)].map((p, e) => ({ order: e, name: "expert " + e, value: p.toFixed(3), share: p })))] : []), vector(c.n_experts ? "experts(x)" : "mlp(x)", rowIn(l + ".mlp_out", C), `C = ${C}`)]],
  add2: ["Add", "And is added as well: this is what the next layer reads.", (l) => [vector("x", rowIn(l + ".middle", C), `C = ${C}`), vector("+ mlp", rowIn(l + ".mlp_out", C), `C = ${C}`), vector("= x", rowIn(l + 1 + ".stream", C), `C = ${C}`)]],
  head: ["Head", "After the last layer: one product for each token of the vocabulary, and softmax makes probabilities of them.",
    () => { const logits = rowOf(look.at), p = probabilities(logits); return [vector("logits", logits, `V = ${V}`), perToken([...p.keys()].map((id) => ({ order: -p[id], name: nameOf(id), value: p[id].toFixed(3), share: p[id] })), 5)]; }],
};
if (!c.rope_theta) delete STATIONS.rotation;  // classic adds positions to the embedding
const NAMES = Object.keys(STATIONS), IN_LAYER = (name) => !["id", "embedding", "head"].includes(name), OF_HEAD = ["qkv", "rotation", "scores", "softmax", "mix"];
const step = { at: 0, layer: 0, head: 0 };

function makeStations() {
  byId("stations").append(...NAMES.map((name, i) => el("li", {}, el("button", { type: "button", tabindex: -1, onclick: () => go(i) }, STATIONS[name][0]))));
  byId("steps").addEventListener("keydown", (e) => {
    const move = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[e.key];
    if (!move) return;
    e.preventDefault();
    go(step.at + move[0], step.layer + move[1]);
  });
}

// To a step, and on to the next layer behind the last step of one.
function go(at, layer = step.layer, head = step.head) {
  const clamp = (x, n) => Math.max(0, Math.min(n - 1, x));
  Object.assign(step, { at: clamp(at, NAMES.length), layer: clamp(layer, c.n_layer), head: clamp(head, c.n_head) });
  showStation();
  byId("step_said").textContent = `Step ${step.at + 1} of ${NAMES.length}: ${STATIONS[NAMES[step.at]][0]}` + (IN_LAYER(NAMES[step.at]) ? `, layer ${step.layer}` : "");
}

function showStation() {
  const name = NAMES[step.at], [title, words, numbers] = STATIONS[name];
  [...byId("stations").children].forEach((item, i) => item.classList.toggle("chosen", i === step.at));
  const choice = (label, n, at, set) => el("label", {}, label + " ", el("select", { onchange: (e) => set(Number(e.target.value)) }, ...Array.from({ length: n }, (_, i) => el("option", { value: i, selected: i === at }, String(i)))));
  byId("station").replaceChildren(el("h3", {}, title, el("span", { class: "choices" },
    IN_LAYER(name) ? choice("layer", c.n_layer, step.layer, (layer) => go(step.at, layer)) : "", OF_HEAD.includes(name) ? choice("head", c.n_head, step.head, (head) => go(step.at, step.layer, head)) : "")),
    el("p", {}, words), ...numbers(step.layer, step.head),
    ...(data.code[name] ?? []).map(({ file, line, text }) => el("figure", { class: "code" }, el("figcaption", { class: "dim" }, `${file}, line ${line}`), el("pre", {}, text))),
    el("p", { class: "tools" }, el("button", { type: "button", disabled: step.at === 0, onclick: () => go(step.at - 1) }, "← Back"), el("button", { type: "button", disabled: step.at === NAMES.length - 1, onclick: () => go(step.at + 1) }, "Next →")));
}
