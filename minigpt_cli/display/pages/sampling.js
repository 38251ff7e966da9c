// From logits to the next token, in the order of minigpt_cli/generation/sampling.py: temperature, top-k, top-p, min-p.

function probabilities(logits) { return softmax(Float64Array.from(logits)); }

const keepIf = (logits, keeps) => logits.map((logit, i) => keeps(logit, i) ? logit : -Infinity);

function filtered(logits, { temperature = 1, top_k = 0, top_p = 1, min_p = 0 }) {
  let kept = Float64Array.from(logits);
  const top = kept.reduce((a, b) => Math.max(a, b), -Infinity);
  if (temperature) kept = kept.map((logit) => (logit - top) / temperature);
  if (top_k > 0 && top_k < kept.length) {
    const least = kept.slice().sort()[kept.length - top_k];
    kept = keepIf(kept, (logit) => logit >= least);
  }
  if (top_p < 1) {  // the smallest set of most probable tokens whose probabilities add up to at least top_p
    const p = probabilities(kept), order = [...p.keys()].sort((a, b) => kept[b] - kept[a]), inside = new Set();
    let before = 0;
    for (const id of order) { if (before < top_p) inside.add(id); before += p[id]; }
    kept = keepIf(kept, (_, id) => inside.has(id));
  }
  if (min_p > 0) {
    const least = kept.reduce((a, b) => Math.max(a, b), -Infinity) + Math.log(min_p);
    kept = keepIf(kept, (logit) => logit >= least);
  }
  return kept;
}

// The token at which the cumulative probability exceeds `uniform` in [0, 1); temperature 0: the most probable one.
function choose(logits, settings, uniform) {
  if (settings.temperature === 0) return logits.indexOf(logits.reduce((a, b) => Math.max(a, b), -Infinity));
  const p = probabilities(filtered(logits, settings));
  let sum = 0;
  for (let id = 0; id < p.length; id++) { sum += p[id]; if (sum > uniform) return id; }
  return p.findLastIndex((value) => value > 0);
}

// Writes token by token after `ids`. What no longer fits is left out: a model of learned positions goes on with the newest half of its
// window, one with rotary positions forgets the oldest token.
class Continuation {
  constructor(model, ids) {
    this.model = model;
    this.c = model.config;
    this.ids = [...ids];
    this.read(this.c.block_size);
  }
  read(most) {  // a context anew: the newest tokens, at most so many, of the newest document if attention stays inside documents
    const context = this.ids.slice(-most);
    this.cache = newCache(this.c, this.c.block_size);
    this.logits = forward(this.model, context.slice(Math.max(0, context.lastIndexOf(this.c.end_of_text))), { cache: this.cache, last: 1 });
  }
  next(settings) {  // the next id
    const id = choose(this.logits, settings, Math.random());
    this.ids.push(id);
    const isFull = !this.c.rope_theta && this.cache.length >= this.c.block_size;
    if (isFull || id === this.c.end_of_text) this.read(Math.max(1, Math.floor(this.c.block_size / 2)));
    else this.logits = forward(this.model, [id], { cache: this.cache, last: 1 });
    return id;
  }
}
