"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const tip = one("#tip");

  const say = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x + 14), innerWidth - box.width - 8);
    const below = y + 18 + box.height < innerHeight;
    tip.style.left = `${left}px`;
    tip.style.top = `${below ? y + 18 : Math.max(8, y - box.height - 12)}px`;
  };
  const hush = () => { tip.hidden = true; };
  const sayAt = (element, text) => {
    const box = element.getBoundingClientRect();
    say(text, box.left + box.width / 2, box.bottom - 10);
  };

  // anything with data-tip, by pointer or by focus
  const tipped = (event) => event.target.closest?.("[data-tip]");
  addEventListener("pointermove", (event) => {
    const element = tipped(event);
    if (element) say(element.dataset.tip, event.clientX, event.clientY);
  });
  addEventListener("pointerout", (event) => { if (tipped(event)) hush(); });
  addEventListener("focusin", (event) => {
    const element = tipped(event);
    if (element) sayAt(element, element.dataset.tip);
  });
  addEventListener("focusout", hush);
  addEventListener("scroll", hush, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });

  // one tab stop for many things: arrows, Home and End walk between them
  const walk = (items, step) => items.forEach((item, at) => item.addEventListener("keydown", (event) => {
    const to = event.key === "Home" ? 0 : event.key === "End" ? items.length - 1 : at + (step[event.key] ?? 0);
    if (to === at || !items[to]) return;
    event.preventDefault();
    item.tabIndex = -1;
    items[to].tabIndex = 0;
    items[to].focus();
  }));
  const aside = { ArrowRight: 1, ArrowLeft: -1 };

  const place = (dot) => parseFloat(dot.style.left);
  walk(all(".area .dot").sort((a, b) => place(a) - place(b)), { ...aside, ArrowUp: 1, ArrowDown: -1 });

  all("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const pre = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(pre);
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  }));

  // rank grids
  all(".nodes").forEach((nodes) => {
    const axes = nodes.dataset.axes.split(",");
    const sizes = nodes.dataset.sizes.split(",").map(Number);
    const cells = all("[data-at]", nodes).map((cell) => ({ cell, at: cell.dataset.at.split(",").map(Number) }));
    let chosen = Number(nodes.dataset.chosen);
    const paint = () => cells.forEach(({ cell, at }) => {
      cell.style.setProperty("--hue", Math.round(210 + (360 * at[chosen]) / Math.max(sizes[chosen], 2)) % 360);
    });
    const pick = (mine) => {
      nodes.classList.add("picking");
      cells.forEach(({ cell, at }) => {
        const peer = at.every((value, axis) => axis === chosen || value === mine.at[axis]);
        cell.classList.toggle("peer", peer && cell !== mine.cell);
        cell.classList.toggle("self", cell === mine.cell);
      });
    };
    const drop = () => {
      nodes.classList.remove("picking");
      hush();
    };
    cells.forEach((mine) => {
      const text = () => `${mine.cell.getAttribute("aria-label")}\nmarked: its ${axes[chosen]} group`;
      mine.cell.addEventListener("pointermove", (event) => say(text(), event.clientX, event.clientY));
      mine.cell.addEventListener("pointerenter", () => pick(mine));
      mine.cell.addEventListener("pointerleave", drop);
      mine.cell.addEventListener("focus", () => { pick(mine); sayAt(mine.cell, text()); });
      mine.cell.addEventListener("blur", drop);
    });
    walk(cells.map(({ cell }) => cell), { ...aside, ArrowDown: 4, ArrowUp: -4 });
    const buttons = all("[data-axis]", nodes.parentElement);
    buttons.forEach((button) => button.addEventListener("click", () => {
      chosen = Number(button.dataset.axis);
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      paint();
    }));
  });

  // pipeline timeline
  const data = JSON.parse(one("#timeline-data").textContent);
  const host = one("#passes"), said = one("#passes-said"), toggle = one("#critical");
  const LEFT = 58, TOP = 22, WIDEST_GAP = 24;
  const ranks = data.ranks.length, height = ranks > 24 ? 13 : ranks > 8 ? 20 : 28;
  const [cut, resume] = data.fold ?? [Infinity, Infinity];
  const gap = data.fold ? (data.ticks - (resume - cut)) * 0.05 : 0;
  const full = data.fold ? data.ticks - (resume - cut) + gap : data.ticks;
  const fold = (t) => (t < resume ? Math.min(t, cut) : t - (resume - cut) + gap); // time to place
  const unfold = (p) => (p < cut ? p : p < cut + gap ? cut : p + (resume - cut) - gap);
  const view = { from: 0, width: full };
  let picked = null, path = true, moved = false;

  const seconds = (ticks) => {
    const s = ticks * data.tick_s;
    if (s === 0) return "0 s";
    for (const [unit, name] of [[1, "s"], [1e-3, "ms"], [1e-6, "us"]]) {
      if (Math.abs(s) >= unit) return `${Number((s / unit).toPrecision(4))} ${name}`;
    }
    return `${Number((s * 1e9).toPrecision(3))} ns`;
  };
  const bars = data.ranks.map((flat, rank) => {
    const row = [];
    for (let i = 0; i < flat.length; i += 3) {
      const code = flat[i + 1], stage = Math.floor(code / 6), kind = code % 3;
      row.push({ rank, start: flat[i], stage, kind, critical: code % 6 > 2, batch: flat[i + 2],
        chunk: data.held[rank].indexOf(stage), own: data.stages[stage].own[kind] });
    }
    for (const [name, start, own] of data.tails[rank]) {
      if (own > 0) row.push({ rank, start, own, name, critical: rank === data.critical_rank });
    }
    return row;
  });
  const layers = ([first, count]) => (count === 1 ? `layer ${first}` : `layers ${first}-${first + count - 1}`);
  const words = (bar) => {
    const lasts = `${seconds(bar.own)} from ${seconds(bar.start)}`;
    const mark = bar.critical ? "\non the critical path" : "";
    if (bar.name) return `rank ${bar.rank}, ${bar.name}: ${lasts}${mark}`;
    const stage = data.stages[bar.stage];
    const chunk = data.chunks > 1 ? `, chunk ${bar.chunk}` : "";
    const parts = Object.entries(stage.parts[bar.kind]).map(([name, s]) => `${name} ${seconds(s / data.tick_s)}`);
    const pass = `${data.kinds[bar.kind]} of micro-batch ${bar.batch}`;
    return `rank ${bar.rank}${chunk}, ${pass}: ${lasts}\n${layers(stage.layers)}: ${parts.join(", ")}${mark}`;
  };

  const make = (name, attributes, parent, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const svg = make("svg", { height: TOP + ranks * height + 4, "aria-hidden": "true" }, host);
  const plotWidth = () => Math.max(60, host.clientWidth - LEFT - 2);
  const at = (t) => LEFT + ((fold(t) - view.from) / view.width) * plotWidth();
  const top = (rank) => TOP + rank * height;

  const drawAxis = () => {
    const count = Math.max(2, Math.floor(plotWidth() / 110));
    for (let i = 0; i <= count; i++) {
      const p = view.from + (view.width * i) / count;
      if (data.fold && p > cut && p < cut + gap) continue;
      const x = LEFT + (plotWidth() * i) / count;
      make("line", { class: "grid", x1: x, x2: x, y1: TOP - 4, y2: TOP + ranks * height }, svg);
      const anchor = i === 0 ? "start" : i === count ? "end" : "middle";
      make("text", { x, y: 12, "text-anchor": anchor }, svg, seconds(unfold(p)));
    }
  };
  const drawBars = () => {
    const paths = {}, marks = [], labels = [];
    const right = LEFT + plotWidth();
    for (const row of bars) for (const bar of row) {
      const x0 = Math.max(LEFT, at(bar.start)), x1 = Math.min(right, at(bar.start + bar.own));
      if (x1 <= x0) continue;
      const kind = bar.name ? "t-t" : `t-${"fbw"[bar.kind]}${bar.chunk % 2 ? " odd" : ""}`;
      const y = top(bar.rank) + 1, w = Math.max(0.4, x1 - x0 - (x1 - x0 > 3 ? 0.8 : 0)), h = height - 2;
      const shape = (y, h) => `M${x0.toFixed(1)} ${y}h${w.toFixed(1)}v${h}h${(-w).toFixed(1)}z`;
      (paths[kind] ??= []).push(shape(y, h));
      if (path && bar.critical) marks.push(shape(y + h - 3, 3));
      if (!bar.name && height >= 20 && x1 - x0 > 8 + 7 * String(bar.batch).length) labels.push([(x0 + x1) / 2, y, bar.batch]);
    }
    for (const [kind, shapes] of Object.entries(paths)) make("path", { class: kind, d: shapes.join("") }, svg);
    if (marks.length) make("path", { class: "t-critical", d: marks.join("") }, svg);
    for (const [x, y, text] of labels) make("text", { class: "in", x, y: y + height / 2 + 2 }, svg, text);
  };
  const drawFold = () => {
    const x0 = Math.max(LEFT, LEFT + ((cut - view.from) / view.width) * plotWidth());
    const x1 = Math.min(LEFT + plotWidth(), LEFT + ((cut + gap - view.from) / view.width) * plotWidth());
    if (x1 > x0) make("rect", { class: "fold", x: x0, y: TOP, width: x1 - x0, height: ranks * height }, svg);
  };
  const draw = () => {
    svg.replaceChildren();
    drawAxis();
    for (let rank = 0; rank < ranks; rank++) {
      make("rect", { class: "row", x: LEFT, y: top(rank) + 1, width: plotWidth(), height: height - 2 }, svg);
      make("text", { x: 0, y: top(rank) + height / 2 + 4 }, svg, `rank ${rank}`);
    }
    drawBars();
    if (data.fold) drawFold();
    if (picked) {
      const x = Math.max(LEFT, at(picked.start));
      const width = Math.max(2, Math.min(LEFT + plotWidth(), at(picked.start + picked.own)) - x);
      make("rect", { class: "sel", x, y: top(picked.rank), width, height: height - 1 }, svg);
    }
    host.dataset.from = view.from;
    host.dataset.width = view.width;
  };
  let asked = 0;
  const redraw = () => { asked ||= requestAnimationFrame(() => { asked = 0; draw(); }); };

  const show = (from, width) => {
    view.width = Math.min(full, Math.max(full * 1e-4, width));
    view.from = Math.min(full - view.width, Math.max(0, from));
    redraw();
  };
  const zoom = (factor, around = view.from + view.width / 2) => {
    const width = Math.min(full, Math.max(full * 1e-4, view.width * factor));
    show(around - ((around - view.from) * width) / view.width, width);
    const end = Math.min(full, view.from + view.width);
    said.textContent = `showing ${seconds(unfold(view.from))} to ${seconds(unfold(end))}`;
  };
  const placeOf = (x) => view.from + ((x - host.getBoundingClientRect().left - LEFT) / plotWidth()) * view.width;
  const find = (event) => {
    const rank = Math.floor((event.clientY - host.getBoundingClientRect().top - TOP) / height);
    const place = placeOf(event.clientX);
    if (!bars[rank] || place < view.from || (data.fold && place > cut && place < cut + gap)) return null;
    const t = unfold(place);
    return bars[rank].find((bar) => bar.start <= t && t < bar.start + bar.own) ?? null;
  };

  all("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
    if (button.dataset.zoom === "all") zoom(Infinity);
    else zoom(button.dataset.zoom === "in" ? 0.5 : 2);
  }));
  toggle.addEventListener("click", () => {
    path = !path;
    toggle.setAttribute("aria-pressed", String(path));
    redraw();
  });
  host.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) zoom(Math.exp(event.deltaY / 200), placeOf(event.clientX));
    else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) show(view.from + (event.deltaX / plotWidth()) * view.width, view.width);
    else return;
    event.preventDefault();
  }, { passive: false });
  host.addEventListener("dblclick", (event) => zoom(0.4, placeOf(event.clientX)));

  host.addEventListener("click", (event) => {
    const bar = moved ? null : find(event);
    if (!bar) return;
    select(bar);
    say(words(bar), event.clientX, event.clientY);
  });

  // drag to move, two fingers to zoom
  const held = new Map();
  host.addEventListener("pointerdown", (event) => {
    moved = false;
    held.set(event.pointerId, event.clientX);
    host.setPointerCapture(event.pointerId);
    host.classList.add("held");
  });
  const release = (event) => {
    held.delete(event.pointerId);
    if (!held.size) host.classList.remove("held");
  };
  host.addEventListener("pointerup", release);
  host.addEventListener("pointercancel", release);
  host.addEventListener("pointerleave", hush);
  host.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId);
    if (before === undefined) {
      const bar = find(event);
      if (bar) say(words(bar), event.clientX, event.clientY);
      else hush();
      return;
    }
    if (Math.abs(event.clientX - before) < 4 && !moved) return;
    moved = true;
    hush();
    if (held.size === 1) show(view.from - ((event.clientX - before) / plotWidth()) * view.width, view.width);
    if (held.size === 2) {
      const other = [...held].find(([id]) => id !== event.pointerId)[1];
      const was = Math.abs(before - other), now = Math.abs(event.clientX - other);
      if (was > WIDEST_GAP && now > WIDEST_GAP) zoom(was / now, placeOf((event.clientX + other) / 2));
    }
    held.set(event.pointerId, event.clientX);
  });

  const select = (bar) => {
    picked = bar;
    const start = fold(bar.start), end = fold(bar.start + bar.own);
    if (start < view.from || end > view.from + view.width) show((start + end - view.width) / 2, view.width);
    said.textContent = words(bar).replaceAll("\n", "; ");
    redraw();
  };
  const nearest = (rank, t) => bars[rank].reduce((best, bar) =>
    (Math.abs(bar.start - t) < Math.abs(best.start - t) ? bar : best));
  host.addEventListener("keydown", (event) => {
    const around = picked ? fold(picked.start + picked.own / 2) : undefined;
    const along = { ArrowRight: 1, ArrowLeft: -1 }[event.key], across = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "+" || event.key === "=") zoom(0.5, around);
    else if (event.key === "-") zoom(2, around);
    else if (event.key === "0") zoom(Infinity);
    else if (along && event.shiftKey) show(view.from + along * view.width * 0.25, view.width);
    else if (along || across) {
      if (!picked) select(nearest(0, unfold(view.from)));
      else if (along) select(bars[picked.rank][bars[picked.rank].indexOf(picked) + along] ?? picked);
      else if (bars[picked.rank + across]) select(nearest(picked.rank + across, picked.start));
    } else return;
    event.preventDefault();
  });
  new ResizeObserver(redraw).observe(host);
  draw();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
