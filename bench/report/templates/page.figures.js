/* The four figures: which panels they have, and of which numbers. */

const titleOf = (run, fields) =>
  fields
    .filter((field) => field !== "model" || DATA.runs.model.values.length > 1)
    .map((field) => run[field])
    .join(" · ");
const isZeroShot = (run) => run.kind === "zero_shot";
const byMethod = (runs) => groupsOf(runs, ["method"]);

function zeroShotOf(runs) {
  const hidden = METHODS.some(
    (_, place) =>
      !state.method.has(place) && RUNS.some((run) => run.code.method === place && isZeroShot(run)),
  );
  return hidden
    ? NaN
    : meanOf(
        runs.map((run) => run.figures.zero_shot_accuracy ?? (isZeroShot(run) ? run.figures.accuracy : null)),
      ).mean;
}

const CURVES = {
  round: {
    name: "Round",
    whole: true,
    text: (tick) => fixed(tick, 0),
    say: (x) => `after round ${fixed(x, 0)}`,
    at: (row) => ROUNDS.round[row],
  },
  bytes: {
    name: "Bytes sent so far, up + down, all clients",
    text: axisText("bytes"),
    say: (x) => `after ${UNITS.bytes(x)}`,
    log: true,
    at: (row) => ROUNDS.cumulative_bytes?.[row],
  },
  seconds: {
    name: "Seconds of training and exchange so far",
    text: axisNumber,
    say: (x) => `after ${digits(x)} s`,
    log: true,
    at: (row) => ROUNDS.cumulative_seconds?.[row],
  },
};
function axisNumber(value) {
  return grouped(String(Number(value.toPrecision(2))));
}
function axisText(unit) {
  const write = { bytes: bytesText, operations: operationsText, count: operationsText }[unit];
  return write
    ? (tick) =>
        write(tick)
          .replace(/(\.\d*?)0+(?=\D|$)/, "$1")
          .replace(/\.(?=\D|$)/, "")
    : axisNumber;
}

function curvePanel(runs) {
  const over = CURVES[state.x];
  const series = byMethod(runs.filter((run) => !isZeroShot(run)))
    .map((group) => curveOf(group, over))
    .filter((marks) => marks.length > (over.log ? 0 : 1));
  return {
    task: runs[0].task,
    title: titleOf(runs[0], CELL),
    what: `Test accuracy over ${state.x === "round" ? "rounds" : state.x}`,
    series,
    zero: zeroShotOf(runs),
  };
}

function curveOf(group, over) {
  const rows = new Map();
  for (const run of group) {
    for (const row of ROUNDS.of(run)) {
      if (ROUNDS.accuracy[row] === null) continue;
      const round = ROUNDS.round[row];
      if (!rows.has(round)) rows.set(round, []);
      rows.get(round).push(row);
    }
  }
  const marks = [...rows]
    .sort(([a], [b]) => a - b)
    .map(([, found]) => {
      const accuracy = meanOf(found.map((row) => ROUNDS.accuracy[row]));
      const x = meanOf(found.map(over.at)).mean;
      return markOf(group[0].method, x, accuracy, () => [over.say(x)]);
    });
  return marks.filter((mark) => known(mark.x) && (!over.log || mark.x > 0));
}

function markOf(method, x, accuracy, more) {
  return {
    method,
    x,
    y: accuracy.mean,
    half: drawnHalf(accuracy),
    n: accuracy.n,
    found: accuracy,
    text: () => [method, meanText(accuracy, "share"), ...more(), seedsText(accuracy.n)],
  };
}
const seedsText = (n) => (n === 1 ? "one seed" : `mean of ${n} seeds`);

