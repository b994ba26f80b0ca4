/* The runs, from the columns beside the script, and their numbers in words. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const FIELDS = [
  ["task", "Task"],
  ["model", "Model"],
  ["split", "Split"],
  ["shots", "Shots"],
  ["method", "Method"],
];
const CELL = ["task", "model", "split", "shots"];
const MOST_PANELS = 12;
const ROWS_OF_A_PAGE = 50;
const MARKS_OF_A_CURVE = 6;
const ABSENT = "–";
const byId = (id) => document.getElementById(id);

/* ---- Data: columns to runs ---- */

const valueOf = (coded, index) => (coded && coded.of[index] >= 0 ? coded.values[coded.of[index]] : undefined);
const SHOWN = new Map(DATA.shown.map((shown) => [shown.column, shown]));
const ROUNDS = decodedRounds(DATA.rounds);
const RUNS = DATA.runs.hash.map(runAt).sort((a, b) => compared(Object.values(a.code), Object.values(b.code)));
const METHODS = DATA.runs.method.values;

function runAt(hash, index) {
  const run = { index, hash, file: DATA.runs.file[index], figures: {}, code: {} };
  for (const [field] of FIELDS) {
    run.code[field] = DATA.runs[field].of[index];
    run[field] = valueOf(DATA.runs[field], index);
  }
  for (const name of ["seed", "acceleration", "broken", "kind"]) {
    run[name] = valueOf(DATA.runs[name], index) ?? "";
  }
  run.busy = valueOf(DATA.runs["load.busy"], index) === true;
  for (const [name, column] of Object.entries(DATA.runs.figures)) run.figures[name] = column[index];
  run.text = [...FIELDS.map(([field]) => run[field]), `seed ${run.seed}`, hash, run.broken]
    .join(" ")
    .toLowerCase();
  return run;
}

function decodedRounds(rounds) {
  const starts = [];
  let next = 0;
  for (const count of rounds.count) {
    starts.push(next);
    next += count;
  }
  const counts = (name) => (rounds[name] ? grown(rounds[name]) : null);
  return {
    of: (run) => Array.from({ length: rounds.count[run.index] }, (_, place) => starts[run.index] + place),
    round: counts("round"),
    bytes_up: counts("bytes_up"),
    bytes_down: counts("bytes_down"),
    cumulative_bytes: counts("cumulative_bytes"),
    cumulative_seconds: rounds.cumulative_seconds,
    accuracy: rounds.accuracy.map((value) => (value === null ? null : value / 1e4)),
    loss: rounds.loss,
    seconds: rounds.seconds,
  };
}

/* Add up (difference, how often) pairs. */
function grown(steps) {
  const numbers = [];
  let last = 0;
  for (let at = 0; at < steps.length; at += 2) {
    for (let times = steps[at + 1]; times > 0; times--) numbers.push((last += steps[at]));
  }
  return numbers;
}

/* ---- Numbers as the tables write them ---- */

/* Like Python: a tie that binary numbers can hold goes to the even digit. */
function fixed(value, decimals) {
  const scaled = value * 10 ** decimals;
  const below = Math.floor(scaled);
  const tie = Number.isInteger(value * 2 ** (decimals + 1)) && scaled - below === 0.5;
  const exact = tie ? (below + (Math.abs(below) % 2)) / 10 ** decimals : value;
  return exact.toFixed(decimals);
}

const grouped = (text) => text.replace(/^(-?\d+)/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ","));

function decimalsOf(value, kept) {
  const rounded = Number(value.toPrecision(kept));
  return Math.min(Math.max(kept - 1 - Math.floor(Math.log10(Math.abs(rounded))), 0), kept + 1);
}

const digits = (value, kept = DATA.digits.cost) =>
  value === 0 ? "0" : grouped(fixed(value, decimalsOf(value, kept)));

function prefixed(value, units) {
  for (const unit of units.slice(0, -1)) {
    if (Math.abs(value) < 999.5) return `${digits(value)}${unit}`;
    value /= 1000;
  }
  return `${digits(value)}${units[units.length - 1]}`;
}

const bytesText = (value) =>
  Math.abs(value) < 1000 ? `${fixed(value, 0)} B` : prefixed(value / 1000, [" kB", " MB", " GB", " TB"]);
const operationsText = (value) =>
  Math.abs(value) < 999.5 ? fixed(value, 0) : prefixed(value / 1000, [" k", " M", " G", " T", " P"]);

const UNITS = {
  share: (value) => fixed(100 * value, DATA.digits.accuracy),
  bytes: bytesText,
  operations: operationsText,
  seconds: digits,
  joules: digits,
  count: (value) => grouped(fixed(value, Number.isInteger(value) ? 0 : 1)),
};
const SIGNS = { share: " %", seconds: " s", joules: " J" };
const HEADED = { share: " (%)", seconds: " (s)", joules: " (J)" };

const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);
const written = (value, unit) => (known(value) ? UNITS[unit](value) : ABSENT);
const withUnit = (value, unit) => (known(value) ? UNITS[unit](value) + (SIGNS[unit] ?? "") : ABSENT);
const headingOf = (shown) => shown.heading + (HEADED[shown.unit] ?? "");
const counted = (n, noun) => `${n.toLocaleString("en-US")} ${noun}${n === 1 ? "" : "s"}`;

/* ---- Means over seeds ---- */

function meanOf(values) {
  const there = values.filter(known);
  const n = there.length;
  if (!n) return { n, mean: NaN, half: NaN };
  const mean = there.reduce((sum, value) => sum + value, 0) / n;
  const squares = there.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { n, mean, half: n > 1 ? DATA.t_factors[n] * Math.sqrt(squares / (n - 1) / n) : NaN };
}

const drawnHalf = (found) => (found.n >= DATA.fewest && known(found.half) ? found.half : 0);

function meanText(found, unit, sign = SIGNS[unit] ?? "") {
  if (!found.n) return ABSENT;
  return `${UNITS[unit](found.mean)}${intervalText(found, unit)}${sign}`;
}

/* To as many decimals as its mean has; nothing where a count is the same in every run. */
function intervalText({ n, mean, half }, unit) {
  if (n < 2 || (half === 0 && unit !== "share")) return "";
  const plain = ["seconds", "joules"].includes(unit) && mean > 0;
  return ` ± ${plain ? fixed(half, decimalsOf(mean, DATA.digits.cost)) : UNITS[unit](half)}`;
}

function groupsOf(runs, fields) {
  const groups = new Map();
  for (const run of runs) {
    const key = fields.map((field) => run.code[field]).join(" ");
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(run);
  }
  const codes = (group) => fields.map((field) => group[0].code[field]);
  return [...groups.values()].sort((a, b) => compared(codes(a), codes(b)));
}

function compared(a, b) {
  const at = a.findIndex((value, index) => value !== b[index]);
  return at < 0 ? 0 : a[at] - b[at];
}
