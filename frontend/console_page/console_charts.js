// What the console counts from one look at the server to the next, and the two charts that it draws from that.

/** How far back the charts go. */
export const HISTORY_S = 600;
/** A point of the latency chart looks back so far: one interval of two seconds often has too few requests to tell. */
const POINT_S = 10;

const SVG = "http://www.w3.org/2000/svg";

/** What a counter gained; one that went back began anew. */
const gain = (now, before) => (now >= before ? now - before : now);

/** Prometheus's histogram_quantile: linear inside of a bucket. counts: one for each limit, and one above them all. */
export function quantile(limits, counts, share) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total <= 0) return NaN;
  const wanted = share * total;
  let seen = 0;
  for (let i = 0; i < counts.length; i++) {
    if (seen + counts[i] >= wanted && counts[i] > 0) {
      const low = i > 0 ? limits[i - 1] : 0;
      return i < limits.length ? low + (limits[i] - low) * ((wanted - seen) / counts[i]) : low;
    }
    seen += counts[i];
  }
  return limits[limits.length - 1];
}

/** Two looks at the server's counters: what changed between them. */
export class Change {
  constructor(before, after) {
    this.seconds = before ? Math.max(after.now_s - before.now_s, 1e-3) : NaN;
    this.metrics = after.metrics;
    this.before = new Map();
    for (const [name, family] of Object.entries(before?.metrics ?? {})) {
      for (const [labels, values] of family.cells) this.before.set(JSON.stringify([name, labels]), values);
    }
  }

  /** [{labels: {model: ...}, values, gains}] of a family's cells. Gains are of the time between the looks. */
  cells(name) {
    const family = this.metrics[name];
    return family.cells.map(([labels, values]) => {
      const was = this.before.get(JSON.stringify([name, labels]));
      const named = Object.fromEntries(family.labels.map((label, i) => [label, labels[i]]));
      return { labels: named, values, gains: values.map((value, i) => gain(value, was?.[i] ?? 0)) };
    });
  }
}

/** What happened lately, one sample a look: by model, requests that went well, that did not, and their durations. */
export class History {
  constructor() {
    this.samples = [];
    this.limits = [];
  }

  add(change, atS) {
    const models = new Map();
    const of = (name) => {
      if (!models.has(name)) models.set(name, { ok: 0, failed: 0, counts: [] });
      return models.get(name);
    };
    for (const { labels, gains } of change.cells("ringserve_requests_total")) {
      of(labels.model)[labels.code === "OK" ? "ok" : "failed"] += gains[0];
    }
    for (const { labels, gains } of change.cells("ringserve_request_duration_seconds")) {
      const counts = of(labels.model).counts;
      gains.slice(0, -1).forEach((count, i) => { counts[i] = (counts[i] ?? 0) + count; });
    }
    this.limits = change.metrics.ringserve_request_duration_seconds.limits;
    this.samples.push({ atS, seconds: change.seconds, models });
    while (this.samples[0].atS < atS - HISTORY_S) this.samples.shift();
  }

  /** Sums of one model ("": all) over samples. */
  #sum(samples, model) {
    const sum = { seconds: 0, ok: 0, failed: 0, counts: new Array(this.limits.length + 1).fill(0) };
    for (const sample of samples) {
      sum.seconds += sample.seconds;
      for (const [name, one] of sample.models) {
        if (model && name !== model) continue;
        sum.ok += one.ok;
        sum.failed += one.failed;
        one.counts.forEach((count, i) => { sum.counts[i] += count; });
      }
    }
    return sum;
  }

  #percentiles(sum) {
    const [p50, p95, p99] = [0.5, 0.95, 0.99].map((share) => quantile(this.limits, sum.counts, share));
    return { ok: sum.ok / sum.seconds, failed: sum.failed / sum.seconds, p50, p95, p99 };
  }

  /** Rates a second and percentiles in seconds, over all that is remembered. */
  whole(model) {
    return this.#percentiles(this.#sum(this.samples, model));
  }

  /** The same over the last interval. */
  last(model) {
    return this.#percentiles(this.#sum(this.samples.slice(-1), model));
  }

  /** One point a sample: {atS, ok, failed, p50, p95, p99}. */
  points(model) {
    let first = 0;
    return this.samples.map((sample, i) => {
      while (this.samples[first].atS <= sample.atS - POINT_S) first++;
      const { ok, failed } = this.#percentiles(this.#sum([sample], model));
      const { p50, p95, p99 } = this.#percentiles(this.#sum(this.samples.slice(first, i + 1), model));
      return { atS: sample.atS, ok, failed, p50, p95, p99 };
    });
  }
}

