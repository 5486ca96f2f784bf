// A lane shows what one algorithm said in the last 30 seconds: a column of dots
// for each half second, allowed ones filled, denied ones hollow.
const SPAN = 30, STEP = 0.5, HEIGHT = 44, MOST = 10;
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
    const size = HEIGHT / (MOST + 1);
    for (const [c, list] of columns) {
      // Allowed below. A column that would be too tall stands for more.
      const share = Math.min(1, MOST / list.length);
      const allowed = Math.ceil(list.filter((a) => a).length * share);
      const denied = Math.ceil(list.filter((a) => !a).length * share);
      const column = Array(allowed).fill(true).concat(Array(denied).fill(false));
      const x = 300 - ((now - c * STEP) / SPAN) * 300;
      column.forEach((allowed, i) => {
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
