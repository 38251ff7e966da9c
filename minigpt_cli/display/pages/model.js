"use strict";
// A GPT in plain JavaScript: the formulas of minigpt_cli/models, with their names, in Float32.
// A matrix is a Float32Array, row after row. Shapes: T tokens, C channels, H heads, K key/value heads (each serves H / K heads),
// D = C / H, F hidden width of a feed-forward, E experts, V vocabulary.
// As plain.py does, forward() records every value by name in `watch`, and leaves out the parts in the set `without`; there `head 0.1`,
// `mlp 0` and `layer 0` are replaced by the means that Python measured, model.means.

// ---- weights: float16, or int8 with one float32 factor for each row, as base64

function halfTable() {  // the number that each of the 65,536 float16 patterns means
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    table[bits] = bits & 0x8000 ? -size : size;
  }
  return table;
}

function bytesOfBase64(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// saved: { config, tensors: [[name, shape, "f16" | "int8"]…], weights: base64 of the tensors one after another }
function loadModel(saved) {
  const bytes = bytesOfBase64(saved.weights), half = halfTable(), weights = {};
  let at = 0;
  const take = (n) => bytes.slice(at, at += n).buffer;
  for (const [name, shape, format] of saved.tensors) {
    const n = shape.reduce((a, b) => a * b, 1), values = new Float32Array(n);
    if (format === "f16") {
      const patterns = new Uint16Array(take(2 * n));
      for (let i = 0; i < n; i++) values[i] = half[patterns[i]];
    } else {
      const width = n / shape[0], factors = new Float32Array(take(4 * shape[0])), steps = new Int8Array(take(n));
      for (let i = 0; i < n; i++) values[i] = steps[i] * factors[Math.floor(i / width)];
    }
    weights[name] = values;
  }
  return { config: saved.config, weights, means: saved.means ?? {} };
}

// ---- layers.py

function linear(x, weight, nIn, bias) {  // (T, nIn) -> (T, nOut): x @ weight.T + bias; four rows of the weight at a time
  const T = x.length / nIn, nOut = weight.length / nIn, y = new Float32Array(T * nOut);
  for (let o = 0; o < nOut; o += 4) {
    const last = nOut - 1, w0 = o * nIn, w1 = Math.min(o + 1, last) * nIn, w2 = Math.min(o + 2, last) * nIn, w3 = Math.min(o + 3, last) * nIn;
    for (let t = 0; t < T; t++) {
      const from = t * nIn, to = t * nOut + o;
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0; i < nIn; i++) {
        const xi = x[from + i];
        a += xi * weight[w0 + i]; b += xi * weight[w1 + i]; c += xi * weight[w2 + i]; d += xi * weight[w3 + i];
      }
      y[to] = a;
      if (o < last) y[to + 1] = b;
      if (o + 1 < last) y[to + 2] = c;
      if (o + 2 < last) y[to + 3] = d;
    }
  }
  if (bias) for (let i = 0; i < y.length; i++) y[i] += bias[i % nOut];
  return y;
}