function shape(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** The next number of one digit, or nearly so. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

const HEIGHT = 176, LEFT = 58, BOTTOM = 18, TOP = 8;

/** A line chart in a <figure>. series: [{key, name}]; text: writes a value. */
export class Chart {
  constructor(figure, title, series, text) {
    Object.assign(this, { title, series, text, points: [], at: null });
    this.caption = document.createElement("figcaption");
    this.svg = shape("svg", { class: "chart", height: HEIGHT, role: "img" });
    figure.replaceChildren(this.caption, this.svg);
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      this.at = (event.clientX - box.left - LEFT) / (box.width - LEFT);
      this.#draw();
    });
    this.svg.addEventListener("pointerleave", () => { this.at = null; this.#draw(); });
  }

  show(points) {
    this.points = points;
    this.#draw();
  }

  #draw() {
    const points = this.points, width = Math.max(200, this.svg.clientWidth);
    const endS = points.at(-1)?.atS ?? 0;
    const spanS = Math.max(20, Math.min(HISTORY_S, endS - (points[0]?.atS ?? 0)));
    const most = Math.max(0, ...points.flatMap((point) => this.series.map(({ key }) => point[key] || 0)));
    const top = most > 0 ? roundUp(most) : 1;
    const x = (atS) => LEFT + (width - LEFT) * (1 - (endS - atS) / spanS);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);

    const chosenS = this.at === null ? endS : endS - spanS * (1 - this.at);
    const nearest = points.reduce(
      (best, point) => (Math.abs(point.atS - chosenS) < Math.abs((best?.atS ?? Infinity) - chosenS) ? point : best), null);
    this.#write(nearest, this.at === null ? "" : `, ${Math.round(endS - (nearest?.atS ?? endS))} s ago`);

    const drawn = [];
    for (const share of [0, 0.5, 1]) {
      drawn.push(shape("line", { class: "grid", x1: LEFT, x2: width, y1: y(top * share), y2: y(top * share) }));
      const label = most > 0 || share === 0 ? this.text(top * share) : "";
      drawn.push(shape("text", { x: LEFT - 6, y: y(top * share) + 4, "text-anchor": "end" }, label));
    }
    const ago = spanS >= 120 ? `${Math.round(spanS / 60)} min ago` : `${Math.round(spanS)} s ago`;
    drawn.push(shape("text", { x: LEFT, y: HEIGHT - 2 }, ago));
    drawn.push(shape("text", { x: width, y: HEIGHT - 2, "text-anchor": "end" }, "now"));
    for (const { key } of this.series) {
      let path = "", pen = "M";
      for (const point of points) {
        if (Number.isFinite(point[key])) path += `${pen}${x(point.atS).toFixed(1)} ${y(point[key]).toFixed(1)}`;
        pen = Number.isFinite(point[key]) ? "L" : "M";
      }
      drawn.push(shape("path", { class: `line series-${key}`, d: path }));
    }
    if (this.at !== null && nearest) {
      drawn.push(shape("line", { class: "at", x1: x(nearest.atS), x2: x(nearest.atS), y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    this.svg.replaceChildren(...drawn);
  }

  /** The caption is the legend and says the values; screen readers get the same as the picture's name. */
  #write(point, when) {
    const title = document.createElement("b");
    title.textContent = this.title + when;
    const said = this.series.map(({ key, name }) => `${name} ${this.text(point ? point[key] : NaN)}`);
    const entries = this.series.map(({ key }, i) => {
      const entry = document.createElement("span");
      const mark = document.createElement("i");
      mark.className = `key series-${key}`;
      entry.append(mark, said[i]);
      return entry;
    });
    this.caption.replaceChildren(title, ...entries);
    this.svg.setAttribute("aria-label", `${this.title}${when}: ${said.join(", ")}`);
  }
}
