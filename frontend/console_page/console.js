// The console: asks the server for its overview every two seconds and shows it. It changes nothing on the server.

import { Change, Chart, History, HISTORY_S, quantile } from "/console_charts.js";

const PERIOD_MS = 2000;
const PATIENCE_MS = 8000;
const KEY = "ringserve.key";

const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------------------------------------------------- writing

/** An element. content: texts and elements; texts are never read as HTML. */
function make(tag, attributes = {}, ...content) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...content);
  return element;
}

const decimals = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits });
const known = (write) => (value) => (Number.isFinite(value) ? write(value) : "–");
const rate = known((value) => decimals(value, value < 10 ? 2 : value < 100 ? 1 : 0));
const whole = known((value) => decimals(value, 0));
const percent = known((value) => `${decimals(100 * value, 0)} %`);
const milliseconds = known((value) => `${decimals(1000 * value, value < 0.01 ? 2 : value < 0.1 ? 1 : 0)} ms`);
const bytes = known((value) => {
  const steps = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = Math.min(steps.length - 1, value >= 1 ? Math.floor(Math.log2(value) / 10) : 0);
  return `${decimals(value / 1024 ** step, step > 2 ? 2 : 0)} ${steps[step]}`;
});
const age = known((seconds) => {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const [size, unit] = units.find(([size]) => seconds >= size) ?? [1, "s"];
  return `${Math.floor(Math.max(0, seconds) / size)} ${unit}`;
});
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");

const right = (text) => ({ text, class: "number" });
const tone = (text, name) => ({ text, class: name });

/** A table, or one line where there is nothing. heads: texts, those of numbers as right(text). rows: of texts, of
 *  {text, class}, or of elements; the first cell names its row. */
function showTable(place, caption, heads, rows, empty) {
  if (!rows.length) {
    place.className = "";
    place.replaceChildren(make("p", { class: "empty" }, empty));
    return;
  }
  const cell = (tag, given, scope) => {
    const { text = given, class: name = null } = typeof given === "object" && !(given instanceof Node) ? given : {};
    return make(tag, { class: name, scope }, text);
  };
  const head = make("tr", {}, ...heads.map((each) => cell("th", each, "col")));
  const body = rows.map((row) => make("tr", {}, cell("th", row[0], "row"), ...row.slice(1).map((each) => cell("td", each))));
  const left = place.firstChild?.scrollLeft ?? 0;
  const table = make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
  place.className = "scroll";
  place.tabIndex = 0;  // so that the keyboard can move what is wider than the screen
  place.setAttribute("role", "region");
  place.setAttribute("aria-label", caption);
  place.replaceChildren(table);
  place.scrollLeft = left;
}

// ---------------------------------------------------------------------------------------------------------- showing

const STATES = { AVAILABLE: "good", ready: "good", END: "bad", LOADING: "warn", START: "warn", UNLOADING: "warn" };
const SERIES = [
  [{ key: "ok", name: "answered" }, { key: "failed", name: "failed" }],
  [{ key: "p50", name: "p50" }, { key: "p95", name: "p95" }, { key: "p99", name: "p99" }],
];

const history = new History();
const throughput = new Chart($("throughput"), "Requests a second", SERIES[0], rate);
const latency = new Chart($("latency"), "Latency", SERIES[1], milliseconds);

const sum = (cells, of = (cell) => cell.values[0]) => cells.reduce((total, cell) => total + of(cell), 0);
const where = (cells, labels) =>
  cells.filter((cell) => Object.entries(labels).every(([name, value]) => cell.labels[name] === String(value)));
/** The counts of several histograms together, without their sums. */
const merged = (cells, kind = "gains") =>
  cells.reduce((total, cell) => cell[kind].slice(0, -1).map((count, i) => count + (total[i] ?? 0)), []);
/** What a histogram's values add up to between two looks. */
const totalGain = (cells) => sum(cells, (cell) => cell.gains.at(-1));
const countGain = (cells) => sum(cells, (cell) => cell.gains.slice(0, -1).reduce((a, b) => a + b, 0));

