// The page's one stream, and who listens to it. The forms work without this.
import { showLive } from "./live.js";
import { showRedis } from "./redis.js";
import { profileChanged } from "./profile.js";
import { localTimes } from "./times.js";
import "./limit.js";

document.documentElement.classList.add("js");
localTimes(document);

const status = document.querySelector("#stream");
const stream = new EventSource("/events");
stream.addEventListener("open", () => { status.textContent = "Live: changes show at once."; });
stream.addEventListener("error", () => { status.textContent = "Connection lost, trying again…"; });
stream.addEventListener("redis", (e) => showRedis(JSON.parse(e.data)));
stream.addEventListener("live", (e) => showLive(JSON.parse(e.data)));
stream.addEventListener("profile", (e) => profileChanged(JSON.parse(e.data)));
stream.addEventListener("devices", (e) => {
  // The card comes as the server's own template has it. Whoever has the focus
  // in it keeps it.
  const body = document.querySelector("#devices-body");
  const focused = body.contains(document.activeElement) ? document.activeElement.id : "";
  body.innerHTML = e.data;
  localTimes(body);
  if (focused) document.getElementById(focused)?.focus();
});
addEventListener("pagehide", () => stream.close());
addEventListener("pageshow", (e) => { if (e.persisted) location.reload(); });
