"use strict";
// A text whose tokens are tinted by how surprising each was, with the alternatives of the one under the mouse or chosen by arrow keys.
const visible = (s) => s.replace(/^bytes:/, "").replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/g,
  (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const safe = (s) => s.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, visible);
// A token that is no whole character is named by its bytes, bytes:\xe2\x82; in the text the character comes with its last one.
const bytesOf = (name) => name.startsWith("bytes:\\x") ? Uint8Array.from(name.slice(8).split("\\x"), (hex) => parseInt(hex, 16)) : new TextEncoder().encode(name);
// 0 for a certain token, 1 for one of probability below 1 in 1,000: steps of probability look alike on a log scale.
const surprise = (p) => Math.min(1, Math.max(0, -Math.log10(Math.max(p, 1e-9)) / 3));

class TokenView {
  constructor(text, table) {
    this.text = text; this.table = table; this.tokens = []; this.chosen = -1;
    text.addEventListener("mouseover", (e) => { if (e.target.dataset.at) this.choose(+e.target.dataset.at, false); });
    text.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[e.key];
      if (!step || !this.tokens.length) return;
      e.preventDefault();
      this.choose(Math.min(this.tokens.length - 1, Math.max(0, this.chosen + step)));
    });
  }
  clear(prompt) {
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.tokens = []; this.chosen = -1; this.text.replaceChildren(); this.table.replaceChildren();
    if (prompt) this.context(prompt);
  }
  context(text) {
    const p = document.createElement("span"); p.className = "dim"; p.textContent = safe(text); this.text.append(p);
  }
  // A text of several tokens comes with its `text` and its mean `strength`; `token` is then the least probable of them.
  add(token, p, alternatives, text = this.decoder.decode(bytesOf(token), { stream: true }), strength = surprise(p)) {
    const span = document.createElement("span");
    span.className = "token tint"; span.dataset.at = this.tokens.length; span.style.setProperty("--t", strength.toFixed(3));
    span.textContent = safe(text);
    this.tokens.push({ token, p, alternatives, span });
    this.text.append(span);
  }
  choose(at, scroll = true) {
    if (this.tokens[this.chosen]) this.tokens[this.chosen].span.classList.remove("chosen");
    this.chosen = at;
    const one = this.tokens[at];
    one.span.classList.add("chosen");
    if (scroll) one.span.scrollIntoView({ block: "nearest" });
    const listed = one.alternatives.some(([name]) => name === one.token) ? one.alternatives : [...one.alternatives, [one.token, one.p]];
    this.table.replaceChildren(...listed.map(([name, p]) => {
      const row = document.createElement("tr"), cells = ["name", "p", "bar"].map((kind) => {
        const cell = document.createElement("td"); cell.className = kind; row.append(cell); return cell;
      });
      if (name === one.token) row.className = "is";
      cells[0].textContent = visible(name);
      cells[1].textContent = p.toFixed(3);
      const bar = document.createElement("i"); bar.style.width = (100 * p).toFixed(1) + "%"; cells[2].append(bar);
      return row;
    }));
  }
}

function legend(place, unit = "probability", marks = [[1, "1"], [0.5, "½"], [0.1, "1/10"], [0.01, "1/100"], [0.001, "1/1000"]]) {
  place.className = "legend dim";
  place.append(unit + " ");
  for (const [p, word] of marks) {
    const span = document.createElement("span"); span.className = "tint"; span.style.setProperty("--t", surprise(p)); span.textContent = word; place.append(span);
  }
}