function layerNorm(x, weight, bias, eps) {  // (T, C)
  const C = weight.length, y = new Float32Array(x.length);
  for (let at = 0; at < x.length; at += C) {
    let mean = 0, square = 0;
    for (let i = 0; i < C; i++) mean += x[at + i] / C;
    for (let i = 0; i < C; i++) square += (x[at + i] - mean) ** 2 / C;
    const scale = 1 / Math.sqrt(square + eps);
    for (let i = 0; i < C; i++) y[at + i] = (x[at + i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }
  return y;
}

function rmsNorm(x, weight, eps) {  // (…, C)
  const C = weight.length, y = new Float32Array(x.length);
  for (let at = 0; at < x.length; at += C) {
    let square = 0;
    for (let i = 0; i < C; i++) square += x[at + i] ** 2 / C;
    const scale = 1 / Math.sqrt(square + eps);
    for (let i = 0; i < C; i++) y[at + i] = x[at + i] * scale * weight[i];
  }
  return y;
}

function norm(x, name, { config: c, weights: w }, without) {
  if (without.has("norm")) return x;
  return c.rms_norm ? rmsNorm(x, w[name + ".weight"], c.eps) : layerNorm(x, w[name + ".weight"], w[name + ".bias"], c.eps);
}

function softmax(x) {  // in place
  let top = -Infinity, sum = 0;
  for (const value of x) if (value > top) top = value;
  for (let i = 0; i < x.length; i++) { x[i] = Math.exp(x[i] - top); sum += x[i]; }
  for (let i = 0; i < x.length; i++) x[i] /= sum;
  return x;
}

function erf(x) {  // to 1.2e-7 (Press et al., Numerical Recipes)
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const terms = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223];
  const tail = t * Math.exp(-x * x + terms.reduce((sum, term) => sum * t + term, 0));
  return x >= 0 ? 1 - tail : tail - 1;
}

const ACTIVATIONS = {
  relu: (x) => Math.max(x, 0),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};

function feedForward(x, w, at, c) {  // (T, C) -> (T, F) -> (T, C)
  const hidden = linear(x, w[at + "up.weight"], c.n_embd, w[at + "up.bias"]);
  return linear(hidden.map(ACTIVATIONS[c.activation]), w[at + "down.weight"], hidden.length / x.length * c.n_embd, w[at + "down.bias"]);
}

function swiglu(x, gateUp, down, C) {  // (T, C) -> (T, 2F) -> (T, F) -> (T, C): silu(gate) * up, gate's rows first
  const F = gateUp.length / C / 2, both = linear(x, gateUp, C), hidden = new Float32Array(both.length / 2);
  for (let i = 0; i < hidden.length; i++) {
    const at = Math.floor(i / F) * 2 * F + i % F, gate = both[at];
    hidden[i] = gate / (1 + Math.exp(-gate)) * both[at + F];
  }
  return linear(hidden, down, F);
}

// ---- moe.py

function experts(x, w, at, c, see) {  // (T, C) -> (T, C): each token's best experts, weighted by the router's probabilities
  const C = c.n_embd, E = c.n_experts, gateUp = w[at + "gate_up"], down = w[at + "down"], y = new Float32Array(x.length);
  const probs = linear(x, w[at + "router.weight"], C);  // (T, E)
  for (let t = 0; t < x.length / C; t++) {
    const p = softmax(probs.subarray(t * E, (t + 1) * E)), row = x.subarray(t * C, (t + 1) * C);
    const score = (e) => p[e] + (w[at + "balance_bias"]?.[e] ?? 0);  // the bias counts in the choice alone
    const chosen = [...p.keys()].sort((a, b) => score(b) - score(a)).slice(0, c.moe_top_k);
    const total = c.moe_norm_topk ? chosen.reduce((sum, e) => sum + p[e], 0) : 1;
    for (const e of chosen) {
      const part = (matrix) => matrix.subarray(e * matrix.length / E, (e + 1) * matrix.length / E);
      const out = swiglu(row, part(gateUp), part(down), C);
      for (let i = 0; i < C; i++) y[t * C + i] += p[e] / total * out[i];
    }
  }
  see("router", probs);
  return y;
}

// ---- attention.py

function rotate(x, positions, nHead, D, theta) {  // (T, nHead, D) in place: each pair of channels (d, d + D/2) turned by its position's angle
  for (let d = 0; d < D / 2; d++) {
    const frequency = Math.fround(theta ** (-2 * d / D));
    for (let t = 0; t < positions.length; t++) {
      const angle = Math.fround(positions[t] * frequency), cos = Math.cos(angle), sin = Math.sin(angle);
      for (let h = 0; h < nHead; h++) {
        const i = (t * nHead + h) * D + d, j = i + D / 2, a = x[i], b = x[j];
        x[i] = a * cos - b * sin;
        x[j] = b * cos + a * sin;
      }
    }
  }
}

// Keys and values of the tokens seen so far. Once `window` are held, a new one replaces the oldest.
function newCache(c, window) {
  const size = window * c.n_kv_head * c.n_embd / c.n_head, layers = [...Array(c.n_layer)];
  return { window, length: 0, keys: layers.map(() => new Float32Array(size)), values: layers.map(() => new Float32Array(size)) };
}

// q (T, H, D) over the keys and values of the cache, which holds this layer's k and v: (T, H, D)
function attend(q, keys, values, c, cache, begins, without, see) {
  const H = c.n_head, K = c.n_kv_head, D = c.n_embd / H, T = q.length / c.n_embd, y = new Float32Array(q.length);
  const kept = see.watches && new Float32Array(H * T * T), scores = new Float32Array(cache.window), scale = without.has("scale") ? 1 : D ** -0.5;
  for (let t = 0; t < T; t++) {
    const end = without.has("mask") ? T : Math.min(cache.length + t + 1, cache.window), begin = begins ? begins[t] : 0;
    for (let h = 0; h < H; h++) {
      const from = (t * H + h) * D, shared = Math.floor(h / (H / K)) * D, seen = scores.subarray(begin, end);
      for (let n = begin; n < end; n++) {
        const key = n * K * D + shared;
        let dot = 0;
        for (let d = 0; d < D; d++) dot += q[from + d] * keys[key + d];
        scores[n] = dot * scale;
      }
      softmax(seen);
      for (let n = begin; n < end; n++) {
        const value = n * K * D + shared, weight = scores[n];
        for (let d = 0; d < D; d++) y[from + d] += weight * values[value + d];
      }
      if (kept) kept.set(seen, (h * T + t) * T + begin);
    }
  }
  see("weights", kept);  // (H, T, T)
  return y;
}

function attention(x, model, layer, cache, begins, without, see) {  // (T, C) -> (T, C)
  const { config: c, weights: w, means } = model, at = `blocks.${layer}.attention.`;
  const H = c.n_head, K = c.n_kv_head, D = c.n_embd / H, T = x.length / c.n_embd;
  const qkv = linear(x, w[at + "qkv.weight"], c.n_embd, w[at + "qkv.bias"]);  // (T, (H + 2K) D): the rows of q, k, v
  const cut = (from, heads) => {
    const part = new Float32Array(T * heads * D), width = (H + 2 * K) * D;
    for (let t = 0; t < T; t++) part.set(qkv.subarray(t * width + from * D, t * width + (from + heads) * D), t * heads * D);
    return part;
  };
  let q = cut(0, H), k = cut(H, K);
  const v = cut(H + K, K);
  if (w[at + "q_norm.weight"]) { q = norm(q, at + "q_norm", model, without); k = norm(k, at + "k_norm", model, without); }
  see("q before rotation", q); see("k before rotation", k);
  if (c.rope_theta && !without.has("positions")) {
    const positions = Array.from({ length: T }, (_, t) => cache.length + t);
    rotate(q, positions, H, D, c.rope_theta);
    rotate(k, positions, K, D, c.rope_theta);
  }
  see("q", q); see("k", k); see("v", v);
  for (let t = 0; t < T; t++) {
    const slot = (cache.length + t) % cache.window * K * D;
    cache.keys[layer].set(k.subarray(t * K * D, (t + 1) * K * D), slot);
    cache.values[layer].set(v.subarray(t * K * D, (t + 1) * K * D), slot);
  }
  const y = attend(q, cache.keys[layer], cache.values[layer], c, cache, begins, without, see);
  see("head_out", y);
  for (let h = 0; h < H; h++) if (without.has(`head ${layer}.${h}`)) replace(y, h * D, c.n_embd, means[layer + ".head_out"].slice(h * D, (h + 1) * D));
  return linear(y, w[at + "out.weight"], c.n_embd, w[at + "out.bias"]);
}

// ---- transformer.py

function replace(x, at, C, values) {  // in every row of x (T, C), the channels from `at` on become `values`
  for (let row = at; row < x.length; row += C) x.set(values, row);
}

// Where the document of each token begins; a token that ends a document is read as the first of the next.
function documentBegins(ids, endOfText) {
  let begin = 0;
  return ids.map((id, t) => begin = id === endOfText ? t : begin);
}

// The logits (n, V) of the last n tokens of `ids`, after those that `cache` holds.
function forward(model, ids, { cache = null, last = ids.length, without = new Set(), watch = null } = {}) {
  const { config: c, weights: w, means } = model, C = c.n_embd, T = ids.length;
  const begins = c.end_of_text == null || cache ? null : documentBegins(ids, c.end_of_text);  // what a cache holds is one document
  cache ??= newCache(c, T);
  let x = embed(model, ids, cache.length, without);
  const add = (y) => { x = without.has("residual") ? y.slice() : x.map((value, i) => value + y[i]); };
  for (let layer = 0; layer < c.n_layer; layer++) {
    const at = `blocks.${layer}.`, see = (name, values) => { if (watch) watch[`${layer}.${name}`] = values.slice(); };
    see.watches = watch !== null;
    see("stream", x);
    const normed = norm(x, at + "norm1", model, without);
    see("norm1", normed);
    const mixed = attention(normed, model, layer, cache, begins, without, see);
    if (without.has("attention")) mixed.fill(0);
    else if (without.has("layer " + layer)) replace(mixed, 0, C, means[layer + ".attention_out"]);
    see("attention_out", mixed);
    add(mixed);
    see("middle", x);
    const read = norm(x, at + "norm2", model, without);
    see("norm2", read);
    const fed = c.n_experts ? experts(read, w, at + "moe.", c, see)
      : c.activation ? feedForward(read, w, at + "mlp.", c) : swiglu(read, w[at + "mlp.gate_up.weight"], w[at + "mlp.down.weight"], C);
    if (without.has("mlp")) fed.fill(0);
    else if (without.has("mlp " + layer) || without.has("layer " + layer)) replace(fed, 0, C, means[layer + ".mlp_out"]);
    see("mlp_out", fed);
    add(fed);
  }
  cache.length += T;
  if (watch) watch[c.n_layer + ".stream"] = x;
  return unembed(model, x.subarray((T - last) * C), without);
}

function embed({ config: c, weights: w }, ids, start, without) {  // (T, C): the row of each token and, in classic, that of its position
  const C = c.n_embd, x = new Float32Array(ids.length * C), rows = w["token_embedding.weight"], positions = w["position_embedding.weight"];
  const mean = positions && without.has("positions") && meanRow(positions, C);
  ids.forEach((id, t) => {
    for (let i = 0; i < C; i++) x[t * C + i] = rows[id * C + i] + (mean ? mean[i] : positions ? positions[(start + t) * C + i] : 0);
  });
  return x;
}

function meanRow(matrix, C) {
  const mean = new Float64Array(C);
  matrix.forEach((value, i) => { mean[i % C] += value * C / matrix.length; });
  return mean;
}

// Logits (T, V) of a residual stream (T, C): its final norm, then the head, which may be the embedding.
function unembed(model, x, without = new Set()) {
  const w = model.weights;
  return linear(norm(x, "final_norm", model, without), w["head.weight"] ?? w["token_embedding.weight"], model.config.n_embd);
}
