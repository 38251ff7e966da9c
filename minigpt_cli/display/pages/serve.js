// Two runs that continue one prompt, each token shown as it comes.
const byId = (id) => document.getElementById(id);
legend(byId("legend"));

class Pane {
  constructor(place, side) {
    this.place = place;
    this.select = document.createElement("select");
    this.select.setAttribute("aria-label", "Run on the " + side);
    this.figures = document.createElement("p"); this.figures.className = "figures dim"; this.figures.setAttribute("role", "status");
    const text = document.createElement("pre"); text.className = "text"; text.tabIndex = 0;
    text.setAttribute("aria-label", "What the run on the " + side + " writes; arrow keys go from token to token");
    const table = document.createElement("table"); table.className = "alternatives"; table.append(document.createElement("tbody"));
    place.append(this.select, text, this.figures, table);
    this.view = new TokenView(text, table.firstChild);
    this.turns = document.createElement("div"); this.turns.className = "turns";
    text.before(this.turns);
    this.messages = [];  // of a conversation so far
  }
  get chats() { return !!this.models?.find((m) => m.id === this.select.value)?.chat; }
  restart() { this.messages = []; this.turns.replaceChildren(); this.view.clear(""); this.say(""); }
  // Show what was said before the answer that is being written.
  tell(role, text) {
    const line = document.createElement("p"), who = document.createElement("b");
    who.textContent = role === "user" ? "You: " : "Answer: ";
    line.append(who, text); this.turns.append(line);
  }
  offer(models, chosen) {
    this.models = models;
    const none = new Option("(nothing)", "");
    this.select.replaceChildren(...models.map((m) => {
      const score = m.nats_per_char == null ? "" : ", " + m.nats_per_char.toFixed(3) + " nats per character";
      return new Option(m.id + " (" + m.arch + score + ")", m.id);
    }), none);
    this.select.value = chosen ?? "";
    this.select.hidden = models.length === 1;  // then there is nothing to choose
  }
  say(message, wrong) { this.figures.textContent = message; this.figures.classList.toggle("wrong", !!wrong); }
  async write(settings, signal) {
    const chats = this.chats, { prompt, ...sampling } = settings;
    if (chats) {
      if (this.messages.length) this.tell("assistant", this.messages.at(-1).content);
      this.messages.push({ role: "user", content: prompt });
      this.tell("user", prompt);
    }
    this.view.clear(chats ? "" : prompt);
    if (!this.select.value) return this.say("");
    const began = performance.now();
    let count = 0, nats = 0, reason = "", written = "";
    const show = () => {
      const rate = count / (performance.now() - began) * 1000;
      this.say(count + " tokens, " + rate.toFixed(0) + " a second, " + (count ? nats / count : 0).toFixed(3) + " nats per token, seed " + settings.seed + (reason ? ", " + reason : ""));
    };
    this.say("…");
    try {
      const asked = chats ? { ...sampling, messages: this.messages, logprobs: true, top_logprobs: 5 } : { ...settings, logprobs: 5 };
      const answer = await fetch(chats ? "v1/chat/completions" : "v1/completions", { method: "POST", signal, headers: headers(),
        body: JSON.stringify({ ...asked, model: this.select.value, stream: true }) });
      if (answer.status === 401) { this.say(""); return askForKey(); }
      if (!answer.ok) throw new Error((await answer.json()).error.message);
      for await (const event of events(answer.body)) {
        if (event.error) throw new Error(event.error.message);
        const { delta, text, logprobs, finish_reason } = event.choices[0];
        written += chats ? delta.content : text;
        for (const [token, logprob, top] of chats ? spoken(logprobs) : continued(logprobs)) {
          this.view.add(token, Math.exp(logprob), top.map(([n, l]) => [n, Math.exp(l)]));
          nats -= logprob; count += 1;
        }
        reason = finish_reason ? { length: "all written", stop: "stopped" }[finish_reason] : "";
        show();
      }
      if (count) this.view.choose(count - 1);
    } catch (error) {
      if (error.name === "AbortError") { reason = "stopped by you"; show(); } else { this.say(error.message, true); written = null; }
    }
    if (chats && written === null) this.messages.pop();  // the question was not answered
    else if (chats) this.messages.push({ role: "assistant", content: written });
  }
}

