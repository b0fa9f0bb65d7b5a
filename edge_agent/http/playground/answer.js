// One answer as it grows: its tokens, its rounds and what they come to.

const SOURCES = { draft: "accepted draft", lookup: "accepted lookup", bonus: "bonus token" };

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

class Answer {
  constructor(title) {
    this.rounds = []; // {tokens, round} of each verification
    this.tokens = []; // {text, source, depth, logprob, at, element}, `at` is the round's index
    this.content = "";
    this.chosen = -1;
    this.finish = "";
    this.sentAt = performance.now();
    this.text = make("div", { className: "text", tabIndex: 0 });
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-label", "Answer; the left and right arrow keys go through its tokens");
    this.text.setAttribute("aria-busy", "true");
    this.outcome = make("p", { className: "outcome" });
    this.element = make("article", { className: "answer" }, make("h3", { textContent: title }), this.text, this.outcome);
    this.text.answer = this;
  }

  get plainText() {
    return this.tokens.map((token) => token.text).join("");
  }

  /** Takes a chunk of the stream. */
  take(chunk) {
    const choice = chunk.choices?.[0];
    if (!choice) return;
    this.content += choice.delta?.content ?? "";
    this.finish = choice.finish_reason ?? this.finish;
    const traced = chunk.specedge;
    if (!traced) return;
    const now = performance.now();
    this.lastAt = now;
    if (this.firstAt === undefined) {
      this.firstAt = now;
      this.numFirst = traced.tokens.length;
    }
    const logprobs = choice.logprobs?.content ?? [];
    traced.tokens.forEach((token, index) => this.add({ logprob: logprobs[index]?.logprob, ...token, at: this.rounds.length }));
    this.rounds.push(traced);
  }

  add(token) {
    token.element = make("span", { className: `token ${token.source}`, textContent: token.text });
    if (!token.text) token.element.classList.add("silent");
    token.element.style.setProperty("--depth", Math.min(token.depth, 6));
    token.element.dataset.index = this.tokens.length;
    this.tokens.push(token);
    this.text.append(token.element);
  }

  /** What the answer comes to so far. */
  figures() {
    const verified = this.rounds.reduce((sum, { round }) => sum + round.num_nodes, 0);
    const accepted = this.rounds.reduce((sum, { round }) => sum + round.num_accepted, 0);
    const isTimed = this.tokens.length > this.numFirst && this.lastAt > this.firstAt;
    return {
      rate: isTimed ? (1000 * (this.tokens.length - this.numFirst)) / (this.lastAt - this.firstAt) : undefined,
      perRound: this.rounds.length ? this.tokens.length / this.rounds.length : undefined,
      verified,
      accepted,
      firstTokenMs: this.firstAt && this.firstAt - this.sentAt,
      totalMs: this.lastAt && this.lastAt - this.sentAt,
    };
  }

  end(reason) {
    this.text.removeAttribute("aria-busy");
    const { rate, perRound, totalMs } = this.figures();
    const parts = [reason, count(this.tokens.length, "token")];
    if (totalMs) parts.push(`${Math.round(totalMs)} ms`);
    if (rate) parts.push(`${rate.toFixed(0)} tokens/s`);
    if (perRound) parts.push(`${perRound.toFixed(2)} per verification`);
    this.outcome.textContent = parts.filter(Boolean).join(" · ");
  }

  choose(index) {
    this.tokens[this.chosen]?.element.classList.remove("chosen");
    this.chosen = index;
    this.tokens[index]?.element.classList.add("chosen");
  }

  describe(index) {
    const { text, source, depth, logprob, at } = this.tokens[index];
    const { round } = this.rounds[at];
    const lines = [`“${visible(text)}”: ${SOURCES[source] ?? source}, depth ${depth}`];
    if (typeof logprob === "number") lines.push(`log-probability ${logprob.toFixed(3)} (${(100 * Math.exp(logprob)).toFixed(1)} %)`);
    const nodes = round.num_nodes ? `${round.num_accepted} of ${count(round.num_nodes, "verified draft node")} accepted` : "no draft nodes verified";
    lines.push(`round ${at + 1}: ${nodes}`);
    return lines.join("\n");
  }
}
