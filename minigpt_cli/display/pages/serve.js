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
  }
  offer(models, chosen) {
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
    this.view.clear(settings.prompt);
    if (!this.select.value) return this.say("");
    const began = performance.now();
    let count = 0, nats = 0, reason = "";
    const show = () => {
      const rate = count / (performance.now() - began) * 1000;
      this.say(count + " tokens, " + rate.toFixed(0) + " a second, " + (count ? nats / count : 0).toFixed(3) + " nats per token, seed " + settings.seed + (reason ? ", " + reason : ""));
    };
    this.say("…");
    try {
      const answer = await fetch("v1/completions", { method: "POST", signal, headers: headers(),
        body: JSON.stringify({ ...settings, model: this.select.value, stream: true, logprobs: 5 }) });
      if (answer.status === 401) { this.say(""); return askForKey(); }
      if (!answer.ok) throw new Error((await answer.json()).error.message);
      for await (const event of events(answer.body)) {
        if (event.error) throw new Error(event.error.message);
        const { logprobs, finish_reason } = event.choices[0];
        logprobs.tokens.forEach((token, i) => {
          this.view.add(token, Math.exp(logprobs.token_logprobs[i]), Object.entries(logprobs.top_logprobs[i]).map(([n, l]) => [n, Math.exp(l)]));
          nats -= logprobs.token_logprobs[i]; count += 1;
        });
        reason = finish_reason ? { length: "all written", stop: "stopped" }[finish_reason] : "";
        show();
      }
      if (count) this.view.choose(count - 1);
    } catch (error) {
      if (error.name === "AbortError") { reason = "stopped by you"; show(); } else this.say(error.message, true);
    }
  }
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
    button.addEventListener("click", () => { byId("prompt").value = prompt; byId("prompt").focus(); });
    return button;
  }));
}
panes[0].select.addEventListener("change", showExamples);

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
});
byId("stop").addEventListener("click", () => stop?.abort());
byId("prompt").addEventListener("keydown", (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) byId("form").requestSubmit(); });
list().then(() => document.body.setAttribute("data-ready", ""));
