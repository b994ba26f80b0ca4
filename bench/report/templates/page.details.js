/* A run's details, in a dialog. */

const dialog = byId("details");

function openRun(hash) {
  const run = runOf(hash);
  if (!run) return;
  hideTip();
  byId("details-title").textContent = `${run.method} on ${titleOf(run, CELL)}, seed ${run.seed}`;
  const parts = [
    ["Numbers", figuresPart],
    ["Rounds", roundsPart],
    ["Ledger", ledgerPart],
    ["Division of the data", divisionPart],
    ["Invariants", invariantsPart],
    ["Configuration", configPart],
    ["Environment", environmentPart],
    ["Where it comes from", originPart],
  ];
  byId("details-body").replaceChildren(
    ...parts.map(([title, part]) => el("section", {}, el("h3", {}, title), ...part(run))),
  );
  dialog.showModal();
  byId("details-body").scrollTop = 0;
  state.run = hash;
  writeState();
}

function pairs(entries) {
  return el(
    "dl",
    {},
    ...entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}
const scrolled = (label, child) =>
  el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, child);

function figuresPart(run) {
  const marks = [
    isBelow(run) ? "▼ Below zero-shot." : "",
    run.broken ? `‡ ${run.broken}.` : "",
    run.busy ? "Other processes used the machine: doubt the seconds." : "",
  ].filter(Boolean);
  return [
    ...marks.map((text) => el("p", { class: "warning" }, text)),
    pairs(
      DATA.shown
        .filter(({ column }) => known(run.figures[column]))
        .map((shown) => [shown.heading, withUnit(run.figures[shown.column], shown.unit)]),
    ),
  ];
}

function roundsPart(run) {
  const rows = ROUNDS.of(run);
  if (!rows.length) return [el("p", {}, "No rounds were kept.")];
  const phases = Object.entries(ROUNDS.seconds).filter(([, column]) =>
    rows.some((row) => known(column[row])),
  );
  const head = [
    "Round",
    "Accuracy (%)",
    "Loss",
    ...phases.map(([name]) => `${name[0].toUpperCase()}${name.slice(1)} (s)`),
  ];
  const body = rows.map((row) => [
    String(ROUNDS.round[row]),
    known(ROUNDS.accuracy[row]) ? fixed(100 * ROUNDS.accuracy[row], 2) : ABSENT,
    written(ROUNDS.loss?.[row], "seconds"),
    ...phases.map(([, column]) => written(column[row], "seconds")),
  ]);
  const panel = { ...curvePanelOf(run), what: "Test accuracy over rounds" };
  const { x, y } = panel.series.length ? framed([panel], false) : {};
  const picture = panel.series.length
    ? el(
        "div",
        { class: "panel wide" },
        plot(panel, frameOf(1), { x: { ...CURVES.round, ...x }, y, zero: panel.zero, joined: true }),
      )
    : null;
  return [picture, scrolled("Rounds", plainTable(head, body))].filter(Boolean);
}

function curvePanelOf(run) {
  const series = [curveOf([run], CURVES.round)].filter((marks) => marks.length > 1);
  return { title: `Seed ${run.seed}`, series, zero: run.figures.zero_shot_accuracy };
}

function ledgerPart(run) {
  const rows = ROUNDS.of(run).filter((row) => ROUNDS.round[row] > 0 && ROUNDS.bytes_up);
  const { figures } = run;
  const up = figures.payload_bytes_up ?? figures.payload_bytes;
  const down = figures.payload_bytes_down ?? figures.payload_bytes;
  if (!rows.length) {
    return [
      el(
        "p",
        {},
        figures.bytes
          ? `${UNITS.bytes(figures.bytes)} in all; single rounds were not kept.`
          : "Nothing was sent.",
      ),
    ];
  }
  const pieces = (bytes, payload) => (payload > 0 ? String(Math.round((10 * bytes) / payload) / 10) : ABSENT);
  const body = rows.map((row) => [
    String(ROUNDS.round[row]),
    UNITS.bytes(ROUNDS.bytes_up[row]),
    pieces(ROUNDS.bytes_up[row], up),
    UNITS.bytes(ROUNDS.bytes_down[row]),
    pieces(ROUNDS.bytes_down[row], down),
    ROUNDS.cumulative_bytes ? UNITS.bytes(ROUNDS.cumulative_bytes[row]) : ABSENT,
  ]);
  return [
    el(
      "p",
      {},
      `One payload: ${written(up, "bytes")} up, ${written(down, "bytes")} down. In all ${written(figures.bytes_up, "bytes")} up and ${written(figures.bytes_down, "bytes")} down. Payloads are bytes by the length of one.`,
    ),
    scrolled("Ledger", plainTable(["Round", "Up", "Payloads up", "Down", "Payloads down", "So far"], body)),
  ];
}

function divisionPart(run) {
  const key = Object.keys(DATA.divisions)[DATA.division[run.index]];
  const division = DATA.divisions[key];
  if (!division) return [el("p", {}, "Not known of this run.")];
  const { sizes, counts } = division;
  const names = valueOf(DATA.classes, run.index) ?? [];
  const sum = sizes.reduce((all, size) => all + size, 0);
  const told = `${counted(sum, "image")} of ${counts ? counted(counts[0].length, "class").replace("classs", "classes") : "all classes"} on ${counted(sizes.length, "client")}, ${Math.min(...sizes)} to ${Math.max(...sizes)} each.`;
  const head = ["Client", "Images", ...(counts ? ["Of each class"] : [])];
  const held = (row) => row.flatMap((n, index) => (n ? [`${names[index] ?? index}: ${n}`] : [])).join(", ");
  const rows = sizes.map((size, client) => [
    String(client),
    String(size),
    ...(counts ? [held(counts[client])] : []),
  ]);
  return [
    el("p", {}, counts ? told : `${told} How many of each class is not shown here.`),
    scrolled("Picture of the division", divisionPicture(sizes, counts, names, told)),
    el(
      "details",
      {},
      el("summary", {}, "The numbers of this picture"),
      scrolled("Images by client", plainTable(head, rows)),
    ),
  ];
}

