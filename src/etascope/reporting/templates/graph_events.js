"use strict";
// Lets a graph be looked into by mouse, touch and keys.
(() => {
  const { root, svg, search, items, view, shown, all, fit, follow, look, mark, tell, toggle, touched, zoom, current, edges } =
    graphView;

  // The neighbour of what has the focus: along an edge, or the one beside it.
  const neighbour = (key) => {
    if (key === "ArrowDown" || key === "ArrowUp") {
      const inside = (name) => name === current() || name.startsWith(`${current()}/`);
      const first = [...shown.keys()].find((name) => name !== current() && inside(name));
      if (key === "ArrowDown" && first !== undefined) {
        return first; // into an open group
      }
      const [from, to] = key === "ArrowDown" ? ["source", "target"] : ["target", "source"];
      return edges().find((edge) => inside(edge[from]) && !inside(edge[to]))?.[to] ?? neighbour(null);
    }
    if (key === null) {
      const group = graphLayout.parent(current());
      return group === "" ? undefined : group; // where nothing comes before or after: outwards
    }
    const names = [...shown.keys()];
    return names[names.indexOf(current()) + (key === "ArrowRight" ? 1 : -1)];
  };

  const press = (event) => {
    const keys = {
      "+": () => zoom(1.25),
      "=": () => zoom(1.25),
      "-": () => zoom(0.8),
      0: () => fit(),
      "/": () => search.focus(),
      Escape: () => {
        const group = graphLayout.parent(current() ?? "");
        if (group !== "") {
          mark(group);
          toggle(group);
        }
      },
    };
    if (event.ctrlKey || event.metaKey || event.altKey || current() === null) {
      return;
    }
    if (event.key.startsWith("Arrow")) {
      const next = neighbour(event.key);
      if (next !== undefined) {
        mark(next);
        follow();
      }
    } else if (["Enter", " "].includes(event.key) && event.target.closest(".item")) {
      if (items.get(current())?.group) {
        toggle(current());
      }
    } else if (event.key in keys) {
      keys[event.key]();
    } else {
      return;
    }
    event.preventDefault();
  };

  const pointers = new Map();
  let dragged = false;
  svg.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, event);
    dragged = pointers.size > 1;
  });
  svg.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (before === undefined) {
      return;
    }
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (!dragged && Math.hypot(dx, dy) < 4) {
      return;
    }
    if (!dragged) {
      dragged = true;
      svg.setPointerCapture(event.pointerId);
    }
    const others = [...pointers.values()].filter((other) => other.pointerId !== event.pointerId);
    if (others.length > 0) {
      const far = (point) => Math.hypot(point.clientX - others[0].clientX, point.clientY - others[0].clientY);
      const { left, top } = svg.getBoundingClientRect();
      zoom(far(event) / Math.max(1, far(before)), (event.clientX + others[0].clientX) / 2 - left, (event.clientY + others[0].clientY) / 2 - top);
    }
    view.x += dx / pointers.size;
    view.y += dy / pointers.size;
    touched();
    pointers.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    svg.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
  svg.addEventListener("click", (event) => {
    const name = event.target.closest(".item")?.dataset.name;
    if (dragged || name === undefined) {
      return;
    }
    mark(name);
    if (items.get(name).group) {
      toggle(name);
    }
  });
  svg.addEventListener("wheel", (event) => {
    // On a page that scrolls, the wheel scrolls the page; with Ctrl, or a pinch, it zooms.
    if (root.dataset.wheel !== "zoom" && !event.ctrlKey && !event.metaKey) {
      return;
    }
    event.preventDefault();
    const { left, top } = svg.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), event.clientX - left, event.clientY - top);
  }, { passive: false });
  for (const name of ["pointerover", "focusin"]) {
    svg.addEventListener(name, (event) => {
      const item = event.target.closest(".item");
      if (item !== null && pointers.size === 0) {
        tell(item.dataset.name);
      }
    });
  }
  svg.addEventListener("pointerleave", () => current() !== null && tell(current()));
  svg.addEventListener("keydown", press);
  search.addEventListener("input", () => look(0));
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      look(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") {
      search.value = "";
      look(0);
      shown.get(current())?.focus();
    }
  });
  const actions = { open: () => all(true), close: () => all(false), fit: () => fit(), in: () => zoom(1.25), out: () => zoom(0.8) };
  root.addEventListener("click", (event) => actions[event.target.dataset?.action]?.());
  addEventListener("beforeprint", () => graphView.printing(true));
  addEventListener("afterprint", () => graphView.printing(false));
  new ResizeObserver(graphView.resized).observe(svg);
})();
