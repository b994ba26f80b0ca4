/* A figure's panels, drawn as plain SVG: scales, marks, and the numbers that a mark tells. */

/* ---- Scales and marks ---- */

const PANEL = { width: 340, height: 236, left: 44, right: 12, top: 10, bottom: 40 };
const WIDE = { ...PANEL, width: 620, height: 320 };
const ROOMY = matchMedia("(min-width: 45rem)");
/* A panel that stands alone is wider, where there is room: its text keeps its size. */
const frameOf = (panels) => (panels === 1 && ROOMY.matches ? WIDE : PANEL);

function scaleOf(low, high, from, to, log = false) {
  const place = log ? Math.log10 : (value) => value;
  const span = place(high) - place(low) || 1;
  const at = (value) => from + ((place(value) - place(low)) / span) * (to - from);
  return { at, low, high, ticks: log ? logTicks(low, high) : ticks(low, high) };
}

function ticks(low, high, most = 5) {
  const rough = (high - low || 1) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-9; tick++) {
    found.push(tick * step + 0);
  }
  return found;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const parts = decades < 0.8 ? [1, 1.5, 2, 3, 5, 7] : decades < 1.8 ? [1, 2, 5] : [1];
  const stride = Math.max(1, Math.round(decades / 5));
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    if (parts.length === 1 && power % stride) continue;
    for (const part of parts) {
      const tick = part * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
    }
  }
  return found;
}

const CORNERS = {
  "^": [3, -90],
  v: [3, 90],
  "<": [3, 180],
  ">": [3, 0],
  s: [4, 45],
  D: [4, 0],
  d: [4, 0],
  p: [5, -90],
  h: [6, -90],
  H: [6, 0],
  8: [8, 22.5],
};
const turned = (x, y, radius, degrees) =>
  `${(x + radius * Math.cos((degrees * Math.PI) / 180)).toFixed(1)},${(y + radius * Math.sin((degrees * Math.PI) / 180)).toFixed(1)}`;

/* A marker of matplotlib's by its sign, as a path. */
function markerPath(sign, x, y, radius) {
  const closed = (points) => `M${points.join("L")}Z`;
  if (sign === "*") {
    return closed(
      Array.from({ length: 10 }, (_, i) => turned(x, y, i % 2 ? radius * 0.45 : radius * 1.25, 36 * i - 90)),
    );
  }
  if (sign === "P" || sign === "X") {
    const turn = sign === "X" ? 45 : 0;
    const arms = [0, 90, 180, 270].flatMap((arm) =>
      [
        [-20, 1.15],
        [20, 1.15],
        [45, 0.55],
      ].map(([by, far]) => turned(x, y, radius * far, arm + by + turn)),
    );
    return closed(arms);
  }
  const [n, from] = CORNERS[sign] ?? [0, 0];
  if (n) {
    return closed(Array.from({ length: n }, (_, i) => turned(x, y, radius * 1.15, from + (360 / n) * i)));
  }
  return `M${(x - radius).toFixed(1)},${y.toFixed(1)}a${radius},${radius} 0 1 0 ${2 * radius},0a${radius},${radius} 0 1 0 ${-2 * radius},0Z`;
}

const colourOf = (method) => `var(--method-${METHODS.indexOf(method)})`;

function lineOf(method, path, width = 1.6) {
  const dashes = DATA.methods[method].dashes.map((length) => length * width).join(" ");
  return svg("path", {
    d: path,
    fill: "none",
    stroke: colourOf(method),
    "stroke-width": width,
    "stroke-dasharray": dashes || null,
  });
}

const pathOf = (points) =>
  points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");

/* ---- A figure: panels of marks that tell their numbers ---- */

/* Each mark: {method, x, y, half, xHalf, text}; a series is the marks of a method in order. */
function plot(panel, frame, { x, y, zero, joined }) {
  const { left, right, top, bottom, width, height } = frame;
  const across = scaleOf(x.low, x.high, left, width - right, x.log);
  const up = scaleOf(y.low, y.high, height - bottom, top);
  const picture = picturedPanel(panel, frame);
  drawAxes(
    picture,
    frame,
    across,
    up,
    { ...x, ticks: (x.ticks ?? across.ticks).filter((tick) => !x.whole || Number.isInteger(tick)) },
    y,
  );
  // a picture in the picture: what leaves the frame is cut off
  const box = { x: left, y: top - 4, width: width - left - right + 6, height: height - top - bottom + 8 };
  const inside = svg("svg", { ...box, viewBox: Object.values(box).join(" ") });
  if (known(zero)) {
    inside.append(
      svg("path", {
        class: "zero",
        d: pathOf([
          [left, up.at(zero)],
          [width - right, up.at(zero)],
        ]),
      }),
    );
  }
  if (!joined) {
    // what is no better than the model as it came, which costs nothing, is on no front
    const gained = panel.series.flat().filter((mark) => !known(zero) || mark.y > zero);
    inside.append(svg("path", { class: "front", d: frontPath(gained, across, up) }));
  }
  for (const series of panel.series) inside.append(...drawSeries(series, across, up, joined));
  picture.append(inside);
  const marks = panel.series.flat().map((mark) => ({ ...mark, left: across.at(mark.x), top: up.at(mark.y) }));
  explore(picture, marks, panel);
  return picture;
}