/* A row a client: a bubble a class, its area the number of images, and a bar for all of them. */
function divisionPicture(sizes, counts, names, told) {
  const step = sizes.length > 40 ? 9 : 16;
  const left = 58;
  const classes = counts ? counts[0].length : 0;
  const bars = left + classes * step + 14;
  const largest = counts ? Math.max(...counts.flat()) : 1;
  const most = Math.max(...sizes, 1);
  const height = 30 + sizes.length * step;
  const picture = svg("svg", {
    class: "division",
    width: bars + 170,
    height,
    viewBox: `0 0 ${bars + 170} ${height}`,
    role: "img",
    "aria-label": told,
  });
  const label = (x, text, anchor) => picture.append(svg("text", { x, y: 12, "text-anchor": anchor }, text));
  label(left - 10, "Client", "end");
  if (classes) label(left, "Classes", "start");
  label(bars, "Images", "start");
  sizes.forEach((size, client) => {
    const y = 24 + (client + 0.5) * step;
    if (step > 10 || client % 5 === 0) {
      picture.append(svg("text", { x: left - 10, y: y + 4, "text-anchor": "end" }, String(client)));
    }
    counts?.[client].forEach((n, index) => {
      if (!n) return;
      const bubble = svg("circle", {
        cx: left + (index + 0.5) * step,
        cy: y,
        r: (0.48 * step * Math.sqrt(n / largest)).toFixed(2),
      });
      bubble.append(
        svg("title", {}, `Client ${client}, ${names[index] ?? `class ${index}`}: ${counted(n, "image")}`),
      );
      picture.append(bubble);
    });
    picture.append(
      svg("rect", { x: bars, y: y - step * 0.3, width: (100 * size) / most, height: step * 0.6 }),
    );
    if (step > 10) {
      picture.append(
        svg("text", { x: bars + (100 * size) / most + 5, y: y + 4 }, size.toLocaleString("en-US")),
      );
    }
  });
  return picture;
}

function fieldsOf(byField, run) {
  return Object.entries(byField)
    .map(([name, coded]) => [name, valueOf(coded, run.index)])
    .filter(([, value]) => value !== undefined);
}
const plainly = (value) =>
  value === null ? "none" : typeof value === "object" ? JSON.stringify(value) : String(value);
const listed = (entries, otherwise) => [
  entries.length ? pairs(entries.map(([name, value]) => [name, plainly(value)])) : el("p", {}, otherwise),
];

function invariantsPart(run) {
  const found = fieldsOf(DATA.invariants, run);
  if (!found.length) return [el("p", {}, run.broken ? `Did not hold: ${run.broken}.` : "None was checked.")];
  return [
    el(
      "ul",
      { class: "held" },
      ...found.map(([name, reason]) =>
        el(
          "li",
          { class: reason ? "warning" : null },
          `${reason ? "✗" : "✓"} ${name.replaceAll("_", " ")}: ${reason ? `did not hold (${reason})` : "held"}`,
        ),
      ),
    ),
  ];
}
const configPart = (run) => listed(fieldsOf(DATA.config, run), "Not known here; see the run's file.");
const environmentPart = (run) =>
  listed(fieldsOf(DATA.environment, run), "Not known here; see the run's file.");

function originPart(run) {
  const sat = DATA.sittings[run.index].map((sitting) =>
    [
      sitting.began,
      sitting.host,
      known(sitting.first_round) ? `rounds ${sitting.first_round} to ${sitting.last_round ?? ABSENT}` : "",
      known(sitting.seconds) ? `${digits(sitting.seconds)} s` : "",
    ]
      .filter(known)
      .join(", "),
  );
  const said = [
    ["Hash", run.hash],
    ["File", run.file],
    ["Acceleration", run.acceleration || "not known"],
    ...sat.map((text, index) => [`Sitting ${index + 1}`, text]),
    ...fieldsOf(DATA.definition, run).map(([name, value]) => [`Definition, ${name}`, plainly(value)]),
  ];
  return [pairs(said), ...commandOf(run)];
}

function commandOf(run) {
  const fields = fieldsOf(DATA.config, run);
  if (!fields.length) return [];
  const config = {};
  for (const [path, value] of fields) {
    const names = path.split(".");
    const last = names.pop();
    names.reduce((section, name) => (section[name] ??= {}), config)[last] = value;
  }
  const command = `cat > ${run.hash}.yaml <<'END'\n${JSON.stringify(config, null, 1)}\nEND\nflora-bench run ${run.hash}.yaml --results repeated`;
  const said = el("span", { role: "status" });
  const copy = el(
    "button",
    {
      type: "button",
      click: async () => {
        try {
          await navigator.clipboard.writeText(command);
          said.textContent = " copied";
        } catch {
          said.textContent = " cannot be copied here: mark it and copy";
        }
      },
    },
    "Copy",
  );
  return [
    el("p", {}, "To repeat it: ", copy, said),
    scrolled("Command", el("pre", { class: "command" }, command)),
  ];
}