// Each token, its log-probability and the most probable ones, in the two forms of the protocol.
const continued = (l) => l.tokens.map((token, i) => [token, l.token_logprobs[i], Object.entries(l.top_logprobs[i])]);
const spoken = (l) => l.content.map((c) => [c.token, c.logprob, c.top_logprobs.map((t) => [t.token, t.logprob])]);

// A run that learned conversations is asked, any other one continues a text.
function setForm() {
  const chats = panes.some((pane) => pane.chats);
  byId("prompt").placeholder = chats ? "Ask something" : "The beginning of a text";
  byId("start").textContent = chats ? "Ask" : "Write";
  byId("again").hidden = !chats;
}

function headers() {
  const key = byId("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: "Bearer " + key } : {}) };
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

const panes = [new Pane(byId("left"), "left"), new Pane(byId("right"), "right")];
let stop = null, listed = false;

function askForKey() {
  listed = false;
  panes[0].say(byId("key").value ? "This API key is wrong: type it again." : "This server asks for an API key.", true);
  byId("key_label").hidden = false;
  byId("key").select();
}

async function list() {
  const answer = await fetch("v1/models", { headers: headers() });
  if (answer.status === 401) return askForKey();
  if (!answer.ok) return panes[0].say("The list of runs could not be read.", true);
  const models = (await answer.json()).data;
  listed = true;
  panes[0].offer(models, models[0]?.id);
  panes[1].offer(models, models[1]?.id);
  panes[1].place.hidden = models.length === 1;
  document.querySelector("h1").textContent = models.length === 1 ? models[0].id : document.title;
  setForm();
  panes[0].say(models.length ? "" : "No runs yet: train one with minigpt train.", !models.length);
  await showExamples();
}
byId("key").addEventListener("change", list);

// Prompts from the text of the run on the left.
async function showExamples() {
  const name = panes[0].select.value;
  const answer = name && await fetch("v1/models/" + encodeURIComponent(name), { headers: headers() });
  const prompts = answer && answer.ok ? (await answer.json()).prompts : [];
  if (name !== panes[0].select.value) return;  // another was chosen meanwhile
  byId("examples").hidden = !prompts.length;
  byId("examples").replaceChildren("from its text: ", ...prompts.map(({ shown, prompt }) => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = shown.trim();
    button.addEventListener("click", () => { byId("prompt").value = panes[0].chats ? shown : prompt; byId("prompt").focus(); });
    return button;
  }));
}
panes[0].select.addEventListener("change", showExamples);
for (const pane of panes) pane.select.addEventListener("change", () => { pane.restart(); setForm(); });
byId("again").addEventListener("click", () => panes.forEach((pane) => pane.restart()));

byId("form").addEventListener("submit", async (e) => {
  e.preventDefault();
  if (!listed) return list();
  stop = new AbortController();
  byId("start").disabled = true; byId("stop").disabled = false;
  const settings = { prompt: byId("prompt").value };
  for (const name of ["temperature", "top_k", "top_p", "max_tokens"]) settings[name] = Number(byId(name).value);
  settings.seed = byId("seed").value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] % 1e6 : Number(byId("seed").value);
  await Promise.all(panes.map((pane) => pane.write(settings, stop.signal)));
  byId("start").disabled = false; byId("stop").disabled = true;
  if (panes.some((pane) => pane.chats)) { byId("prompt").value = ""; byId("prompt").focus(); }
});
byId("stop").addEventListener("click", () => stop?.abort());
byId("prompt").addEventListener("keydown", (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) byId("form").requestSubmit(); });
list().then(() => document.body.setAttribute("data-ready", ""));
