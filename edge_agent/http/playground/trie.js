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
  const trie = round.trie ?? { parents: [], texts: [], accepted: [], bonus: null };
  trie.parents.forEach((parent, index) => {
    const depth = trie.accepted.indexOf(index);
    const kind = depth >= 0 ? sourceAt(depth) : index === trie.bonus ? "bonus" : "unused";
    nodes.push({ parent: parent + 1, text: trie.texts[index], kind });
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

function drawTrie(target, traced) {
  target.replaceChildren();
  if (!traced) return "What the edge had drafted when a verdict came.";
  const nodes = trieNodes(traced);
  const { leaves, depth } = place(nodes);
  const width = target.clientWidth || 340;
  const height = target.clientHeight || 250;
  const row = Math.min(20, (height - 12) / leaves);
  const column = Math.min(96, (width - 16) / (depth + 0.5));
  const characters = Math.max(2, Math.floor((column - 16) / CHARACTER));
  const top = (height - row * leaves) / 2 + row / 2;
  for (const node of nodes) {
    node.x = 8 + (node.kind === "root" ? 0 : (node.depth - 0.5) * column);
    node.y = top + node.row * row;
    const text = node.kind === "root" ? "" : visible(node.text);
    node.label = row >= 10 || node.kind !== "unused" ? (text.length > characters ? `${text.slice(0, characters - 1)}…` : text) : "";
    node.end = node.x + 5 + (node.label ? 3 + node.label.length * CHARACTER : 0);
  }
  const taken = (node) => node.kind !== "unused";
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
