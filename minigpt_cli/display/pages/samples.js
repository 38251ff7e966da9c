// What runs wrote while they were trained: a slider through the steps, and a mark on the chart of their losses.
const data = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("step"), shown = document.getElementById("step_shown");
const papers = document.querySelectorAll(".written .paper"), hints = document.querySelectorAll(".written .hint");
const moments = document.querySelectorAll(".moment");
const PAUSE_S = 3;  // without a movement, before the page is loaded again
let moved = -Infinity;  // when the slider was moved last, in milliseconds

function show() {
  const at = Number(slider.value), step = data.steps[at];
  shown.textContent = step.toLocaleString("en");
  slider.setAttribute("aria-valuetext", "step " + shown.textContent);
  moments.forEach((moment, i) => moment.classList.toggle("chosen", i === at));
  data.runs.forEach((run, n) => {
    const sample = run.samples[run.newest[at]], [prompt, text] = papers[n].children;
    prompt.textContent = sample ? sample.prompt : "";
    text.textContent = sample ? sample.text : "";
    const hint = !sample ? "has written nothing yet" : sample.step === step ? "" : "at step " + sample.step.toLocaleString("en");
    const kept = sample && run.kept.includes(sample.step) ? `(kept: minigpt generate ${run.name}@${sample.step})` : "";
    hints[n].textContent = [hint, kept].filter(Boolean).join(" ");
  });
}

function choose(at) {  // the address keeps a step other than the last, so that it is still chosen when the page is loaded again
  slider.value = at;
  moved = performance.now();
  location.replace(at < data.steps.length - 1 ? "#step=" + data.steps[at] : "#");
  show();
}

function again() {
  if (performance.now() - moved > 1000 * PAUSE_S) location.reload();
  else setTimeout(again, 1000);
}

if (slider) {
  const wanted = Number((location.hash.match(/^#step=(\d+)$/) || [])[1]);
  if (wanted) slider.value = Math.max(0, data.steps.findLastIndex((step) => step <= wanted));
  slider.addEventListener("input", () => choose(Number(slider.value)));
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.target !== document.body || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    choose(Math.min(data.steps.length - 1, Math.max(0, Number(slider.value) + by)));
  });
  show();
}
if (data.reload_s) setTimeout(again, 1000 * data.reload_s);
