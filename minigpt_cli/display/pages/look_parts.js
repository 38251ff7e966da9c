// Layer by layer, the heads, and what the model does without a part.

// ---- the tower: every row is read with the final norm and the head

// Fewer columns for a large vocabulary, so that a keystroke is not slow: about 50 million products.
const COLUMNS = Math.max(4, Math.min(24, Math.floor(5e7 / ((2 * c.n_layer + 1) * V * c.n_embd))));

function showTower() {
  const first = Math.max(0, look.at + 1 - COLUMNS), places = Array.from({ length: look.at + 1 - first }, (_, i) => first + i);
  const stages = [["embedding", "0.stream"]];
  for (let layer = 0; layer < c.n_layer; layer++) {
    stages.push([`attention ${layer}`, layer + ".middle"], [`mlp ${layer}`, layer + 1 + ".stream"]);
  }
  const heading = el("tr", {}, el("th"), ...places.map((t) => el("th", { scope: "col" }, nameOf(look.ids[t]))));
  const rows = stages.map(([label, name]) => {
    const logits = unembed(model, look.watch[name].subarray(first * c.n_embd, (look.at + 1) * c.n_embd), look.without);
    const cells = places.map((t, i) => guess(t, probabilities(logits.subarray(i * V, i * V + V))));
    return el("tr", {}, el("th", { scope: "row" }, label), ...cells);
  });
  byId("tower").replaceChildren(el("thead", {}, heading), el("tbody", {}, ...rows));
  byId("tower").parentElement.scrollLeft = 1e6;  // the chosen place is the last column
}

function guess(place, p) {
  const best = p.indexOf(p.reduce((a, b) => Math.max(a, b))), strength = p[best].toFixed(3);
  const cell = el("td", { "data-place": place, class: "tint", style: `--t:${strength};--of:var(--c0)`, title: strength }, nameOf(best));
  cell.classList.toggle("chosen", place === look.at);
  return cell;
}

function choosePlace(t) {
  byId("typed").setSelectionRange(look.ends[t], look.ends[t]);
  show();
}

// ---- heads

// What head h of a layer takes from each token, for the chosen place (T,).
function weightsOf(layer, h) {
  const T = look.ids.length, from = (h * T + look.at) * T;
  return look.watch[layer + ".weights"].subarray(from, from + T);
}

const partOf = new Map(data.parts.map((part) => [part.part, part]));
const costs = data.parts.filter((part) => part.part.startsWith("head") && part.measurable).map((part) => Math.abs(part.cost));
const largest = Math.max(1e-9, ...costs);
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(3);

function costOf(name) {
  const part = partOf.get(name);
  return !part ? "not measured" : part.measurable ? signed(part.cost) : "no effect";
}

// The colour and the width of a head's frame: its measured cost.
function frame(name) {
  const part = partOf.get(name);
  if (!part?.measurable) return "border-color:var(--rule);border-width:2px";
  return `border-color:var(--c${part.cost > 0 ? 1 : 2});border-width:${(2 + 4 * Math.abs(part.cost) / largest).toFixed(1)}px`;
}

function partSwitch(name, label) {
  return el("label", { class: "switch" }, el("input", { type: "checkbox", checked: true, "data-part": name, onchange: takeOut }), label);
}

function takeOut(e) {
  look.without[e.target.checked ? "delete" : "add"](e.target.dataset.part);
  compute();
  showLoss();
}

function makeSwitches() {
  byId("everywhere").append(...data.removable.map((name) => partSwitch(name, name)));
  for (let layer = 0; layer < c.n_layer; layer++) byId("heads").append(makeLayer(layer));
  for (const place of ["tower", "strip"]) {
    byId(place).addEventListener("click", (e) => { if (e.target.dataset.place) choosePlace(Number(e.target.dataset.place)); });
  }
}

function makeLayer(layer) {
  const whole = [["layer", "all"], ["mlp", "mlp"]].map(([part, label]) => {
    const name = `${part} ${layer}`;
    return el("span", {}, partSwitch(name, label), el("small", { class: "dim" }, costOf(name)));
  });
  const heads = Array.from({ length: c.n_head }, (_, h) => makeHead(layer, h));
  return el("div", { class: "layer" }, el("div", { class: "name" }, el("strong", {}, "Layer " + layer), ...whole), ...heads);
}

