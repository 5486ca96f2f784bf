// The card of rate limits: one request, ten at once, or five a second.
import { Lane } from "./lane.js";

const $ = (id) => document.getElementById(id);
const lanes = new Map([...document.querySelectorAll(".lane")].map((el) => [el.id.slice("lane-".length), new Lane(el)]));
const meter = $("meter");
let fullAgain = 0; // when nothing is used any more, by this page's clock
let nextTry = 0; // when a denied request would be admitted
let sums = { allowed: 0, denied: 0 }; // since the last word to screen readers

const sources = {
  redis: "by Redis",
  denied: "by an earlier denial, without asking Redis",
  local: "in this process, Redis can’t be asked",
  open: "uncounted, Redis can’t be asked",
  closed: "unasked, Redis can’t be asked",
};

async function attempt() {
  const start = performance.now();
  const query = new URLSearchParams({ algorithm: $("algorithm").value, failure: $("failure").value });
  const answer = await fetch("/api/try?" + query, { headers: { Accept: "application/json" } });
  const { decision, compared } = await answer.json();
  const took = performance.now() - start;
  for (const v of compared) lanes.get(v.algorithm).add(v.allowed);
  sums[decision.allowed ? "allowed" : "denied"]++;
  show(answer, decision, took);
}

function show(answer, d, took) {
  const used = d.limit - d.remaining;
  if (d.limit > 0) {
    meter.max = d.limit;
    meter.low = d.limit / 2;
    meter.high = d.limit * 0.8;
    meter.value = used;
    $("meter-text").textContent = `${used} of ${d.limit} used`;
  } else {
    meter.value = 0;
    $("meter-text").textContent = "not counted";
  }
  const now = performance.now();
  fullAgain = now + d.reset_after_ms;
  nextTry = d.allowed ? 0 : now + d.retry_after_ms;
  const badge = document.createElement("span");
  badge.className = "badge " + (d.allowed ? "ok" : "bad");
  badge.textContent = d.allowed ? "allowed" : answer.status + " denied";
  $("verdict").replaceChildren(badge, ` ${sources[d.source]}, in ${took.toFixed(took < 10 ? 1 : 0)} ms`);

  const fields = [["status", `${answer.status} ${answer.status === 429 ? "Too Many Requests" : answer.status === 503 ? "Service Unavailable" : "OK"}`]];
  for (const name of ["RateLimit-Policy", "RateLimit", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"]) {
    if (answer.headers.has(name)) fields.push([name, answer.headers.get(name)]);
  }
  $("headers").querySelector("dl").replaceChildren(...fields.flatMap(([name, value]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    return [dt, dd];
  }));
}

// The meter falls only when somebody asks, so the countdown says what is known.
function tick() {
  const now = performance.now();
  const seconds = (t) => ((t - now) / 1000).toFixed(1) + " s";
  if (nextTry > now) $("countdown").textContent = "again in " + seconds(nextTry);
  else if (fullAgain > now) $("countdown").textContent = "all free in " + seconds(fullAgain);
  else if (fullAgain) {
    fullAgain = 0;
    meter.value = 0;
    $("meter-text").textContent = `0 of ${meter.max} used`;
    $("countdown").textContent = "all free";
  }
  for (const [name, lane] of lanes) lane.draw(name === $("algorithm").value);
}
setInterval(tick, 250);

// Screen readers are told at most every two seconds.
setInterval(() => {
  if (sums.allowed + sums.denied === 0) return;
  $("limit-status").textContent = `${sums.allowed} allowed, ${sums.denied} denied. ${$("meter-text").textContent}.`;
  sums = { allowed: 0, denied: 0 };
}, 2000);

$("try").addEventListener("submit", (e) => { e.preventDefault(); attempt(); });
$("try-ten").addEventListener("click", () => { for (let i = 0; i < 10; i++) attempt(); });
let holding = 0;
$("try-hold").addEventListener("click", (e) => {
  clearInterval(holding);
  holding = holding ? 0 : setInterval(attempt, 200);
  if (holding) attempt();
  e.target.setAttribute("aria-pressed", holding !== 0);
});
