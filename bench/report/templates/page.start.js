/* All together: what happens at first, and whenever something is chosen. */

function update() {
  const runs = chosen();
  writeState();
  hideTip();
  byId("shown").textContent = runs.length
    ? `${runs.length.toLocaleString("en-US")} of ${counted(RUNS.length, "run")} shown`
    : `No run matches: none of ${counted(RUNS.length, "run")} is shown. Reset the filter to see all.`;
  for (const figure of FIGURES) showFigure(figure, runs);
  showMethods(runs);
  showRuns(runs);
  document.body.classList.toggle("nothing", !runs.length);
}

function refilter() {
  state.page = 0;
  showFilter();
  update();
}

function restore() {
  const open = new URLSearchParams(location.hash.slice(1)).get("run");
  readState();
  for (const name of ["x", "cost"]) {
    for (const select of document.querySelectorAll(`select.${name}`)) select.value = state[name];
  }
  refilter();
  if (open && !dialog.open) openRun(open);
}

function buildChoices() {
  for (const select of document.querySelectorAll("select.cost")) {
    select.append(...costs.map((shown) => el("option", { value: shown.column }, shown.heading)));
  }
  for (const name of ["x", "cost"]) {
    for (const select of document.querySelectorAll(`select.${name}`)) {
      select.addEventListener("change", () => {
        state[name] = select.value;
        for (const other of document.querySelectorAll(`select.${name}`)) other.value = select.value;
        update();
      });
    }
  }
}

function buildTheme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  METHODS.forEach((method, place) => {
    const { light, dark: onDark } = DATA.methods[method];
    root.style.setProperty(`--method-${place}`, `light-dark(${light}, ${onDark})`);
  });
  byId("theme").addEventListener("click", () => {
    const now = root.dataset.theme ?? (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
}

function start() {
  buildTheme();
  buildChoices();
  buildFilter();
  buildTables();
  fill(
    dialog,
    {
      close: () => {
        state.run = "";
        writeState();
      },
      click: (event) => {
        if (event.target === dialog) dialog.close();
      },
    },
    [],
  );
  byId("close").addEventListener("click", () => dialog.close());
  // an anchor would take the place of the view in the address
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const place = byId(link.hash.slice(1));
      place.scrollIntoView();
      place.focus({ preventScroll: true });
    });
  }
  addEventListener("hashchange", () => {
    if (dialog.open) dialog.close();
    restore();
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
  });
  addEventListener("scroll", () => tip.hidden || placeTip(), { passive: true, capture: true });
  ROOMY.addEventListener("change", update);
  restore();
}

start();
