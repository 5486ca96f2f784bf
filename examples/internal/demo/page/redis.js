// The card that breaks Redis.
const form = document.querySelector("#break");
const buttons = [...form.querySelectorAll("button")];
const text = document.querySelector("#redis-text");

export function showRedis({ mode, state }) {
  document.body.dataset.mode = mode;
  document.body.dataset.state = state;
  for (const b of buttons) b.setAttribute("aria-pressed", b.value === mode);
  let t = buttons.find((b) => b.value === mode).dataset.text;
  if (mode === "working" && state === "down") t = "Redis does not answer. Everything below goes on without it.";
  if (text.textContent !== t) text.textContent = t;
}

form.addEventListener("submit", async (e) => {
  e.preventDefault();
  const answer = await fetch(form.action, {
    method: "POST",
    headers: { Accept: "application/json" },
    body: new URLSearchParams({ mode: e.submitter.value }),
  });
  if (answer.ok) showRedis(await answer.json());
});