function showTiles(look, change) {
  const now = history.last(""), ten = history.whole("");
  const broker = look.broker;
  const ready = broker?.workers.filter((worker) => worker.state === "ready").length;
  const processes = change.cells("ringserve_process_resident_bytes");
  const shares = change.cells("ringserve_process_proportional_bytes");
  const tiles = [
    ["Requests/s", rate(now.ok + now.failed), ""],
    ["Failed/s", rate(now.failed), now.failed > 0 ? "bad" : ""],
    ["p50, p95, p99", [ten.p50, ten.p95, ten.p99].map((value) => milliseconds(value).replace(" ms", "")).join(" · "), "", "ms, last 10 min"],
    ["In flight", whole(sum(change.cells("ringserve_requests_pending"))), ""],
    ["Waiting", broker ? whole(broker.requests.queued) : "–", ""],
    ["Workers ready", broker ? `${ready} of ${broker.workers.length}` : "–", broker && ready ? "" : "bad"],
    ["Connections", whole(sum(change.cells("ringserve_connections"))), ""],
    ["Memory", bytes(sum(shares.length ? shares : processes)), ""],
  ];
  $("tiles").replaceChildren(...tiles.map(([name, text, kind, more]) =>
    make("div", { class: more ? "double" : null }, make("dt", {}, name), make("dd", { class: kind || null }, text, ...(more ? [" ", make("small", {}, more)] : [])))));
}

function showModels(look) {
  const rows = look.models.flatMap((model) => {
    const labels = (version) =>
      Object.entries(model.labels).filter(([, to]) => to === version).map(([label]) => label).join(", ");
    if (!model.versions.length) return [[model.name, "", tone("no version", "warn"), "", ""]];
    return model.versions.map((each) => {
      const texts = [...(each.error ? [`${each.error.code}: ${each.error.text}`] : []), ...each.notes];
      const text = { text: texts.join("; "), class: each.error ? "wide bad" : "wide quiet" };
      const serving = each.version === model.serving ? " (default)" : "";
      return [model.name, right(String(each.version)), tone(each.state + serving, STATES[each.state]), labels(each.version), text];
    });
  });
  const heads = ["Model", right("Version"), "State", "Labels", "Errors and notes"];
  showTable($("models"), "Every version that the server knows of", heads, rows, "No models are configured.");
}

function showLanes(look, change) {
  const lanes = look.broker?.lanes ?? [];
  const batches = change.cells("ringserve_batch_rows");
  const runs = change.cells("ringserve_run_duration_seconds");
  const waits = change.cells("ringserve_queue_duration_seconds");
  const limits = look.metrics.ringserve_queue_duration_seconds.limits;
  const key = ({ model, version, signature }) => JSON.stringify([model, String(version), signature]);
  const all = new Map([...batches.map((cell) => cell.labels), ...lanes].map((each) => [key(each), each]));
  const rows = [...all.values()].map((each) => {
    const { model, version, signature } = each;
    const held = lanes.filter((lane) => key(lane) === key(each));
    const mine = { model, version, signature };
    const [batch, run, wait] = [batches, runs, waits].map((cells) => where(cells, mine));
    const count = countGain(batch);
    const shapes = held.map((lane) => lane.inputs.join(", "));
    const name = make("span", {}, model, " ", make("span", { class: "quiet" }, `${version} · ${signature}`));
    if (shapes.length) name.title = shapes.join("\n");
    return [
      name, right(whole(sum(held, (lane) => lane.requests))), right(whole(sum(held, (lane) => lane.rows))),
      right(held.length ? milliseconds(Math.max(...held.map((lane) => lane.oldest_s))) : "–"),
      right(whole(sum(held, (lane) => lane.batches))), right(rate(count / change.seconds)),
      right(rate(totalGain(batch) / count)), right(milliseconds(quantile(limits, merged(wait), 0.99))),
      right(milliseconds(totalGain(run) / countGain(run))), right(percent(totalGain(run) / change.seconds)),
    ];
  });
  const heads = ["Model, version, signature", ...["Waiting", "Rows", "Oldest", "Batches running", "Batches/s", "Rows a batch",
    "Wait p99", "Run", "Busy"].map(right)];
  const cut = lanes.length === look.broker?.lanes_shown_max ? "; only those that wait longest" : "";
  showTable($("lanes"), `Now, and over the last interval${cut}`, heads, rows, "Nothing has run yet.");
}

