// Text to token ids and back, as minigpt_cli/tokenization does: characters, bytes, or byte-level BPE with GPT-2's pattern.
// A token is a string of its bytes, one character (U+0000 to U+00FF) for each.

const bytesOfText = (text) => Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
const GPT2_WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

class Tokenizer {
  // saved: { kind: "char" | "byte" | "bpe", tokens: by id, added: {text: id}, merges: [left, right, both…] as ids, the first one first,
  //          lowercase, nfc: how texts were cleaned }
  constructor(saved) {
    this.saved = saved;
    this.idOf = new Map(saved.tokens.map((token, id) => [token, id]));
    this.rankOf = new Map();  // of a pair of ids: the number of its merge
    for (let i = 0; i < saved.merges.length; i += 3) this.rankOf.set(saved.merges[i] + " " + saved.merges[i + 1], i / 3);
    const added = Object.keys(saved.added).sort((a, b) => b.length - a.length);
    this.addedPattern = added.length ? new RegExp("(" + added.map((text) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("|") + ")") : null;
  }
  get vocabSize() { return this.saved.tokens.length; }
  clean(text) {  // as the run's text was cleaned
    if (this.saved.lowercase) text = text.toLowerCase();
    return this.saved.nfc ? text.normalize("NFC") : text;
  }
  // A cleaned text cut at added tokens, which are parts of their own.
  parts(text) { return this.addedPattern ? text.split(this.addedPattern) : [text]; }
  isAdded(part) { return Object.hasOwn(this.saved.added, part); }
  knows(character) { return this.saved.kind !== "char" || this.idOf.has(bytesOfText(character)); }
  // The text as the model can read it, and the characters that were left out.
  readable(text) {
    const unknown = new Set();
    const known = (character) => this.knows(character) || !unknown.add(character);
    const kept = this.parts(this.clean(text)).map((part) => this.isAdded(part) ? part : [...part].filter(known).join(""));
    return { text: kept.join(""), unknown };
  }
  // Ids of a text. Throws an Error that names characters which the tokenizer does not know.
  encode(text) {
    return this.parts(this.clean(text)).flatMap((part) => this.isAdded(part) ? [this.saved.added[part]] : this.encodePlain(part));
  }
  encodePlain(text) {
    if (this.saved.kind === "byte") return this.byteIds(text);
    if (this.saved.kind === "bpe") return (text.match(GPT2_WORDS) ?? []).flatMap((word) => this.merged(this.byteIds(word)));
    const characters = [...text], unknown = new Set(characters.filter((character) => !this.knows(character)));
    if (unknown.size) throw new Error(this.neverSeen(unknown));
    return characters.map((character) => this.idOf.get(bytesOfText(character)));
  }
  byteIds(text) { return [...bytesOfText(text)].map((byte) => this.idOf.get(byte)); }
  neverSeen(characters) { return "This model has never seen " + [...characters].slice(0, 8).join(" ") + (characters.size > 8 ? " …" : ""); }
  merged(ids) {  // the pair whose merge was learned first is merged first
    for (;;) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const rank = this.rankOf.get(ids[i] + " " + ids[i + 1]) ?? Infinity;
        if (rank < best) { best = rank; at = i; }
      }
      if (at < 0) return ids;
      ids.splice(at, 2, this.saved.merges[3 * best + 2]);
    }
  }
  bytes(id) { return Uint8Array.from(this.saved.tokens[id], (byte) => byte.charCodeAt(0)); }
  text(ids) {  // null where they are not whole characters
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(ids.flatMap((id) => [...this.bytes(id)])));
    } catch {
      return null;
    }
  }
  // A token as text; one that is no whole character as its bytes, bytes:\xe2\x82.
  name(id) {
    return this.text([id]) ?? "bytes:" + Array.from(this.bytes(id), (byte) => "\\x" + byte.toString(16).padStart(2, "0")).join("");
  }
}
