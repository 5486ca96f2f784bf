// A lane shows what one algorithm said in the last 30 seconds: a column of dots
// for each half second, allowed ones filled, denied ones hollow.
const SPAN = 30, STEP = 0.5, HEIGHT = 42, MOST = 10;
const SVG = "http://www.w3.org/2000/svg";

export class Lane {
  constructor(el) {
    this.el = el;
    this.svg = el.querySelector("svg");
    this.counts = el.querySelector(".counts");
    this.log = []; // {at, allowed}
  }

  add(allowed) {
    this.log.push({ at: performance.now() / 1000, allowed });
  }

  draw(chosen) {
    this.el.classList.toggle("chosen", chosen);
    const now = performance.now() / 1000;
    this.log = this.log.filter((e) => e.at > now - SPAN);
    const columns = new Map();
    for (const e of this.log) {
      const c = Math.floor(e.at / STEP);
      if (!columns.has(c)) columns.set(c, []);
      columns.get(c).push(e.allowed);
    }
    const dots = [];
    const size = HEIGHT / MOST;
    for (const [c, list] of columns) {
      list.sort((a, b) => b - a); // allowed below
      const x = 300 - ((now - c * STEP) / SPAN) * 300;
      list.slice(0, MOST).forEach((allowed, i) => {
        const r = document.createElementNS(SVG, "rect");
        r.setAttribute("class", allowed ? "ok" : "bad");
        r.setAttribute("x", (x + 0.6).toFixed(1));
        r.setAttribute("y", (HEIGHT - (i + 1) * size + 0.7).toFixed(1));
        r.setAttribute("width", "3.8");
        r.setAttribute("height", (size - 1.4).toFixed(1));
        dots.push(r);
      });
    }
    this.svg.replaceChildren(...dots);
    const allowed = this.log.filter((e) => e.allowed).length;
    this.counts.textContent = `${allowed} allowed, ${this.log.length - allowed} denied`;
  }
}
