// A text that was saved with its probabilities: the page's data, shown.
const data = JSON.parse(document.getElementById("data").textContent);
legend(document.getElementById("legend"));
const view = new TokenView(document.getElementById("text"), document.getElementById("alternatives"));
view.clear(data.prompt);
for (const [token, p, alternatives] of data.tokens) view.add(token, p, alternatives);
if (data.tokens.length) view.choose(0);