function showFailures(look) {
  const rows = look.failures.map((each) => [
    clock(each.last_s), right(`${whole(each.count)} ×`), tone(each.code, "bad"),
    each.model ? `${each.model}${each.version && ` ${each.version}`}` : "–",
    `${each.entrypoint} ${each.api}`, { text: each.text, class: "wide" },
  ]);
  const heads = ["Last", right("Times"), "Code", "Model", "Call", "Text"];
  showTable($("failures"), "Texts are cut before they quote a request", heads, rows, "No request has failed.");
}

function showEnds(look, change) {
  const broker = change.cells("ringserve_broker_requests_total").filter((cell) => cell.labels.end !== "done");
  const rows = [
    ...broker.map((cell) => [`${cell.labels.end}, at the broker`, cell]),
    ...change.cells("ringserve_broker_retries_total").map((cell) => ["tried again, as their worker was gone", cell]),
    ...change.cells("ringserve_access_refused_total").map((cell) => [`refused for their key: ${cell.labels.reason}`, cell]),
    ...change.cells("ringserve_client_refusals_total").map((cell) =>
      [`connections ended: ${cell.labels.protocol} ${cell.labels.reason} (${cell.labels.process})`, cell]),
  ].filter(([, cell]) => cell.values[0] > 0);
  const shown = rows.map(([name, cell]) => [name, right(rate(cell.gains[0] / change.seconds)), right(whole(cell.values[0]))]);
  showTable($("ends"), "Since the server was started", ["What", right("A second"), right("In all")], shown, "None so far.");
}

function showProcesses(look, change) {
  const workers = new Map((look.broker?.workers ?? []).map((worker) => [`worker-${worker.index}`, worker]));
  const cells = (name, process) => where(change.cells(name), { process });
  const rows = change.cells("ringserve_process_resident_bytes").map(({ labels: { process }, values }) => {
    const worker = workers.get(process);
    const state = !worker ? "" : worker.loading ? `loading ${worker.loading.join(" ")}` : worker.state;
    const starts = sum(cells("ringserve_process_starts_total", process));
    const since = sum(cells("ringserve_process_start_time_seconds", process));
    const share = sum(cells("ringserve_process_proportional_bytes", process));
    const cpu = sum(cells("ringserve_process_cpu_seconds_total", process), (cell) => cell.gains[0]);
    const restarts = starts ? starts - 1 : NaN;
    return [
      process, worker?.group ?? "", right(worker ? String(worker.pid) : ""), tone(state, STATES[state]),
      right(age(look.now_s - since)), right(percent(cpu / change.seconds)), right(share ? bytes(share) : "–"),
      right(bytes(values[0])), { text: whole(restarts), class: restarts > 0 ? "number warn" : "number" },
    ];
  });
  rows.sort((one, other) => one[0].localeCompare(other[0], "en", { numeric: true }));
  const heads = ["Process", "Group", right("PID"), "State", ...["Age", "CPU", "Memory (PSS)", "RSS", "Restarts"].map(right)];
  showTable($("processes"), "Every process of the server", heads, rows, "");
  const groups = (look.broker?.groups ?? []).map((group) => [
    group.name, right(String(group.workers_active)), right(String(group.workers_wanted)),
    right(`${group.workers_min} – ${group.workers_max}`), right(String(group.generation)),
    group.following ? `generation ${group.following.generation}: ${group.following.phase}` : "",
  ]);
  const groupHeads = ["Group", ...["Serving", "Wanted", "Allowed", "Generation"].map(right), "Next"];
  showTable($("groups"), "Groups of workers", groupHeads, groups, "");
}