function frontPanel(runs) {
  const cost = SHOWN.get(state.cost);
  const series = byMethod(runs.filter((run) => !isZeroShot(run)))
    .map((group) => {
      const accuracy = meanOf(group.map((run) => run.figures.accuracy));
      const spent = meanOf(group.map((run) => run.figures[cost.column]));
      return [
        {
          ...markOf(group[0].method, spent.mean, accuracy, () => [
            `${cost.heading}: ${meanText(spent, cost.unit)}`,
          ]),
          xHalf: drawnHalf(spent),
          spent,
        },
      ];
    })
    .filter(([mark]) => known(mark.x) && known(mark.y));
  return {
    task: runs[0].task,
    title: titleOf(runs[0], CELL),
    what: `Test accuracy against ${cost.heading}`,
    series,
    zero: zeroShotOf(runs),
  };
}

function shotsPanel(runs) {
  const images = DATA.runs.images;
  const counts = [...new Set(runs.map((run) => images[run.code.shots]))];
  if (counts.filter((count) => count !== null).length < 2) return null;
  const most = Math.max(...counts.filter((count) => count !== null));
  const series = byMethod(runs.filter((run) => !isZeroShot(run))).map((group) =>
    groupsOf(group, ["shots"])
      .map((part) => {
        const shots = images[part[0].code.shots];
        const accuracy = meanOf(part.map((run) => run.figures.accuracy));
        const mark = markOf(group[0].method, Math.log2(shots ?? 2 * most), accuracy, () => [part[0].shots]);
        return { ...mark, apart: shots === null };
      })
      .sort((a, b) => a.x - b.x)
      .filter((mark) => known(mark.y)),
  );
  const at = counts.map((count) => Math.log2(count ?? 2 * most)).sort((a, b) => a - b);
  const zero = zeroShotOf(runs);
  return {
    task: runs[0].task,
    title: titleOf(runs[0], ["task", "model", "split"]),
    what: "Test accuracy by shots",
    series: series.filter((marks) => marks.length),
    zero,
    at,
    text: (tick) => (tick > Math.log2(most) + 0.5 ? "all" : String(Math.round(2 ** tick))),
  };
}

function barPanel(runs) {
  const cost = SHOWN.get(state.cost);
  const groups = byMethod(runs);
  const spent = groups.map((group) => meanOf(group.map((run) => run.figures[cost.column])));
  const isReference = (run) => DATA.reference === run.kind || DATA.reference === run.method;
  const referenceOf = (run) =>
    groups.findIndex(([first]) => isReference(first) && first.acceleration === run.acceleration);
  const series = groups
    .map(([run], index) => {
      const reference = referenceOf(run);
      const base = spent[reference]?.mean;
      const own = spent[index].mean;
      const compares = base > 0 && own > 0 && index !== reference && !isZeroShot(run);
      const ratio = compares ? `${digits(base / own)}×` : "";
      const text = () => [
        run.method,
        meanText(spent[index], cost.unit),
        ratio && `${ratio} less than ${groups[reference][0].method}`,
        seedsText(spent[index].n),
      ];
      return [
        {
          method: run.method,
          x: own,
          y: index,
          found: spent[index],
          n: spent[index].n,
          half: drawnHalf(spent[index]),
          ratio,
          text,
        },
      ];
    })
    .filter(([mark]) => mark.x > 0);
  return { task: runs[0].task, title: titleOf(runs[0], CELL), what: cost.heading, series };
}

/* Panels of one task share their axes. */
function framed(panels, log) {
  const all = panels.flatMap((panel) => panel.series.flat());
  const zeros = panels.map((panel) => panel.zero).filter(known);
  const ys = [...all.map((mark) => mark.y), ...zeros];
  const low = Math.min(...ys);
  const high = Math.max(...ys);
  const pad = Math.max(0.12 * (high - low), (0.05 - (high - low)) / 2);
  const xs = all.map((mark) => mark.x);
  const least = Math.min(...xs);
  const most = Math.max(...xs);
  const room = log ? (most / least) ** 0.06 * 1.05 : 1;
  const x = { low: least / room, high: most * room };
  return {
    x,
    y: {
      low: Math.max(low - pad, -0.01),
      high: Math.min(high + pad, 1.01),
      name: "Accuracy (%)",
      text: (tick) => String(Number((100 * tick).toFixed(2))),
    },
  };
}