function drawSeries(series, across, up, joined) {
  const { method } = series[0];
  const line = series.filter((mark) => !mark.apart);
  const made = [];
  if (joined && line.some((mark) => mark.half > 0)) {
    const edge = (sign) => line.map((mark) => [across.at(mark.x), up.at(mark.y + sign * mark.half)]);
    made.push(
      svg("path", {
        class: "band",
        fill: colourOf(method),
        d: `${pathOf([...edge(1), ...edge(-1).reverse()])}Z`,
      }),
    );
  }
  if (joined && line.length > 1) {
    made.push(lineOf(method, pathOf(line.map((mark) => [across.at(mark.x), up.at(mark.y)]))));
  }
  const whiskers = (joined ? series.filter((mark) => mark.apart) : series)
    .map((mark) => whiskerPath(mark, across, up))
    .join("");
  if (whiskers) {
    made.push(svg("path", { d: whiskers, stroke: colourOf(method), "stroke-width": 1.2, fill: "none" }));
  }
  const every = Math.max(1, Math.ceil(line.length / MARKS_OF_A_CURVE));
  const marked = series.filter((mark, index) => mark.apart || (line.length - 1 - index) % every === 0);
  const sign = DATA.methods[method].marker;
  made.push(
    svg("path", {
      fill: colourOf(method),
      d: marked
        .map((mark) => markerPath(sign, across.at(mark.x), up.at(mark.y), joined ? 3.2 : 4.5))
        .join(""),
    }),
  );
  return made;
}

/* Steps through the marks that no other beats in both cost and accuracy. */
function frontPath(marks, across, up) {
  const best = [...marks]
    .sort((a, b) => a.x - b.x || b.y - a.y)
    .reduce((kept, mark) => (kept.length && kept[kept.length - 1].y >= mark.y ? kept : [...kept, mark]), []);
  return pathOf(
    best.flatMap((mark, index) => [
      ...(index ? [[across.at(mark.x), up.at(best[index - 1].y)]] : []),
      [across.at(mark.x), up.at(mark.y)],
    ]),
  );
}

function whiskerPath(mark, across, up) {
  const x = across.at(mark.x);
  const y = up.at(mark.y);
  const upright =
    mark.half > 0
      ? pathOf([
          [x, up.at(mark.y - mark.half)],
          [x, up.at(mark.y + mark.half)],
        ])
      : "";
  const lowest = Math.max(mark.x - (mark.xHalf ?? 0), across.low);
  const flat =
    mark.xHalf > 0
      ? pathOf([
          [across.at(lowest), y],
          [across.at(mark.x + mark.xHalf), y],
        ])
      : "";
  return upright + flat;
}

function picturedPanel(panel, frame) {
  const told = panel.series
    .map((series) => series[series.length - 1].text().slice(0, 2).join(": "))
    .join("; ");
  return svg("svg", {
    viewBox: `0 0 ${frame.width} ${frame.height}`,
    tabindex: 0,
    role: "img", // not "application", in which a screen reader's own keys do nothing
    "aria-label": `${panel.title}. ${panel.what}. ${told}. All its numbers stand in a table below.`,
  });
}

