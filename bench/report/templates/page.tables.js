/* The tables of methods and of runs. */

const several = FIELDS.filter(([field]) => DATA.runs[field].values.length > 1 || field === "method");
const MAIN = [
  "accuracy",
  "zero_shot_accuracy",
  "bytes",
  "train_seconds",
  "from_nothing_seconds",
  "peak_memory_bytes",
  "trainable_parameters",
  "energy_joules",
];
const MEASURED = DATA.shown
  .filter((shown) => MAIN.includes(shown.column))
  .sort((a, b) => MAIN.indexOf(a.column) - MAIN.indexOf(b.column));

const named = several.map(([field, name]) => ({
  name: field,
  heading: name,
  value: (row) => row.first.code[field],
  text: (row) => row.first[field],
}));
const METHOD_COLUMNS = [
  ...named,
  {
    name: "n",
    heading: "Seeds",
    number: true,
    value: (row) => row.runs.length,
    text: (row) => String(row.runs.length),
  },
  ...MEASURED.map((shown) => ({
    name: shown.column,
    heading: headingOf(shown),
    number: true,
    value: (row) => row.found[shown.column].mean,
    text: (row) => meanText(row.found[shown.column], shown.unit, ""),
  })),
];
const RUN_COLUMNS = [
  { name: "hash", heading: "Run", value: (row) => row.first.hash, text: (row) => row.first.hash },
  ...named,
  {
    name: "seed",
    heading: "Seed",
    number: true,
    value: (row) => row.first.seed,
    text: (row) => String(row.first.seed),
  },
  ...MEASURED.map((shown) => ({
    name: shown.column,
    heading: headingOf(shown),
    number: true,
    value: (row) => row.first.figures[shown.column],
    text: (row) => written(row.first.figures[shown.column], shown.unit),
    marked: shown.column === "accuracy",
  })),
];

const marksOf = (run) => [isBelow(run) ? "▼" : "", run.broken ? "‡" : ""].join("");
const isBelow = ({ kind, figures }) =>
  kind !== "zero_shot" &&
  known(figures.zero_shot_accuracy) &&
  known(figures.accuracy) &&
  Number(UNITS.share(figures.accuracy)) < Number(UNITS.share(figures.zero_shot_accuracy));

function sorted(rows, columns, by) {
  const column = columns.find(({ name }) => name === by.replace(/^-/, ""));
  if (!column) return rows;
  const sign = by.startsWith("-") ? -1 : 1;
  const order = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });
  return rows
    .map((row) => [column.value(row), row])
    .sort(([a], [b]) => known(b) - known(a) || (known(a) ? sign * order(a, b) : 0))
    .map(([, row]) => row);
}

/* Headings are made once, so that the one pressed keeps the focus. */
function buildHead(table, columns, key) {
  const heads = columns.map(({ name, heading, number }) =>
    el(
      "th",
      { scope: "col", "data-column": name, class: number ? "number" : null },
      el(
        "button",
        {
          type: "button",
          click: () => {
            state[key] = state[key] === name ? `-${name}` : name;
            state.page = 0;
            update();
          },
        },
        heading,
      ),
    ),
  );
  table.tHead.replaceChildren(el("tr", {}, ...heads));
}

function showTable(table, columns, rows, by, cell) {
  for (const head of table.tHead.querySelectorAll("th")) {
    const way =
      by === head.dataset.column ? "ascending" : by === `-${head.dataset.column}` ? "descending" : "none";
    head.setAttribute("aria-sort", way);
  }
  table.tBodies[0].replaceChildren(
    ...rows.map((row) => el("tr", {}, ...columns.map((column, place) => cell(row, column, place)))),
  );
}

const plainCell = (row, column) => el("td", { class: column.number ? "number" : null }, column.text(row));

