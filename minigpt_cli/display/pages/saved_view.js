// A text that was saved with its probabilities: the page's data, shown.
const data = JSON.parse(document.getElementById("data").textContent);
if (data.unit) legend(document.getElementById("legend"), data.unit, [0, 1, 2, 4, 7].map((nats) => [Math.exp(-nats), nats]));
else legend(document.getElementById("legend"));
const view = new TokenView(document.getElementById("text"), document.getElementById("alternatives"));
view.clear(data.prompt);
for (const one of data.tokens) typeof one === "string" ? view.context(one) : view.add(...one);
if (view.tokens.length) view.choose(0, false);
