// Where the time of each round went: a table of the shown round, with bars for the last ones.

const NUM_BARS = 44;
const PARTS = [
  { kind: "gap", name: "Whole round", title: "from one verdict to the next", of: (round) => round.gap_ms },
  { kind: "draft", name: "Draft", title: "until the first new draft nodes left the edge", of: (round) => round.draft_ms },
  { kind: "network", name: "Network", title: "last round trip measured between edge and verifier", of: (round) => round.network_ms },
  { kind: "wait", name: "Verify: waiting", title: "until the verifier's step began", of: (round) => round.queue_ms },
  { kind: "step", name: "Verify: step", title: "the verifier's step", of: (round) => round.step_ms },
];

class Timing {
  constructor(table) {
    this.rows = PARTS.map((part) => {
      const row = table.tBodies[0].insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = part.name;
      head.title = part.title;
      const bars = Array.from({ length: NUM_BARS }, (_, index) => svg("rect", { x: index + 0.1, width: 0.8, y: 24, height: 0 }));
      const base = svg("rect", { class: "base", x: 0, width: NUM_BARS, y: 23.5, height: 0.5 });
      const strip = svg("svg", { class: part.kind, viewBox: `0 0 ${NUM_BARS} 24`, preserveAspectRatio: "none", "aria-hidden": "true" }, base, ...bars);
      row.append(head);
      const value = row.insertCell();
      row.insertCell().append(strip);
      return { part, value, bars };
    });
  }

  /** Shows the rounds up to the last, or around the chosen one. */
  draw(rounds, chosen) {
    const last = Math.min(rounds.length, Math.max(chosen + 1 + NUM_BARS / 2, NUM_BARS));
    const first = Math.max(0, (chosen < 0 ? rounds.length : last) - NUM_BARS);
    const shown = rounds.slice(first, first + NUM_BARS);
    const gaps = shown.map((round) => round.gap_ms).sort((a, b) => a - b);
    const scale = 22 / Math.max(0.1, 2 * (gaps[gaps.length >> 1] ?? 1)); // twice the median gap fills a strip
    const current = rounds[chosen < 0 ? rounds.length - 1 : chosen];
    for (const { part, value, bars } of this.rows) {
      const now = current && part.of(current);
      value.textContent = now === undefined ? "–" : now.toFixed(now < 10 ? 2 : 1);
      bars.forEach((bar, index) => {
        const height = shown[index] ? Math.min(24, (part.of(shown[index]) ?? 0) * scale) : 0;
        bar.setAttribute("y", 24 - height);
        bar.setAttribute("height", height);
        bar.classList.toggle("chosen", chosen >= 0 && first + index === chosen);
      });
    }
  }
}
