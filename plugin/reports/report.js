// Pointing at a thought shows it beside the drawing; arrow keys walk the tree. Everything shown is read from the table below.
"use strict";
for (const root of document.querySelectorAll(".pareto")) {
  const map = root.querySelector(".map");
  const panel = root.querySelector(".panel");
  const table = root.querySelector(".all table");
  if (!map || !panel || !table) continue;

  const bars = new Map([...map.querySelectorAll("svg a")].map((bar) => [bar.dataset.t, bar]));
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const row = (id) => document.getElementById(map.dataset.prefix + id);
  let current = map.querySelector("svg a[aria-current]") || map.querySelector("svg a");

  const scroller = map.parentElement;
  const above = current.getBoundingClientRect().top - scroller.getBoundingClientRect().top;
  scroller.scrollTop = above - scroller.clientHeight / 2;

  const make = (name, text) => {
    const element = document.createElement(name);
    element.textContent = text;
    return element;
  };

  function show(id) {
    const cells = [...row(id).cells];
    const title = make("h3", "Thought " + id + " ");
    if (row(id).classList.contains("chosen")) title.append(make("em", "✓ chosen"));
    const facts = document.createElement("dl");
    for (let i = 1; i < cells.length; i++) {
      if (cells[i].textContent && names[i] !== "text") facts.append(make("dt", names[i]), make("dd", cells[i].textContent));
    }
    const whole = row(id).querySelector(".text pre, .text .whole");
    const text = make("pre", whole ? whole.textContent : "");
    text.dir = "auto";
    text.tabIndex = 0;
    panel.replaceChildren(title, facts, ...(text.textContent ? [text] : []));
  }

  function look(bar) {
    for (const one of map.querySelectorAll("svg a.on")) one.classList.remove("on");
    for (let one = bar; one; one = bars.get(one.dataset.p)) one.classList.add("on");
    map.classList.toggle("looking", Boolean(bar));
  }

  function choose(bar) {
    current.removeAttribute("aria-current");
    current.setAttribute("tabindex", "-1");
    current = bar;
    current.setAttribute("aria-current", "true");
    current.setAttribute("tabindex", "0");
    show(bar.dataset.t);
  }

  const barOf = (event) => {
    const at = event.target.closest && event.target.closest("a[data-t]");
    return at ? bars.get(at.dataset.t) : undefined;
  };
  map.addEventListener("pointerover", (event) => {
    const bar = barOf(event);
    if (!bar || event.pointerType === "touch") return;
    look(bar);
    show(bar.dataset.t);
  });
  map.addEventListener("pointerleave", () => {
    look(null);
    show(current.dataset.t);
  });
  map.addEventListener("click", (event) => {
    const bar = barOf(event);
    if (!bar) return;
    event.preventDefault();
    choose(bar);
  });
  map.addEventListener("focusin", (event) => {
    const bar = barOf(event);
    if (bar && bar !== current) choose(bar);
  });

  const below = (bar) => [...bars.values()].filter((one) => one.dataset.p === bar.dataset.t);
  const beside = (bar, step) => {
    const order = [...bars.values()];
    return order[order.indexOf(bar) + step];
  };
  const moves = {
    ArrowLeft: (bar) => bars.get(bar.dataset.p),
    ArrowRight: (bar) => below(bar)[0],
    ArrowDown: (bar) => beside(bar, 1),
    ArrowUp: (bar) => beside(bar, -1),
    Home: () => [...bars.values()][0],
    End: () => [...bars.values()].pop(),
  };
  map.addEventListener("keydown", (event) => {
    const bar = barOf(event);
    const move = moves[event.key];
    if (!bar || !move) return;
    event.preventDefault();
    const next = move(bar);
    if (!next) return;
    choose(next);
    next.focus({ preventScroll: true });
    next.querySelector(".bar").scrollIntoView({ block: "nearest" });
  });
}

// A link to a thought opens the list that it stands in.
function open() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const list = target && target.closest("details.block");
  if (list && !list.open) {
    list.open = true;
    target.scrollIntoView({ block: "center" });
  }
}
addEventListener("hashchange", open);
open();
