// Times come in UTC; show them as the clock on the wall does.
export function localTimes(root) {
  for (const t of root.querySelectorAll("time")) {
    t.textContent = new Date(t.dateTime).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  }
}
