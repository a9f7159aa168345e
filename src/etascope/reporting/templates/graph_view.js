"use strict";
// Draws a graph: what is open, where the window is, what is told of the node that has the focus.
const graphView = (() => {
  const root = document.getElementById("graph");
  const graph = JSON.parse(document.getElementById("graph-data").textContent);
  const items = graphLayout.index(graph);
  const [svg, details, search, hits] = ["svg", ".graph-details", "input", ".graph-hits"].map((name) =>
    root.querySelector(name),
  );
  const view = { x: 0, y: 0, k: 1 };
  const open = new Set();
  const shown = new Map(); // the element of every node and group that can be seen
  let current = null;
  let drawing = null;
  let found = [];
  let moved = false; // by hand, since it was last fitted

  const element = (name, attributes = {}, text = undefined) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) {
      made.setAttribute(key, value);
    }
    if (text !== undefined) {
      made.textContent = text;
    }
    return made;
  };

  const scene = element("g");
  const arrow = element("marker", { id: "graph-arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse" });
  arrow.append(element("path", { d: "M0 1 L7 4 L0 7 z" }));
  const definitions = element("defs");
  definitions.append(arrow);
  svg.append(definitions, scene);

  const closed = (item) => item.group && !open.has(item.name);
  const fixed = (number) => Math.round(number * 10) / 10;

  // A curve that starts and ends at the ends of a broken line and is smooth between.
  const curve = (points) => {
    const at = ({ x, y }) => `${fixed(x)} ${fixed(y)}`;
    const half = (a, b) => ({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
    let path = `M${at(points[0])} L${at(half(points[0], points[1]))}`;
    for (let i = 1; i + 1 < points.length; i += 1) {
      path += ` Q${at(points[i])} ${at(half(points[i], points[i + 1]))}`;
    }
    return `${path} L${at(points[points.length - 1])}`;
  };

  const counts = (item) => {
    const held = item.parameters.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
    const parts = held > 0 ? [`${held.toLocaleString("en")} parameters`] : [];
    return item.flops > 0 ? [...parts, `${graphLayout.short(item.flops).replace(/([kMGTP]?)$/, " $1")}FLOP`] : parts;
  };

  const spoken = (item) => {
    const kind = item.group ? `${item.kind}, ${item.nodes} nodes` : item.op;
    const made = item.group ? [] : item.outputs.slice(0, 1).map((tensor) => `gives ${graphLayout.shape(tensor)}`);
    return [graphLayout.own(item.name), kind, ...made, ...counts(item)].join(", ");
  };

  const drawItem = (name, box) => {
    const item = items.get(name);
    const kind = item.group ? "group" : ["input", "output", "constant", "state"].includes(item.op) ? "end" : "node";
    const classes = [kind, item.parameters.length > 0 ? "trained" : "", box.open ? "opened" : ""].join(" ");
    const made = element("g", { class: `item ${classes}`, role: item.group ? "button" : "img", tabindex: -1, "aria-label": spoken(item) });
    if (item.group) {
      made.setAttribute("aria-expanded", String(box.open === true));
    }
    made.dataset.name = name;
    const { x, y, width, height } = box;
    const round = kind === "end" ? height / 2 : 6;
    if (item.group && !box.open) { // a closed group looks like a pile
      made.append(element("rect", { x: x + 4, y: y + 4, width, height, rx: round, class: "pile" }));
    }
    made.append(element("rect", { x, y, width, height, rx: round }));
    const lines = box.open ? [`${box.text[0]}`] : box.text;
    lines.forEach((line, i) => {
      made.append(element("text", { x: box.open ? x + 12 : x + width / 2, y: y + 20 + 16 * i, class: `${i === 0 ? "name" : "more"}${box.open ? " left" : ""}` }, line));
    });
    shown.set(name, made);
    return made;
  };

  const draw = () => {
    const family = getComputedStyle(root).fontFamily;
    drawing = graphLayout.layout(graph, items, open, family);
    shown.clear();
    const lines = drawing.edges.map((edge) => {
      const line = element("path", { d: curve(edge.points), class: "edge", "marker-end": "url(#graph-arrow)" });
      edge.line = line;
      return line;
    });
    // Outer boxes first, so that what is inside lies above them.
    const boxes = [...drawing.boxes].sort(([a], [b]) => graphLayout.around(a).length - graphLayout.around(b).length);
    const drawn = boxes.map(([name, box]) => drawItem(name, box));
    const texts = drawing.labels.map(({ x, y, text }) => element("text", { x, y: y + 3.5, class: "flow" }, text));
    scene.replaceChildren(...boxed(drawn, true), ...lines, ...boxed(drawn, false), ...texts);
    if (current !== null && !shown.has(current)) {
      current = graphLayout.around(current).reverse().find((name) => shown.has(name)) ?? null;
    }
    mark(current ?? boxes[0]?.[0] ?? null, false);
    markHits();
    root.dataset.drawn = String(shown.size);
  };

  const boxed = (drawn, opened) => drawn.filter((made) => made.classList.contains("opened") === opened);

  const move = () => scene.setAttribute("transform", `translate(${fixed(view.x)} ${fixed(view.y)}) scale(${view.k.toFixed(4)})`);

  const touched = () => {
    moved = true;
    move();
  };

  const zoom = (factor, x = svg.clientWidth / 2, y = svg.clientHeight / 2) => {
    const k = Math.min(4, Math.max(0.02, view.k * factor));
    view.x = x - ((x - view.x) * k) / view.k;
    view.y = y - ((y - view.y) * k) / view.k;
    view.k = k;
    touched();
  };

  // Shows all of it; or, where text would then be too small to read, its upper end.
  const fit = (least = 0) => {
    const [width, height] = [svg.clientWidth, svg.clientHeight];
    view.k = Math.max(least, Math.min(1.25, (width - 24) / drawing.width, (height - 24) / drawing.height));
    view.x = (width - drawing.width * view.k) / 2;
    view.y = Math.max(12, (height - drawing.height * view.k) / 2);
    moved = false;
    move();
  };

  const centre = (name, least = 0.7) => {
    const { x, y, width, height } = drawing.boxes.get(name);
    view.k = Math.max(view.k, least);
    view.x = svg.clientWidth / 2 - (x + width / 2) * view.k;
    view.y = svg.clientHeight / 2 - (y + Math.min(height, svg.clientHeight / view.k) / 2) * view.k;
    move();
  };

  // Opens or closes a group and keeps its upper edge where it is on the screen.
  const toggle = (name) => {
    const before = drawing.boxes.get(name);
    const at = { x: view.x + (before.x + before.width / 2) * view.k, y: view.y + before.y * view.k };
    if (!open.delete(name)) {
      open.add(name);
    }
    draw();
    const after = drawing.boxes.get(name);
    view.x = at.x - (after.x + after.width / 2) * view.k;
    view.y = at.y - after.y * view.k;
    touched();
    mark(name);
  };

  const all = (state) => {
    open.clear();
    if (state) {
      for (const item of items.values()) {
        if (item.group && item.name !== "") {
          open.add(item.name);
        }
      }
    }
    draw();
    fit(0.6);
  };

  const mark = (name, focus = true) => {
    if (name === null) {
      return;
    }
    shown.get(current)?.setAttribute("tabindex", "-1");
    current = name;
    shown.get(name).setAttribute("tabindex", "0");
    if (focus) {
      shown.get(name).focus({ preventScroll: true });
    }
  };

  // Brings what has the focus into the window.
  const follow = () => {
    const { x, y, width, height } = drawing.boxes.get(current);
    const [left, top] = [view.x + x * view.k, view.y + y * view.k];
    const out = left < 0 || top < 0 || left + width * view.k > svg.clientWidth || top + height * view.k > svg.clientHeight;
    if (out) {
      centre(current, view.k);
    }
  };

  const row = (term, text) => {
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    dt.textContent = term;
    dd.textContent = text;
    return [dt, dd];
  };

  const tell = (name) => {
    if (name === null) {
      return; // a graph without nodes
    }
    const item = items.get(name);
    const title = document.createElement("h3");
    title.textContent = name;
    const rows = item.group ? row("kind", item.kind) : row("function", item.op);
    const tensor = (value) => `[${value.shape.join(", ")}] ${value.dtype}`;
    const some = (values) => (values.length > 12 ? [...values.slice(0, 12), `and ${values.length - 12} more`] : values).join("\n");
    if (item.group) {
      rows.push(...row("nodes", String(item.nodes)));
    } else {
      const reads = item.inputs.map((edge) => `${edge.source}  ${tensor(edge.tensor)}`);
      rows.push(...(reads.length > 0 ? row("reads", some(reads)) : []));
      rows.push(...(item.outputs.length > 0 ? row("gives", some(item.outputs.map(tensor))) : []));
    }
    const own = item.parameters.map((value) => `${value.name}  [${value.shape.join(", ")}]`);
    rows.push(...(own.length > 0 ? row("parameters", some(own)) : []));
    rows.push(...(counts(item).length > 0 ? row("together", counts(item).join(", ")) : []));
    rows.push(...(item.operators?.length > 0 ? row("operators", some(item.operators)) : []));
    rows.push(...(item.note ? row("note", item.note) : []));
    const list = document.createElement("dl");
    list.append(...rows);
    details.replaceChildren(title, list);
    for (const edge of drawing.edges) {
      edge.line.classList.toggle("lit", edge.source === name || edge.target === name);
    }
  };

  const markHits = () => {
    const names = new Set(found.flatMap((name) => [name, ...graphLayout.around(name)]));
    for (const [name, made] of shown) {
      made.classList.toggle("hit", found.includes(name) || (closed(items.get(name)) && names.has(name)));
    }
  };

  const look = (place) => {
    const text = search.value.trim().toLowerCase();
    const fits = ({ name, op, kind }) => [name, op, kind].some((word) => word?.toLowerCase().includes(text));
    const before = found[found.at];
    found = text === "" ? [] : [...items.values()].filter((item) => item.name !== "" && fits(item)).map(({ name }) => name);
    const last = found.indexOf(before);
    found.at = last < 0 ? 0 : (last + place + found.length) % found.length;
    hits.textContent = text === "" ? "" : found.length === 0 ? "nothing" : `${found.at + 1} of ${found.length}`;
    if (found.length === 0) {
      markHits();
      return;
    }
    const name = found[found.at];
    graphLayout.around(name).filter((group) => group !== "").forEach((group) => open.add(group));
    draw();
    centre(name);
    mark(name, false);
    tell(name);
  };

  root.classList.add("scripted");
  draw();
  fit();
  tell(current);
  return {
    root, svg, search, items, view, shown, all, centre, fit, follow, look, mark, move, tell, toggle, zoom, touched,
    current: () => current,
    edges: () => drawing.edges,
    resized: () => !moved && fit(),
    // Paper shows all of it, and is white whatever the screen is.
    printing: (on) => {
      document.documentElement.classList.toggle("printing", on);
      if (on) {
        svg.setAttribute("viewBox", `-8 -8 ${drawing.width + 16} ${drawing.height + 16}`);
        scene.removeAttribute("transform");
      } else {
        svg.removeAttribute("viewBox");
        move();
      }
    },
  };
})();
