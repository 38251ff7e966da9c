// A page that writes: the model continues a prompt, a few characters in each frame.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const tokenizer = new Tokenizer(data.model.tokenizer), model = loadModel(data.model);
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const PACE = calm ? Infinity : 90;  // characters a second, so that one can read along
const FRAME_MS = 12;  // of computing in each frame
let continuation = null, text = "", stopped = false, decoder = null;

const say = (message, wrong = false) => { byId("status").textContent = message; byId("status").classList.toggle("wrong", wrong); };
const settings = () => ({ temperature: Number(byId("temperature").value), top_k: 50 });
const words = [[0, "always the likeliest"], [0.5, "careful"], [0.9, "balanced"], [1.2, "bold"], [9, "wild"]];
function showSliders() {
  const t = Number(byId("temperature").value);
  byId("temperature_shown").textContent = t.toFixed(2) + ", " + words.find(([limit]) => t <= limit)[1];
  byId("length_shown").textContent = Number(byId("length").value).toLocaleString("en") + " characters";
}

function begin() {
  const prompt = byId("prompt").value, { before, after, start, empty } = data.reading;
  const ids = [...start, ...tokenizer.encode(prompt ? before + prompt + after : "")];
  continuation = new Continuation(model, ids.length ? ids : empty);
  decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  text = prompt;
  const shown = document.createElement("span");
  shown.className = "dim"; shown.textContent = prompt;
  byId("text").replaceChildren(shown, document.createElement("span"));
}

// Writes until `length` more characters are there, the text ends or it is stopped.
async function write(length) {
  const ends = data.reading.ends.map((name) => data.model.tokenizer.added[name]), from = text.length, began = performance.now();
  let ended = false;
  stopped = false;
  busy(true);
  say("Writing…");
  while (!stopped && !ended && text.length - from < length) {
    await new Promise(requestAnimationFrame);
    const now = performance.now(), due = Math.min(length, (now - began) / 1000 * PACE);
    while (text.length - from < due && performance.now() < now + FRAME_MS && !ended) {
      const id = continuation.next(settings());
      ended = ends.includes(id);
      if (!ended) text += decoder.decode(tokenizer.bytes(id), { stream: true });
    }
    byId("text").lastChild.textContent = text.slice(byId("text").firstChild.textContent.length);
  }
  busy(false);
  if (ended) text += "\n";  // what follows is another text
  byId("more").textContent = ended ? "Another" : "Go on";
  say((ended ? "The text has ended after " : stopped ? "Stopped after " : "Wrote ") + (text.length - from).toLocaleString("en") + " characters.");
}

function busy(is) {
  byId("text").classList.toggle("busy", is);
  for (const name of ["start", "more", "copy", "save"]) byId(name).disabled = is;
  byId("stop").disabled = !is;
}

byId("form").addEventListener("submit", async (e) => {
  e.preventDefault();
  if (byId("start").disabled) return;
  try { begin(); } catch (error) { return say(error.message + ": leave it out, it can only read and write what was in its text.", true); }
  byId("text").scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  await write(Number(byId("length").value));
});
byId("more").addEventListener("click", () => continuation && write(Number(byId("length").value)));
byId("stop").addEventListener("click", () => { stopped = true; });
byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {  // a browser may forbid it: the text is then selected, to be copied by hand
    getSelection().selectAllChildren(byId("text"));
    say("Selected: copy it with your browser.");
  }
});
byId("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = "data:text/plain;charset=utf-8," + encodeURIComponent(text);
  link.download = data.file;
  link.click();
  say("Saved as " + data.file + ".");
});
byId("prompt").addEventListener("keydown", (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) byId("form").requestSubmit(); });
for (const name of ["temperature", "length"]) byId(name).addEventListener("input", showSliders);
byId("examples").hidden = !data.examples.length;
byId("examples").append(...data.examples.map((example) => {
  const button = document.createElement("button");
  button.type = "button"; button.textContent = example;
  button.addEventListener("click", () => { byId("prompt").value = example; byId("prompt").focus(); });
  return button;
}));
byId("prompt").value = data.examples[0] ?? "";
showSliders();
document.body.setAttribute("data-ready", "");
