// The card of the cached profile.
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const reads = document.querySelector("#reads ol");
let freshUntil = 0, shown = null, mine = 0, asked = 0;

const ms = (us) => (us < 1000 ? us + " µs" : (us / 1000).toPrecision(3) + " ms");

async function load() {
  const turn = ++asked;
  const answer = await fetch("/api/profile?id=1");
  const got = answer.ok ? await answer.json() : await answer.text();
  if (turn !== asked) return; // a later read shows newer news
  if (!answer.ok) return note(got);
  shown = got;
  $("profile-name").textContent = shown.profile.name;
  $("profile-city").textContent = shown.profile.city;
  $("source").textContent = $("source").dataset.source = shown.source;
  $("elapsed").textContent = ms(shown.elapsed_us);
  freshUntil = performance.now() + shown.ttl_ms;
  countdown();
  remember(shown);
}

// remember shows how long a read took, on a logarithmic scale from 1 µs to 1 s.
function remember({ source, elapsed_us }) {
  const li = document.createElement("li");
  const badge = document.createElement("span"), time = document.createElement("span");
  badge.className = "badge source";
  badge.textContent = badge.dataset.source = source;
  time.textContent = ms(elapsed_us);
  const svg = document.createElementNS(SVG, "svg"), bar = document.createElementNS(SVG, "rect");
  svg.setAttribute("viewBox", "0 0 100 4");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  bar.setAttribute("width", Math.max(1, (Math.log10(elapsed_us + 1) / 6) * 100));
  bar.setAttribute("height", 4);
  svg.append(bar);
  li.append(badge, time, svg);
  reads.prepend(li);
  while (reads.children.length > 5) reads.lastChild.remove();
}

function note(text) { $("profile-note").textContent = text; }

function countdown() {
  const left = Math.ceil((freshUntil - performance.now()) / 1000);
  $("ttl").textContent = !shown ? "" : left > 0 ? `fresh for ${left} s` : "not in the cache";
}
setInterval(countdown, 500);

// profileChanged is told of each invalidation, here and on other servers.
export function profileChanged({ keys, remote, cause }) {
  if (keys && !keys.includes("1")) return;
  freshUntil = 0;
  countdown();
  if (remote) note("Another server changed it; this one’s memory was emptied at once.");
  else if (performance.now() - mine > 1500) note("Somebody changed it.");
  else return;
  // Show the news, unless whoever announced it still writes: an update is told
  // twice, when it begins and when it is done.
  if (shown) load();
}

const post = (form) => {
  mine = performance.now();
  return fetch(form.action, { method: "POST", headers: { Accept: "application/json" }, body: new URLSearchParams(new FormData(form)) });
};

function on(id, then) {
  $(id).addEventListener("submit", async (e) => {
    e.preventDefault();
    then(e.target);
  });
}

on("profile-load", () => { note(""); load(); });
on("profile-invalidate", async (form) => {
  const answer = await post(form);
  note(!answer.ok ? await answer.text()
    : (await answer.json()).queued ? "Queued: until Redis is back, this server bypasses its cache." : "Removed from every cache. The next load asks the loader.");
});
on("profile-update", async (form) => {
  const city = form.elements.city.value;
  const answer = await post(form);
  note(answer.ok ? `Saved ${city}.` : await answer.text());
  if (answer.ok) {
    form.reset();
    load();
  }
});
on("profile-stampede", async (form) => {
  note("100 callers ask at once…");
  const answer = await post(form);
  if (!answer.ok) return note(await answer.text());
  const { callers, loads, elapsed_us } = await answer.json();
  note(`${callers} callers, ${loads} call${loads === 1 ? "" : "s"} of the loader, ${ms(elapsed_us)} for all.`);
  load();
});
