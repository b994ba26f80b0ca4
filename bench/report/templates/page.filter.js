/* What is chosen: in the filter, and in the address, so that a view can be shared. */

/* ---- Elements ---- */

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

/* ---- What is chosen, and its place in the address ---- */

const costs = DATA.shown.filter((shown) => shown.cost);
const START = { x: "round", cost: costs[0]?.column ?? "", q: "", run: "", runs: "", methods: "" };
const state = {};

function readState() {
  const given = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  for (const [name, value] of Object.entries(START)) state[name] = given.get(name) ?? value;
  if (!SHOWN.has(state.cost)) state.cost = START.cost;
  if (!["round", "bytes", "seconds"].includes(state.x)) state.x = START.x;
  for (const [field] of FIELDS) {
    const { values } = DATA.runs[field];
    const places = given
      .getAll(field)
      .map((name) => values.indexOf(name))
      .filter((place) => place >= 0);
    state[field] = new Set(given.has(field) ? places : values.keys());
  }
  state.page = 0;
}

function writeState() {
  const kept = new URLSearchParams();
  for (const [field] of FIELDS) {
    const { values } = DATA.runs[field];
    if (state[field].size === values.length) continue;
    for (const place of state[field]) kept.append(field, values[place]);
    if (!state[field].size) kept.append(field, "");
  }
  for (const [name, value] of Object.entries(START)) if (state[name] !== value) kept.set(name, state[name]);
  history.replaceState(null, "", String(kept) ? `#${kept}` : location.pathname + location.search);
}

function chosen(except = "") {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const fields = FIELDS.map(([field]) => field).filter((field) => field !== except);
  return RUNS.filter(
    (run) =>
      fields.every((field) => state[field].has(run.code[field])) &&
      words.every((word) => run.text.includes(word)),
  );
}

/* ---- The filter ---- */

const boxes = {};

function buildFilter() {
  for (const [field, name] of FIELDS) {
    if (DATA.runs[field].values.length > 1) byId("fields").append(fieldset(field, name));
  }
  const search = later(refilter);
  byId("search").addEventListener("input", () => {
    state.q = byId("search").value.trim(); // at once: what is typed is what holds, whatever happens meanwhile
    search();
  });
  document.querySelector("#filter form").addEventListener("submit", (event) => event.preventDefault());
  byId("reset").addEventListener("click", () => {
    history.replaceState(null, "", "#reset");
    restore();
  });
  if (matchMedia("(max-width: 60rem)").matches) byId("filter").open = false;
}

function fieldset(field, name) {
  const { values } = DATA.runs[field];
  const choose = (all) => () => {
    state[field] = new Set(all ? values.keys() : []);
    refilter();
  };
  boxes[field] = values.map((value, place) => {
    const box = el("input", {
      type: "checkbox",
      change: () => {
        state[field][box.checked ? "add" : "delete"](place);
        refilter();
      },
    });
    const count = el("span", { class: "count" });
    return { box, count, row: el("label", {}, box, el("span", {}, value), count) };
  });
  return el(
    "fieldset",
    {},
    el("legend", {}, name),
    el(
      "div",
      { class: "both" },
      el("button", { type: "button", "aria-label": `${name}: all`, click: choose(true) }, "all"),
      el("button", { type: "button", "aria-label": `${name}: none`, click: choose(false) }, "none"),
    ),
    el("div", { class: "boxes" }, ...boxes[field].map(({ row }) => row)),
  );
}

function showFilter() {
  if (byId("search").value.trim() !== state.q) byId("search").value = state.q;
  for (const [field, entries] of Object.entries(boxes)) {
    const counts = new Array(entries.length).fill(0);
    for (const run of chosen(field)) counts[run.code[field]]++;
    entries.forEach(({ box, count }, place) => {
      box.checked = state[field].has(place);
      count.textContent = counts[place];
    });
  }
}

/* Wait until the typing stops. */
function later(act) {
  let waiting = 0;
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(act, 120);
  };
}
