// A round's draft trie as SVG: depth to the right, the most probable branches on top.

const SVG = "http://www.w3.org/2000/svg";
const CHARACTER = 6.4;

function svg(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** White space made visible. */
function visible(text) {
  return text.trim() || text.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "∅";
}

/** The nodes of a round: index 0 is the last committed token, a parent comes before its children. */
function trieNodes({ tokens, round }) {
  const root = { parent: -1, text: "", kind: "root" };
  const sourceAt = (depth) => tokens[depth]?.source ?? "draft";
  const nodes = [root];
  const trie = round.trie ?? { parents: [], texts: [], accepted: [], bonus: null, looked_up: [] };
  trie.parents.forEach((parent, index) => {
    const depth = trie.accepted.indexOf(index);
    const kind = depth >= 0 ? sourceAt(depth) : index === trie.bonus ? "bonus" : "unused";
    const isFound = kind === "unused" && trie.looked_up.includes(index);
    nodes.push({ parent: parent + 1, text: trie.texts[index], kind: isFound ? "unused found" : kind });
  });
  let last = trie.accepted.length ? trie.accepted.at(-1) + 1 : 0;
  const missing = trie.bonus === null ? trie.accepted.length : tokens.length;
  for (const token of tokens.slice(missing)) {
    nodes.push({ parent: last, text: token.text, kind: token.source });
    last = nodes.length - 1;
  }
  return nodes;
}

function place(nodes) {
  nodes.forEach((node) => (node.children = []));
  nodes.slice(1).forEach((node) => nodes[node.parent].children.push(node));
  let leaves = 0;
  const visit = (node, depth) => {
    node.depth = depth;
    node.children.forEach((child) => visit(child, depth + 1));
    const rows = node.children.map((child) => child.row);
    node.row = rows.length ? (rows[0] + rows.at(-1)) / 2 : leaves++;
  };
  visit(nodes[0], 0);
  return { leaves, depth: Math.max(...nodes.map((node) => node.depth)) };
}

const taken = (node) => !node.kind.startsWith("unused");

/** Where each depth begins, and how much of a text is shown so that all depths find room. */
function columns(nodes, depth, width) {
  const longest = Array(depth + 1).fill(0);
  for (const node of nodes) longest[node.depth] = Math.max(longest[node.depth], node.full.length);
  for (let characters = 12; ; characters--) {
    const widths = longest.map((length) => 8 + CHARACTER * Math.min(length, characters));
    const gap = Math.min(44, (width - 12 - widths.reduce((a, b) => a + b)) / Math.max(1, depth));
    if (gap < 15 && characters > 2) continue;
    const lefts = [8];
    for (let at = 0; at < depth; at++) lefts.push(lefts[at] + widths[at] + gap);
    return { lefts, characters };
  }
}

function drawTrie(target, traced) {
  target.replaceChildren();
  if (!traced) return "What the edge had drafted when a verdict came.";
  const nodes = trieNodes(traced);
  const { leaves, depth } = place(nodes);
  const { clientWidth: width, clientHeight: height } = target;
  const row = Math.min(20, (height - 12) / leaves);
  const top = (height - row * leaves) / 2 + row / 2;
  for (const node of nodes) {
    node.y = top + node.row * row;
    node.full = node.kind !== "root" && (row >= 10 || taken(node)) ? visible(node.text) : "";
  }
  const { lefts, characters } = columns(nodes, depth, width);
  for (const node of nodes) {
    node.x = lefts[node.depth];
    node.label = node.full.length > characters ? `${node.full.slice(0, characters - 1)}…` : node.full;
    node.end = node.x + 5 + (node.label ? 3 + node.label.length * CHARACTER : 0);
  }
  const edges = nodes.slice(1).map((node) => {
    const from = nodes[node.parent];
    const middle = (from.end + node.x) / 2;
    const path = `M${from.end} ${from.y}C${middle} ${from.y} ${middle} ${node.y} ${node.x - 4} ${node.y}`;
    return [taken(node), svg("path", { d: path, class: node.kind })];
  });
  const above = edges.filter(([is]) => is).map(([, edge]) => edge);
  target.append(...edges.filter(([is]) => !is).map(([, edge]) => edge), ...above);
  for (const node of nodes) {
    const circle = svg("circle", { cx: node.x, cy: node.y, r: taken(node) ? 4 : 3 });
    const label = svg("text", { x: node.x + 7, y: node.y + 3.5 }, node.label);
    target.append(svg("g", { class: node.kind }, circle, label));
  }
  const { round } = traced;
  const drafted = round.trie ? `${round.trie.num_live} drafted` : "none drafted on this edge";
  return `Draft nodes: ${drafted}, ${round.num_nodes} verified, ${round.num_accepted} accepted.`;
}