function makeHead(layer, h) {
  const name = `head ${layer}.${h}`, roles = partOf.get(name)?.roles ?? {}, words = Object.values(roles).join(", ");
  const point = (head) => { look.head = head; showStrip(); };
  const on = () => point([layer, h]), off = () => point(null);
  const about = `${name}: ${costOf(name)}` + (words && ", looks at: " + words);
  const events = { onmouseenter: on, onmouseleave: off, onfocus: on, onblur: off, onclick: () => go(step.at, layer, h) };
  const picture = el("button", { type: "button", style: frame(name), "aria-label": about, title: words, ...events },
    el("canvas", { "data-head": `${layer}.${h}` }));
  const found = el("small", { class: "dim" }, costOf(name), ...Object.keys(roles).slice(0, 1).flatMap((role) => [el("br"), role]));
  return el("figure", { class: "head" }, picture, el("figcaption", {}, partSwitch(name, `${layer}.${h}`), found));
}

// The text, tinted by where the head that is pointed at looks from the chosen place.
function showStrip() {
  const head = look.head, weights = head ? weightsOf(...head) : new Float32Array(look.ids.length);
  byId("strip").replaceChildren(...tintedText(weights.map(Math.sqrt), 0));
  byId("strip").scrollTop = byId("strip").children[look.at].offsetTop - byId("strip").offsetTop - 24;
  if (!head) { byId("about_head").textContent = ""; return; }
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, 4).filter((t) => weights[t] > 0.01);
  const places = order.map((t) => `${nameOf(look.ids[t])} ${placeOf(t)} (${(100 * weights[t]).toFixed(0)} %)`);
  byId("about_head").textContent = `Head ${head.join(".")}: from ${nameOf(look.ids[look.at])} it looks at ${places.join(", ")}.`;
}

const placeOf = (t) => t === look.at ? "itself" : t > look.at ? `${t - look.at} later` : `${look.at - t} before`;

function showHeads() {
  const T = look.ids.length, [r, g, b] = rgb("--c0");
  for (const canvas of document.querySelectorAll("[data-head]")) {
    const [layer, h] = canvas.dataset.head.split(".").map(Number), weights = look.watch[layer + ".weights"].subarray(h * T * T, (h + 1) * T * T);
    canvas.width = canvas.height = T;
    const picture = new ImageData(T, T);
    for (let i = 0, at = 0; i < weights.length; i++) {
      picture.data[at++] = r; picture.data[at++] = g; picture.data[at++] = b;
      picture.data[at++] = 255 * Math.sqrt(weights[i]);  // the root shows small weights too
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }
}

function rgb(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

// ---- the loss without the parts that are taken out, on a text that the page holds

let turn = 0, wholeLoss = null;

// Nats per character of the sample, window by window, so that the page answers meanwhile; null if it is no longer wanted.
async function sampleLoss(without, wanted) {
  const { ids, counted, chars } = data.sample;
  let nats = 0;
  for (let at = 0; at + 1 < ids.length; at += c.block_size) {
    const window = ids.slice(at, at + c.block_size + 1), logits = forward(model, window.slice(0, -1), { without });
    window.slice(1).forEach((id, t) => { nats -= counted[at + t] * Math.log(probabilities(logits.subarray(t * V, t * V + V))[id]); });
    await new Promise((done) => setTimeout(done));
    if (!wanted()) return null;
  }
  return nats / chars;
}

async function showLoss() {
  const mine = ++turn, out = [...look.without], place = byId("loss");
  delete place.dataset.loss;
  wholeLoss ??= sampleLoss(new Set(), () => true);
  const whole = await wholeLoss, now = out.length ? await sampleLoss(new Set(out), () => mine === turn) : whole;
  if (mine !== turn) return;
  const nodes = [el("strong", {}, now.toFixed(4)), ` nats per character on ${data.sample.chars} characters of its validation text`];
  const change = () => [`without ${out.join(", ")}: `, el("strong", {}, signed(now - whole)), ` against the whole model's ${whole.toFixed(4)}`];
  if (out.length) nodes.push(el("br"), ...change());
  else nodes.push(": the whole model");
  if (out.length === 1 && partOf.has(out[0])) nodes.push(` (measured on more text: ${signed(partOf.get(out[0]).cost)})`);
  place.replaceChildren(...nodes);
  place.dataset.loss = now;
}