function showMemory(look, change) {
  const host = look.host, budget = look.broker?.memory;
  const use = sum(change.cells("ringserve_process_proportional_bytes"));
  const lines = [
    ["The server's processes", use, host.usable_bytes, `of ${host.source}`],
    ["The host, all programs", host.usable_bytes - host.available_bytes, host.usable_bytes, "not available to others"],
    ["Budgeted for models and processes", budget?.budgeted_bytes, budget?.limit_bytes, "of the limit"],
    ["Request rings", sum(change.cells("ringserve_ring_used_bytes")), sum(change.cells("ringserve_ring_capacity_bytes")), "in use"],
  ].filter(([, value, limit]) => value >= 0 && limit > 0);
  const rows = lines.map(([name, value, limit, what]) => [
    name, right(bytes(value)), right(bytes(limit)), what,
    make("meter", { min: 0, max: limit, high: 0.9 * limit, value, "aria-label": name }, percent(value / limit)),
  ]);
  showTable($("host"), "In use, and how much there is", ["What", right("Used"), right("Of"), "", ""], rows, "");
  const weights = (look.broker?.weights ?? []).map((each) => [
    each.name, right(String(each.version)), each.stage, right(bytes(each.bytes_shared)), right(bytes(each.bytes_private)),
  ]);
  const heads = ["Model", right("Version"), "Stage", right("Shared, once"), right("In each worker")];
  showTable($("weights"), "Weights", heads, weights, "");
}

function showChoice(look) {
  const names = ["", ...look.models.map((model) => model.name)];
  const before = [...$("model").options].map((option) => option.value);
  if (JSON.stringify(names) === JSON.stringify(before)) return;
  const chosen = $("model").value;
  $("model").replaceChildren(...names.map((name) => make("option", { value: name }, name || "all models")));
  $("model").value = names.includes(chosen) ? chosen : "";
}

function showCharts() {
  const points = history.points($("model").value);
  throughput.show(points);
  latency.show(points);
}

let before = null;

function show(look) {
  const change = new Change(before, look);
  if (before) history.add(change, performance.now() / 1000);
  before = look;
  $("version").textContent = look.version;
  showChoice(look);
  showTiles(look, change);
  showCharts();
  showModels(look);
  showLanes(look, change);
  showFailures(look);
  showEnds(look, change);
  showProcesses(look, change);
  showMemory(look, change);
  $("main").hidden = false;
}

// ----------------------------------------------------------------------------------------------------------- asking

/** The server wants a key, or does not take the one that it was shown. */
class NoEntry extends Error {}

async function ask() {
  const key = sessionStorage.getItem(KEY);
  const answer = await fetch("/ringserve/v1/overview", {
    headers: key ? { Authorization: `Bearer ${key}` } : {},
    cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(PATIENCE_MS),
  });
  if (answer.ok) return answer.json();
  const text = await answer.json().then((body) => body.error, () => `HTTP ${answer.status}`);
  if (answer.status === 401 && !key) throw new NoEntry("");
  throw answer.status === 401 || answer.status === 403 ? new NoEntry(text) : new Error(text);
}

let answeredAt = null;

function alarm(text) {
  document.body.classList.toggle("gone", Boolean(text));
  $("alarm").hidden = !text;
  if ($("alarm").textContent !== text) $("alarm").textContent = text;
}

function lock(text) {
  $("main").hidden = true;
  $("door").hidden = false;
  $("refusal").textContent = text;
  $("link").textContent = "waits for a key";
  $("forget").hidden = true;
  $("key").focus();
}

let timer = 0;

async function turn() {
  clearTimeout(timer);
  try {
    const look = await ask();
    answeredAt = new Date();
    show(look);
    $("door").hidden = true;
    $("forget").hidden = !sessionStorage.getItem(KEY);
    $("link").textContent = `connected, ${answeredAt.toLocaleTimeString("en-GB")}`;
    alarm(look.broker ? "" : "The broker does not answer: requests wait until there is one again.");
  } catch (error) {
    if (error instanceof NoEntry) {
      alarm("");
      lock(error.message);
      return;  // whoever gives a key begins anew
    }
    before = null;
    const seen = answeredAt ? ` What is shown is of ${answeredAt.toLocaleTimeString("en-GB")}.` : "";
    const why = error instanceof TypeError || error.name === "TimeoutError" ? "" : ` (${error.message})`;
    $("link").textContent = "not connected";
    alarm(`The server does not answer${why}. Trying again every 2 seconds.${seen}`);
  }
  timer = setTimeout(turn, PERIOD_MS);
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  turn();
});
$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  before = null;
  clearTimeout(timer);
  lock("");
});
$("model").addEventListener("change", showCharts);
addEventListener("resize", showCharts);
$("throughput").title = $("latency").title = `The last ${HISTORY_S / 60} minutes at most, since this page was opened`;

turn();