function drawCurves(panel, frame, alike) {
  const over = CURVES[state.x];
  const { x, y } = framed(alike, over.log);
  return plot(panel, frame, { x: { ...over, ...x }, y, zero: panel.zero, joined: true });
}

function drawFront(panel, frame, alike) {
  const cost = SHOWN.get(state.cost);
  const marks = alike.flatMap((one) => one.series.flat()).map((mark) => mark.x);
  const least = Math.min(...marks);
  const log = least > 0 && Math.max(...marks) / least > 8;
  const { x, y } = framed(alike, log);
  if (!log) x.low = 0;
  if (!log) x.high *= 1.08;
  return plot(panel, frame, {
    x: { ...x, name: headingOf(cost), text: axisText(cost.unit), log },
    y,
    zero: panel.zero,
    joined: false,
  });
}

function drawShots(panel, frame, alike) {
  const { x, y } = framed(alike, false);
  return plot(panel, frame, {
    x: {
      low: x.low - 0.15,
      high: x.high + 0.15,
      name: "Shots (images per class and client)",
      ticks: panel.at,
      text: panel.text,
    },
    y,
    zero: panel.zero,
    joined: true,
  });
}

const BAR = { row: 36, top: 2 };

function drawBars(panel, frame, alike) {
  const cost = SHOWN.get(state.cost);
  const marks = panel.series.flat();
  const most = Math.max(...alike.flatMap((one) => one.series.flat()).map((mark) => mark.x + mark.half));
  const size = { ...frame, height: BAR.top + BAR.row * marks.length + 4 };
  const picture = picturedPanel(panel, size);
  const across = scaleOf(0, most, 4, frame.width - 8);
  marks.forEach((mark, index) => {
    const top = BAR.top + BAR.row * index;
    const end = across.at(mark.x);
    const longest = Math.floor(frame.width / 6) - 22;
    const name = mark.method.length > longest ? `${mark.method.slice(0, longest - 1)}…` : mark.method;
    picture.append(svg("text", { x: 8, y: top + 12 }, name));
    picture.append(
      svg(
        "text",
        { x: frame.width - 8, y: top + 12, "text-anchor": "end" },
        [withUnit(mark.x, cost.unit), mark.ratio].filter(Boolean).join(", "),
      ),
    );
    picture.append(
      svg("rect", {
        class: "bar",
        x: 4,
        y: top + 17,
        width: Math.max(end - 4, 1),
        height: 11,
        fill: colourOf(mark.method),
      }),
    );
    if (mark.half > 0) {
      picture.append(
        svg("path", {
          class: "whisker",
          d: whiskerPath({ x: mark.x, y: 0, xHalf: mark.half }, across, { at: () => top + 22.5 }),
        }),
      );
    }
    Object.assign(mark, { left: Math.min(end, frame.width - 12), top: top + 22, tall: 12 });
  });
  picture.append(
    svg("path", {
      class: "axis",
      d: pathOf([
        [4, 0],
        [4, size.height],
      ]),
    }),
  );
  explore(
    picture,
    marks.map((mark) => ({ ...mark })),
    panel,
  );
  return picture;
}

const FIGURES = [
  {
    id: "curves",
    fields: CELL,
    panel: curvePanel,
    draw: drawCurves,
    columns: () => [
      CURVES[state.x].name,
      state.x === "bytes" ? "bytes" : state.x === "seconds" ? "seconds" : "count",
    ],
    unit: () => "share",
  },
  {
    id: "shots",
    fields: ["task", "model", "split"],
    panel: shotsPanel,
    draw: drawShots,
    columns: null,
    unit: () => "share",
  },
  {
    id: "front",
    fields: CELL,
    panel: frontPanel,
    draw: drawFront,
    columns: () => [headingOf(SHOWN.get(state.cost)), SHOWN.get(state.cost).unit],
    unit: () => "share",
  },
  {
    id: "bars",
    fields: CELL,
    panel: barPanel,
    draw: drawBars,
    columns: null,
    unit: () => SHOWN.get(state.cost).unit,
  },
];

