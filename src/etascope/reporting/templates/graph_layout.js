"use strict";
// Where everything in a graph stands. Each open group is laid out by itself and is then one box in
// the group around it; edges enter and leave it through one port each, so nothing crosses a box.
const graphLayout = (() => {
  const IN = "\u0000in";
  const OUT = "\u0000out";
  const HEAD = 26;
  const PAD = 14;
  const LABELS = 160; // with more edges than this none is labelled
  // Members of one group from which on dagre takes long, or too much stack: in a small picture, and
  // in a large one.
  const MANY = [150, 30];
  const LARGE = 1000;
  const pen = document.createElement("canvas").getContext("2d");

  const parent = (name) => name.slice(0, Math.max(0, name.lastIndexOf("/")));
  const own = (name) => name.slice(name.lastIndexOf("/") + 1);
  const shape = (tensor) => tensor.shape.join("×") || "scalar";

  // The groups that `name` stands in, outermost ("", the whole graph) first.
  const around = (name) => {
    const found = [""];
    for (let at = name.indexOf("/"); at >= 0; at = name.indexOf("/", at + 1)) {
      found.push(name.slice(0, at));
    }
    return found;
  };

  // Every node and group by name; a group with its members in order of execution.
  const index = (graph) => {
    const items = new Map([["", { name: "", group: true, members: new Set() }]]);
    for (const group of graph.groups) {
      items.set(group.name, { ...group, group: true, members: new Set(), flops: 0, nodes: 0 });
    }
    for (const node of graph.nodes) {
      items.set(node.name, { ...node, group: false, followers: new Set() });
      let name = node.name;
      while (name !== "") {
        items.get(parent(name)).members.add(name);
        name = parent(name);
        if (name !== "") {
          items.get(name).flops += node.flops;
          items.get(name).nodes += 1;
        }
      }
    }
    for (const node of graph.nodes) {
      for (const edge of node.inputs) {
        items.get(edge.source).followers.add(node.name);
      }
    }
    return items;
  };

  // What stands for `name` while some groups are closed: itself, or the outermost closed one.
  const seen = (name, open) => around(name).find((group) => group !== "" && !open.has(group)) ?? name;

  const visibleEdges = (graph, open) => {
    const edges = new Map();
    for (const node of graph.nodes) {
      const target = seen(node.name, open);
      for (const { source: from, tensor } of node.inputs) {
        const source = seen(from, open);
        if (source !== target) {
          const key = `${source}\n${target}`;
          const edge = edges.get(key) ?? { source, target, tensors: [] };
          edge.tensors.push(tensor);
          edges.set(key, edge);
        }
      }
    }
    return [...edges.values()];
  };

  const label = ({ tensors }) => {
    const shapes = new Set(tensors.map(shape));
    const one = [...shapes][0];
    return tensors.length === 1 ? one : shapes.size === 1 ? `${tensors.length} of ${one}` : `${tensors.length} tensors`;
  };

  // The member of `scope` that `name` is or stands in.
  const memberOf = (scope, name) => {
    const end = name.indexOf("/", scope === "" ? 0 : scope.length + 1);
    return end < 0 ? name : name.slice(0, end);
  };

  // The way of an edge through the open groups, from its source outwards and in to its target.
  const route = (edge, use) => {
    const [up, down] = [around(edge.source), around(edge.target)];
    let depth = 0;
    while (depth + 1 < Math.min(up.length, down.length) && up[depth + 1] === down[depth + 1]) {
      depth += 1;
    }
    const way = [];
    for (const scope of up.slice(depth + 1).reverse()) {
      way.push(use(scope, memberOf(scope, edge.source), OUT));
    }
    const meet = up[depth];
    way.push(use(meet, memberOf(meet, edge.source), memberOf(meet, edge.target), edge));
    for (const scope of down.slice(depth + 1)) {
      way.push(use(scope, IN, memberOf(scope, edge.target)));
    }
    return way;
  };

  const lines = (item) => {
    const parts = [own(item.name)];
    const counts = [];
    if (item.group) {
      counts.push(item.nodes === 1 ? "1 node" : `${item.nodes} nodes`);
    } else if (item.outputs.length > 0) {
      parts.push(item.op === own(item.name) ? shape(item.outputs[0]) : `${item.op} · ${shape(item.outputs[0])}`);
    }
    const held = item.parameters.reduce((sum, { shape: sizes }) => sum + sizes.reduce((a, b) => a * b, 1), 0);
    if (held > 0) {
      counts.push(`${short(held)} parameters`);
    }
    return counts.length > 0 ? [...parts, counts.join(" · ")] : parts;
  };

  const short = (count) => {
    let [value, power] = [count, 0];
    while (value >= 999.5 && power < 5) {
      value /= 1000;
      power += 1;
    }
    return power === 0 ? `${count}` : `${value.toPrecision(3)}${"kMGTP"[power - 1]}`;
  };

  const sizeOf = (item, family) => {
    const text = lines(item);
    const widths = text.map((line, i) => {
      pen.font = `${i === 0 ? "600 13px" : "11px"} ${family}`;
      return pen.measureText(line).width;
    });
    return { text, width: Math.ceil(Math.max(...widths)) + 24, height: 14 + 16 * text.length };
  };

  // What dagre does, for very many members: rows by the longest way from the start, in order of
  // execution; edges over several rows go round them.
  const inRows = (plan) => {
    const names = plan.nodes();
    const order = new Map(names.map((name, i) => [name, name === IN ? -1 : name === OUT ? names.length : i]));
    const ranks = new Map();
    for (const name of [...names].sort((a, b) => order.get(a) - order.get(b))) {
      const before = (plan.predecessors(name) ?? []).filter((other) => ranks.has(other));
      ranks.set(name, before.reduce((rank, other) => Math.max(rank, ranks.get(other) + 1), 0));
    }
    const rows = [];
    for (const [name, rank] of ranks) {
      rows[rank] = [...(rows[rank] ?? []), plan.node(name)];
    }
    const across = (row) => row.reduce((sum, { width }) => sum + width + 22, -22);
    const widest = Math.max(...rows.map(across));
    let y = PAD;
    for (const row of rows) {
      const height = Math.max(...row.map((box) => box.height));
      let x = PAD + (widest - across(row)) / 2;
      for (const box of row) {
        Object.assign(box, { x: x + box.width / 2, y: y + height / 2 });
        x += box.width + 22;
      }
      y += height + 34;
    }
    for (const { v, w } of plan.edges()) {
      const [from, to] = [plan.node(v), plan.node(w)];
      const down = from.y < to.y ? 1 : -1;
      const ends = [{ x: from.x, y: from.y + (down * from.height) / 2 }, { x: to.x, y: to.y - (down * to.height) / 2 }];
      const far = Math.abs(ranks.get(w) - ranks.get(v)) > 1;
      const side = PAD + widest + 12;
      const round = far ? ends.map(({ y: at }, i) => ({ x: side, y: at + (i === 0 ? 40 : -40) * down })) : [];
      Object.assign(plan.edge(v, w), { points: [ends[0], ...round, ends[1]], x: ends[0].x, y: ends[0].y + 14 * down });
    }
    Object.assign(plan.graph(), { width: widest + 2 * PAD + 24, height: y - 34 + PAD });
  };

  // Lays one group out and returns its size; boxes and lines are relative to its corner.
  const arrange = (scope, items, open, local, family, boxes) => {
    const plan = new dagre.graphlib.Graph();
    const members = [...items.get(scope).members];
    plan.setGraph({ nodesep: 22, ranksep: 30, edgesep: 14, marginx: PAD, marginy: PAD, ranker: members.length > 25 ? "tight-tree" : "network-simplex" });
    for (const name of members) {
      const box = open.has(name)
        ? { ...arrange(name, items, open, local, family, boxes), open: true, text: sizeOf(items.get(name), family).text }
        : sizeOf(items.get(name), family);
      boxes.set(name, box);
      plan.setNode(name, { width: box.width, height: box.height });
    }
    const edges = local.get(scope) ?? new Map();
    const ends = { [IN]: new Set(members), [OUT]: new Set(members) };
    const ports = new Set();
    for (const [key, { source, target, text }] of edges) {
      const width = text === undefined ? 0 : Math.ceil(text.length * 5.6) + 6;
      plan.setEdge(source, target, { key, width, height: width > 0 ? 13 : 0, labelpos: "c" });
      ends[IN].delete(target);
      ends[OUT].delete(source);
      for (const port of [source, target]) {
        if (port === IN || port === OUT) {
          ports.add(port);
        }
      }
    }
    for (const port of ports) {
      plan.setNode(port, { width: 1, height: 1 });
      for (const name of ends[port]) { // so that ports stand above and below all others
        plan.setEdge(...(port === IN ? [port, name] : [name, port]), { weight: 0 });
      }
    }
    (members.length > MANY[Number(items.large)] ? inRows : dagre.layout)(plan);
    for (const name of members) {
      const { x, y, width, height } = plan.node(name);
      Object.assign(boxes.get(name), { x: x - width / 2, y: y - height / 2 });
    }
    for (const { v, w } of plan.edges()) {
      const { key, points, x, y } = plan.edge(v, w);
      if (key !== undefined) {
        Object.assign(edges.get(key), { points, at: { x, y } });
      }
    }
    const { width, height } = plan.graph();
    const title = scope === "" ? 0 : sizeOf(items.get(scope), family).width;
    const wide = Math.max(Number.isFinite(width) ? width : 0, title);
    const high = Number.isFinite(height) ? height : 0;
    return { width: wide, height: high + (scope === "" ? 0 : HEAD), shift: (wide - width) / 2 };
  };

  const layout = (graph, items, open, family) => {
    const local = new Map();
    const edges = visibleEdges(graph, open);
    items.large = edges.length > LARGE;
    const labelled = edges.length <= LABELS;
    const use = (scope, source, target, edge) => {
      const inner = local.get(scope) ?? new Map();
      local.set(scope, inner);
      const key = `${source}\n${target}`;
      const line = inner.get(key) ?? { source, target, tensors: [] };
      if (edge !== undefined && labelled) {
        line.tensors.push(...edge.tensors);
        line.text = label(line);
      }
      inner.set(key, line);
      return [scope, line];
    };
    const ways = edges.map((edge) => route(edge, use));
    const boxes = new Map();
    const whole = arrange("", items, open, local, family, boxes);
    const corners = new Map([["", { x: whole.shift, y: 0 }]]);
    const place = (scope) => {
      const corner = corners.get(scope);
      for (const name of items.get(scope).members) {
        const box = boxes.get(name);
        box.x += corner.x;
        box.y += corner.y;
        if (box.open) {
          corners.set(name, { x: box.x + box.shift, y: box.y + HEAD });
          place(name);
        }
      }
    };
    place("");
    const moved = (scope, { x, y }) => ({ x: x + corners.get(scope).x, y: y + corners.get(scope).y });
    const drawn = edges.map((edge, i) => {
      const points = ways[i].flatMap(([scope, line]) => line.points.map((p) => moved(scope, p)));
      return { ...edge, points };
    });
    const labels = [...local].flatMap(([scope, inner]) =>
      [...inner.values()]
        .filter(({ text }) => text !== undefined)
        .map(({ text, at }) => ({ text, ...moved(scope, at) })),
    );
    return { boxes, edges: drawn, labels, width: whole.width, height: whole.height };
  };

  return { index, layout, around, own, parent, shape, short };
})();