function runCell(row, column) {
  if (column.name !== "hash") {
    const marks = column.marked ? marksOf(row.first) : "";
    return el(
      "td",
      { class: column.number ? "number" : null },
      column.text(row),
      marks ? el("span", { class: "mark" }, marks) : null,
    );
  }
  return el(
    "th",
    { scope: "row" },
    el(
      "button",
      {
        type: "button",
        class: "run",
        "data-run": row.first.hash,
        "aria-haspopup": "dialog",
        "aria-label": `Details of run ${row.first.hash}`,
      },
      row.first.hash,
    ),
  );
}

function showMethods(runs) {
  const rows = groupsOf(runs, [...CELL, "method"]).map((group) => ({
    first: group[0],
    runs: group,
    found: Object.fromEntries(
      MEASURED.map(({ column }) => [column, meanOf(group.map((run) => run.figures[column]))]),
    ),
  }));
  showTable(
    byId("method-table"),
    METHOD_COLUMNS,
    sorted(rows, METHOD_COLUMNS, state.methods),
    state.methods,
    plainCell,
  );
}

let printing = false;

function showRuns(runs) {
  const rows = sorted(
    runs.map((run) => ({ first: run })),
    RUN_COLUMNS,
    state.runs,
  );
  const pages = Math.max(1, Math.ceil(rows.length / ROWS_OF_A_PAGE));
  state.page = Math.min(state.page, pages - 1);
  const from = state.page * ROWS_OF_A_PAGE;
  const listed = printing ? rows : rows.slice(from, from + ROWS_OF_A_PAGE);
  showTable(byId("run-table"), RUN_COLUMNS, listed, state.runs, runCell);
  byId("pager").hidden = pages === 1;
  byId("page").textContent =
    `${from + 1} to ${Math.min(from + ROWS_OF_A_PAGE, rows.length)} of ${rows.length.toLocaleString("en-US")}`;
  // not `disabled`, which would take the focus from the button just pressed
  byId("before").setAttribute("aria-disabled", state.page === 0);
  byId("after").setAttribute("aria-disabled", state.page === pages - 1);
}

function buildTables() {
  buildHead(byId("method-table"), METHOD_COLUMNS, "methods");
  buildHead(byId("run-table"), RUN_COLUMNS, "runs");
  const turn = (by) => (event) => {
    if (event.currentTarget.getAttribute("aria-disabled") === "true") return;
    state.page += by;
    showRuns(chosen());
    byId("run-table").scrollIntoView({ block: "start" });
  };
  byId("before").addEventListener("click", turn(-1));
  byId("after").addEventListener("click", turn(1));
  const body = byId("run-table").tBodies[0];
  const ofRow = (event) => event.target.closest("tr")?.querySelector("button.run");
  let pointed = false; // rows that scroll past a mouse at rest hide nothing
  const tell = (event) => {
    const button = ofRow(event);
    if (!button) return;
    pointed = event.type === "pointermove";
    const box = button.getBoundingClientRect();
    showTip(runLines(runOf(button.dataset.run)), () => [
      event.clientX ?? box.left,
      event.clientY ?? box.bottom,
    ]);
  };
  fill(
    body,
    {
      click: (event) => {
        const button = ofRow(event);
        if (button && !String(getSelection())) {
          button.focus();
          openRun(button.dataset.run);
        }
      },
      pointermove: tell,
      focusin: tell,
      pointerleave: () => pointed && hideTip(),
      focusout: hideTip,
    },
    [],
  );
  let folded = [];
  addEventListener("beforeprint", () => {
    printing = true;
    showRuns(chosen());
    folded = [...document.querySelectorAll("section[aria-labelledby='tables'] details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => {
    printing = false;
    showRuns(chosen());
    for (const one of folded) one.open = false;
  });
}

const runOf = (hash) => RUNS.find((run) => run.hash === hash);
const runLines = (run) => [
  `${run.method}, ${titleOf(run, CELL)}, seed ${run.seed}`,
  ...MEASURED.filter(({ column }) => known(run.figures[column])).map(
    (shown) => `${shown.heading}: ${withUnit(run.figures[shown.column], shown.unit)}`,
  ),
  isBelow(run) ? "▼ below zero-shot" : "",
  run.broken ? `‡ ${run.broken}` : "",
  run.busy ? "others used the machine meanwhile" : "",
];
