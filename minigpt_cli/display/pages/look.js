// The page of `runs look`: a text box whose text is tinted by surprise, what comes next, and how it is drawn.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const tokenizer = new Tokenizer(data.model.tokenizer), model = loadModel(data.model), c = model.config, V = tokenizer.vocabSize;
const LIMIT = Math.min(c.block_size, 128);  // tokens that the page reads
const TOO_LONG = `Only the first ${LIMIT} tokens are read.`;
const SETTINGS = ["temperature", "top_k", "top_p", "min_p"];
const ADDED = new Set(Object.values(data.model.tokenizer.added));  // such as the end of a document

// What is looked at: ids (first those that precede every text), where the text ends behind each, the chosen place, the parts that are
// taken out, the head that is pointed at, and everything that was computed.
const look = { ids: [], ends: [], at: 0, without: new Set(), head: null, watch: {}, logits: null, surprises: [] };

function el(name, attributes = {}, ...content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style") made.style.cssText = value;  // an attribute of this name would need a rule that allows it
    else if (value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...content);
  return made;
}

const rowOf = (at) => look.logits.subarray(at * V, at * V + V);
const nameOf = (id) => ADDED.has(id) ? "■" : visible(tokenizer.name(id));

// ---- the text

function read() {
  const box = byId("typed"), { text: known, unknown } = tokenizer.readable(box.value);
  if (known !== box.value) {
    const caret = box.selectionStart - (box.value.length - known.length);
    box.value = known;
    box.setSelectionRange(caret, caret);
  }
  const ids = [...data.start, ...tokenizer.encode(known)];
  byId("said").textContent = unknown.size ? tokenizer.neverSeen(unknown) + ": left out." : ids.length > LIMIT ? TOO_LONG : "";
  look.ids = ids.length ? ids.slice(0, LIMIT) : data.empty;
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  let end = 0;
  look.ends = look.ids.map((id, t) => end += t < data.start.length || !known ? 0 : decoder.decode(tokenizer.bytes(id), { stream: true }).length);
  compute();
}

function compute() {
  look.watch = {};
  look.logits = forward(model, look.ids, { without: look.without, watch: look.watch });
  look.surprises = look.ids.map((id, t) => t ? surprise(probabilities(rowOf(t - 1))[id]) : 0);
  show();
}

function show() {  // for the last token that ends at the caret or before it
  const caret = byId("typed").selectionStart;
  look.at = Math.max(0, look.ends.findLastIndex((end) => end <= caret));
  showTints();
  showNext();
  showTower();
  showHeads();
  showStrip();
  showStation();
}

function showTints() {
  byId("tints").replaceChildren(...tintedText(look.surprises, 1), byId("typed").value.slice(look.ends.at(-1)) + "\n");
}

// The tokens of the text, tinted by a number from 0 to 1 for each.
function tintedText(strengths, colour) {
  const text = byId("typed").value;
  return look.ends.map((end, t) => el("span", { "data-place": t, class: "tint" + (t === look.at ? " chosen" : ""),
    style: `--t:${strengths[t].toFixed(3)};--of:var(--c${colour})` }, text.slice(look.ends[t - 1] ?? 0, end)));
}

// ---- what comes next

const settings = () => Object.fromEntries(SETTINGS.map((name) => [name, Number(byId(name).value)]));

// The distribution after the settings; at temperature 0 all of it is on the most probable token.
function afterSettings(logits) {
  const chosen = settings();
  if (chosen.temperature) return probabilities(filtered(logits, chosen));
  const best = choose(logits, chosen);
  return Float64Array.from(logits, (_, id) => id === best ? 1 : 0);
}

function showNext() {
  const logits = rowOf(look.at), before = probabilities(logits), after = afterSettings(logits), following = look.ids[look.at + 1];
  const order = [...before.keys()].sort((a, b) => before[b] - before[a]).slice(0, 10);
  if (following !== undefined && !order.includes(following)) order.push(following);
  const heading = ["token", "model", "drawn", ""].map((name) => el("span", { role: "columnheader" }, name));
  const rows = order.map((id) => nextRow(id, before[id], after[id], id === following));
  const left = after.filter((p) => p > 0).length;
  byId("after").textContent = nameOf(look.ids[look.at]);
  byId("next").replaceChildren(el("div", { class: "dim", role: "row" }, ...heading), ...rows);
  byId("kept").textContent = `Model: its probability. Drawn: with the settings below, which leave ${left} of ${V} tokens.`
    + (following === undefined ? "" : " Bold: what stands in the text.");
  for (const name of SETTINGS) {
    const value = Number(byId(name).value);
    byId(name).parentElement.querySelector("output").textContent = name === "top_k" ? value || "all" : value.toFixed(2);
  }
}

function nextRow(id, before, after, isFollowing) {
  const cell = (text, name = "") => el("span", { role: "cell", class: name }, text), width = (p) => ({ style: `width:${100 * p}%` });
  const bars = el("span", { class: "bars", "aria-hidden": "true" }, el("i", width(before)), el("b", width(after)));
  const row = el("div", { role: "row" }, cell(nameOf(id), "name"), cell(before.toFixed(3)), cell(after.toFixed(3)), bars);
  row.classList.toggle("is", isFollowing);
  row.classList.toggle("gone", !after);
  return row;
}

// Draws tokens and writes them behind the text; bytes wait until they are a whole character.
async function draw(count) {
  const box = byId("typed");
  let waiting = [];
  for (let i = 0; i < count && look.ids.length + waiting.length < LIMIT; i++) {
    const before = [...look.ids, ...waiting];
    const logits = waiting.length ? forward(model, before, { last: 1, without: look.without }) : rowOf(look.ids.length - 1);
    waiting.push(choose(logits, settings(), Math.random()));
    if (ADDED.has(waiting.at(-1))) { byId("said").textContent = "It ended the text here."; return; }
    const text = tokenizer.text(waiting);
    if (text === null) continue;
    box.value += text;
    box.setSelectionRange(box.value.length, box.value.length);
    waiting = [];
    read();
    await new Promise(requestAnimationFrame);
  }
  if (look.ids.length >= LIMIT) byId("said").textContent = `The page reads ${LIMIT} tokens: remove some to draw more.`;
}

// ---- the beginning

function start() {
  legend(byId("legend"));
  byId("typed").value = data.text;
  byId("typed").setSelectionRange(data.text.length, data.text.length);
  byId("typed").addEventListener("input", read);
  document.addEventListener("selectionchange", () => { if (document.activeElement === byId("typed")) show(); });
  for (const name of SETTINGS) byId(name).addEventListener("input", showNext);
  byId("draw").addEventListener("click", () => draw(1));
  byId("draw_many").addEventListener("click", () => draw(40));
  makeSwitches();
  makeStations();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  read();
  showLoss();
  document.body.setAttribute("data-ready", "");
}
addEventListener("DOMContentLoaded", start);