/* The first panels that have something to show, and how many groups of runs are left. */
function panelsOf(figure, runs) {
  const groups = groupsOf(runs, figure.fields);
  const drawn = [];
  while (groups.length && drawn.length < MOST_PANELS) {
    const panel = figure.panel(groups.shift());
    if (panel?.series.length) drawn.push(panel);
  }
  return { drawn, left: groups.length };
}

function showFigure(figure, runs) {
  const root = byId(figure.id);
  const { drawn, left } = panelsOf(figure, runs);
  const frame = frameOf(drawn.length);
  root.hidden = figure.id === "shots" && !drawn.length;
  root.querySelector(".panels").replaceChildren(
    ...drawn.map((panel) => {
      const alike = drawn.filter((other) => other.task === panel.task);
      return el(
        "div",
        { class: drawn.length === 1 ? "panel wide" : "panel" },
        el("p", {}, panel.title),
        figure.draw(panel, frame, alike),
      );
    }),
  );
  root.querySelector(".key").replaceChildren(...keyOf(drawn, figure));
  root.querySelector(".more").textContent = !drawn.length
    ? "Nothing to draw in the runs chosen."
    : left
      ? `${drawn.length} of ${drawn.length + left} panels are drawn; filter to see the others.`
      : "";
  for (const told of root.querySelectorAll(".ratios")) {
    told.hidden = !drawn.some(({ series }) => series.flat().some(({ ratio }) => ratio));
  }
  const numbers = root.querySelector("details");
  numbers.hidden = !drawn.length;
  const list = () => {
    if (numbers.open) numbers.querySelector(".scroll").replaceChildren(numbersOf(figure, drawn));
  };
  numbers.ontoggle = list;
  list();
}

function keyOf(panels, figure) {
  if (figure.id === "bars") return [];
  const methods = [...new Set(panels.flatMap((panel) => panel.series.map(([mark]) => mark.method)))].sort(
    (a, b) => METHODS.indexOf(a) - METHODS.indexOf(b),
  );
  const swatch = (line, sign) =>
    svg("svg", { viewBox: "0 0 34 12", width: 34, height: 12, "aria-hidden": "true" }, ...line, ...sign);
  const entries = methods.map((method) =>
    el(
      "li",
      {},
      swatch(figure.id === "front" ? [] : [lineOf(method, "M1,6L33,6")], [
        svg("path", { d: markerPath(DATA.methods[method].marker, 17, 6, 3.6), fill: colourOf(method) }),
      ]),
      method,
    ),
  );
  if (panels.some((panel) => known(panel.zero))) {
    entries.push(el("li", {}, swatch([svg("path", { class: "zero", d: "M1,6L33,6" })], []), "Zero-shot"));
  }
  return entries;
}

function numbersOf(figure, panels) {
  const [name, unit] = figure.columns?.() ?? [];
  const head = [
    "Panel",
    "Method",
    ...(name ? [name] : figure.id === "shots" ? ["Shots"] : []),
    figure.unit() === "share" ? "Accuracy (%)" : headingOf(SHOWN.get(state.cost)),
    ...(figure.id === "bars" ? ["Times less"] : []),
    "Seeds",
  ];
  const rows = panels.flatMap((panel) =>
    panel.series
      .flat()
      .map((mark) => [
        panel.title,
        mark.method,
        ...(name ? [written(mark.x, unit)] : figure.id === "shots" ? [panel.text(mark.x)] : []),
        meanText(mark.found, figure.unit(), ""),
        ...(figure.id === "bars" ? [mark.ratio || ABSENT] : []),
        String(mark.n),
      ]),
  );
  return plainTable(head, rows);
}

function plainTable(head, rows, caption = "") {
  return el(
    "table",
    {},
    caption ? el("caption", {}, caption) : null,
    el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))),
    el(
      "tbody",
      {},
      ...rows.map(([first, ...others]) =>
        el("tr", {}, el("th", { scope: "row" }, first), ...others.map((text) => el("td", {}, text))),
      ),
    ),
  );
}
