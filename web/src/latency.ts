/** How long the last changes took from their commit to this page, as a small plot. */

export const LAST = 60;
const WIDTH = 240;
const HEIGHT = 72;
const SVG = "http://www.w3.org/2000/svg";

/** The median of the values, and the greatest; null without any. */
export function figures(values: readonly number[]): { readonly median: number; readonly worst: number } | null {
  const sorted = [...values].sort((one, other) => one - other);
  const middle = sorted[Math.floor((sorted.length - 1) / 2)];
  const worst = sorted.at(-1);
  return middle === undefined || worst === undefined ? null : { median: middle, worst };
}

/** The upper end of the scale: 1, 2 or 5 times a power of ten, 100 ms at least. */
export function scale(worst: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(100, worst)));
  return [1, 2, 5, 10].map((step) => step * power).find((end) => end >= worst) ?? 10 * power;
}

export class LatencyPlot {
  readonly #values: number[] = [];
  readonly #svg: SVGSVGElement;
  readonly #text: HTMLElement;
  readonly #top: SVGTextElement;
  readonly #bars: SVGGElement;
  #frame: number | null = null;

  constructor(parent: HTMLElement) {
    this.#svg = document.createElementNS(SVG, "svg");
    this.#svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.#svg.setAttribute("role", "img");
    this.#svg.classList.add("plot");
    this.#bars = document.createElementNS(SVG, "g");
    const line = document.createElementNS(SVG, "path");
    line.setAttribute("d", `M0 .5H${WIDTH}M0 ${HEIGHT - 0.5}H${WIDTH}`);
    line.classList.add("plot-line");
    this.#top = document.createElementNS(SVG, "text");
    this.#top.setAttribute("x", "2");
    this.#top.setAttribute("y", "11");
    this.#svg.append(line, this.#bars, this.#top);
    this.#text = document.createElement("p");
    this.#text.className = "plot-text";
    this.#text.dataset["testid"] = "latency";
    parent.append(this.#svg, this.#text);
    this.#draw();
  }

  /** ms. Below nothing is nothing: the clock of the database's machine may be ahead of this one's. */
  add(value: number): void {
    this.#values.push(Math.max(0, value));
    if (this.#values.length > LAST) this.#values.shift();
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.#draw();
    });
  }

  #draw(): void {
    const found = figures(this.#values);
    const words = found
      ? `median ${Math.round(found.median)} ms, longest ${Math.round(found.worst)} ms of the last ${this.#values.length}`
      : "no change has come yet";
    this.#text.textContent = words;
    this.#svg.setAttribute("aria-label", `Latency of the last changes: ${words}`);
    const end = scale(found?.worst ?? 0);
    this.#top.textContent = found ? `${end} ms` : "";
    const step = WIDTH / LAST;
    this.#bars.replaceChildren(
      ...this.#values.map((value, index) => {
        const bar = document.createElementNS(SVG, "rect");
        const height = Math.max(1, (value / end) * (HEIGHT - 2));
        bar.setAttribute("x", String(WIDTH - (this.#values.length - index) * step));
        bar.setAttribute("y", String(HEIGHT - 1 - height));
        bar.setAttribute("width", String(step - 1));
        bar.setAttribute("height", String(height));
        return bar;
      }),
    );
  }
}