function drawAxes(picture, frame, across, up, x, y) {
  const { left, right, top, bottom, width, height } = frame;
  const floor = height - bottom;
  const grid = up.ticks
    .map((tick) =>
      pathOf([
        [left, up.at(tick)],
        [width - right, up.at(tick)],
      ]),
    )
    .join("");
  picture.append(
    svg("path", { class: "grid", d: grid }),
    svg("path", {
      class: "axis",
      d: pathOf([
        [left, top],
        [left, floor],
        [width - right, floor],
      ]),
    }),
  );
  for (const tick of up.ticks) {
    picture.append(svg("text", { x: left - 5, y: up.at(tick) + 3.8, "text-anchor": "end" }, y.text(tick)));
  }
  for (const tick of x.ticks) {
    const edge = across.at(tick) > width - right - 14 ? "end" : "middle";
    picture.append(
      svg("path", {
        class: "axis",
        d: pathOf([
          [across.at(tick), floor],
          [across.at(tick), floor + 4],
        ]),
      }),
    );
    picture.append(
      svg(
        "text",
        { x: across.at(tick) + (edge === "end" ? 8 : 0), y: floor + 16, "text-anchor": edge },
        x.text(tick),
      ),
    );
  }
  picture.append(
    svg(
      "text",
      { class: "name", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" },
      x.name,
    ),
  );
  picture.append(
    svg(
      "text",
      { class: "name", transform: `translate(10 ${(top + floor) / 2}) rotate(-90)`, "text-anchor": "middle" },
      y.name,
    ),
  );
}

/* Let mouse, finger and arrow keys go from mark to mark of a panel. */
function explore(picture, marks, panel) {
  const ring = svg("circle", { class: "ring", r: 7, visibility: "hidden" });
  picture.append(ring);
  let current = -1;
  const hide = () => {
    if (current < 0) return; // the tip, if there is one, is another's
    current = -1;
    ring.setAttribute("visibility", "hidden");
    hideTip();
  };
  const show = (index) => {
    if (index < 0) {
      hide();
      return;
    }
    current = index;
    const mark = marks[index];
    fill(ring, { cx: mark.left, cy: mark.top, visibility: "visible" }, []);
    showTip([...mark.text(), panel.title], () => {
      const box = picture.getBoundingClientRect();
      const scale = box.width / picture.viewBox.baseVal.width;
      return [box.left + mark.left * scale, box.top + mark.top * scale];
    });
  };
  const nearest = (event) => {
    const box = picture.getBoundingClientRect();
    const size = picture.viewBox.baseVal;
    const x = ((event.clientX - box.left) / box.width) * size.width;
    const y = ((event.clientY - box.top) / box.height) * size.height;
    const far = marks.map((mark) =>
      Math.hypot(mark.left - x, Math.max(0, Math.abs(mark.top - y) - (mark.tall ?? 0))),
    );
    const least = Math.min(...far);
    show(least < 40 ? far.indexOf(least) : -1);
  };
  fill(
    picture,
    {
      pointermove: nearest,
      pointerdown: nearest,
      pointerleave: hide,
      blur: hide,
      focus: () => {
        if (current < 0 && marks.length && picture.matches(":focus-visible")) show(0);
      },
      keydown: (event) => {
        const to = moved(marks, current, event.key);
        if (to === null) return;
        event.preventDefault();
        show(to);
      },
    },
    [],
  );
}

function moved(marks, current, key) {
  if (key === "Escape") return -1;
  const at = Math.max(current, 0);
  const own = marks.flatMap((mark, index) => (mark.method === marks[at].method ? [index] : []));
  const near = (method) => {
    const others = marks.flatMap((mark, index) => (mark.method === method ? [index] : []));
    return others.reduce(
      (best, index) =>
        Math.abs(marks[index].left - marks[at].left) < Math.abs(marks[best].left - marks[at].left)
          ? index
          : best,
      others[0],
    );
  };
  const methods = [...new Set(marks.map((mark) => mark.method))];
  const place = methods.indexOf(marks[at].method);
  const moves = {
    ArrowRight: () => own[Math.min(own.indexOf(at) + 1, own.length - 1)],
    ArrowLeft: () => own[Math.max(own.indexOf(at) - 1, 0)],
    ArrowDown: () => near(methods[(place + 1) % methods.length]),
    ArrowUp: () => near(methods[(place + methods.length - 1) % methods.length]),
    Home: () => own[0],
    End: () => own[own.length - 1],
  };
  return moves[key] ? moves[key]() : null;
}

const tip = byId("tip");

/* Say something beside a place, which may move as the page scrolls. */
function showTip(lines, place) {
  tip.replaceChildren(...lines.filter(Boolean).map((line, index) => el(index ? "span" : "b", {}, line)));
  tip.hidden = false;
  const over = dialog.open ? dialog : document.body; // nothing is seen above an open dialog but what is in it
  if (tip.parentElement !== over) over.append(tip);
  placeTip = () => setTip(...place());
  placeTip();
}

let placeTip = () => {};

function setTip(x, y) {
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, document.documentElement.clientWidth - width - 4))}px`;
  tip.style.top = `${y + 16 + height < innerHeight ? y + 16 : Math.max(4, y - height - 12)}px`;
}

function hideTip() {
  tip.hidden = true;
}
