// The charts of the last minute.
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const SECONDS = 60, HEIGHT = 20;
let points = [];

export function showLive({ points: fresh, minute }) {
  const last = points.length ? points[points.length - 1].at : 0;
  points = points.concat(fresh.filter((p) => p.at > last)).slice(-SECONDS);
  $("hit-rate").textContent = minute.hit_rate < 0 ? "–" : Math.round(minute.hit_rate * 100) + " %";
  $("decisions").textContent = minute.decisions_per_s.toFixed(1);
  $("p50").textContent = latency(minute.p50_us);
  $("p99").textContent = latency(minute.p99_us);
  $("redis-errors").textContent = minute.errors ? `${minute.errors} failed call${minute.errors === 1 ? "" : "s"} to Redis in the last minute` : "";
  bars("chart-hits", "hits", "misses");
  bars("chart-decisions", "allowed", "denied");
  line("chart-p50", "p50_us");
  line("chart-p99", "p99_us");
}

function latency(us) {
  return us < 0 ? "–" : us < 1000 ? us + " µs" : (us / 1000).toPrecision(3) + " ms";
}

const x = (i) => SECONDS - points.length + i;

function bars(id, good, bad) {
  const top = Math.max(1, ...points.map((p) => p[good] + p[bad]));
  const rects = [];
  points.forEach((p, i) => {
    let y = HEIGHT;
    for (const [n, kind] of [[p[good], "ok"], [p[bad], "bad"]]) {
      if (!n) continue;
      const h = (n / top) * (HEIGHT - 1);
      y -= h;
      const r = document.createElementNS(SVG, "rect");
      r.setAttribute("class", kind);
      r.setAttribute("x", x(i) + 0.1);
      r.setAttribute("y", y.toFixed(2));
      r.setAttribute("width", 0.8);
      r.setAttribute("height", h.toFixed(2));
      rects.push(r);
    }
  });
  $(id).replaceChildren(...rects);
}

// line draws latencies on a logarithmic scale from 10 µs to 1 s; seconds without
// a command make a gap.
function line(id, field) {
  const lines = [];
  let run = [];
  const flush = () => {
    if (run.length) {
      if (run.length === 1) run.push(run[0].replace(/^[\d.]+/, (n) => +n + 0.8));
      const l = document.createElementNS(SVG, "polyline");
      l.setAttribute("points", run.join(" "));
      lines.push(l);
    }
    run = [];
  };
  points.forEach((p, i) => {
    if (p[field] < 0) return flush();
    const y = HEIGHT - Math.min(1, Math.max(0, Math.log10(p[field] / 10) / 5)) * (HEIGHT - 1);
    run.push(`${x(i)},${y.toFixed(2)}`);
  });
  flush();
  $(id).replaceChildren(...lines);
}
