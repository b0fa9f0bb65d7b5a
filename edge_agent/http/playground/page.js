// The page: settings, composer, conversation, live view.

const $ = (id) => document.getElementById(id);
const timing = new Timing($("timing"));
const said = []; // messages of the conversation so far
let running = null; // AbortController of the answer being made
let shown = null; // the answer in the live view
let takesLogprobs = false;
let isDue = false;

const EXAMPLES = [
  "Tell me a tale about a fox who wanted to see the sea.",
  "Tell me a tale about a rabbit and a kind old miller.",
  "Once upon a time there was a little girl who",
];

// Live view

function draw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    drawNow();
  });
}

function drawNow() {
  const chosen = shown && shown.chosen >= 0 ? shown.tokens[shown.chosen].at : -1;
  const rounds = shown?.rounds ?? [];
  $("trie-text").textContent = drawTrie($("trie"), chosen < 0 ? rounds.at(-1) : rounds[chosen]);
  timing.draw(rounds.map(({ round }) => round), chosen);
  $("key-lookup").hidden = !rounds.some(({ tokens, round }) => round.trie?.looked_up.length || tokens.some(({ source }) => source === "lookup"));
  const figures = shown ? shown.figures() : {};
  const rate = figures.rate?.toFixed(0) ?? "–";
  const perRound = figures.perRound?.toFixed(2) ?? "–";
  $("rate").textContent = rate;
  $("per-round").textContent = perRound;
  $("accepted").textContent = figures.verified ? `${Math.round((100 * figures.accepted) / figures.verified)} %` : "–";
  $("first-token").textContent = figures.firstTokenMs ? `${figures.firstTokenMs.toFixed(0)} ms` : "–";
  $("live-brief").textContent = shown ? `${rate} tokens/s · ${perRound} per verification` : "";
}

// Tokens under the pointer and under the arrow keys

function pick(answer, index) {
  if (shown && shown !== answer) shown.choose(-1);
  shown = answer;
  answer.choose(index);
  const box = answer.tokens[index].element.getClientRects()[0];
  const tip = $("tip");
  tip.textContent = answer.describe(index);
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
  tip.style.top = `${box.top > height + 12 ? box.top - height - 6 : box.bottom + 6}px`;
  draw();
}

function unpick() {
  $("tip").hidden = true;
  if (shown && shown.chosen >= 0) {
    shown.choose(-1);
    draw();
  }
}

function tokenOf(event) {
  const element = event.target.closest?.(".token");
  return element && [element.parentElement.answer, Number(element.dataset.index)];
}

$("conversation").addEventListener("pointerover", (event) => {
  const token = tokenOf(event);
  if (token) pick(...token);
  else unpick();
});
$("conversation").addEventListener("pointerleave", unpick);
$("conversation").addEventListener("focusout", unpick);
$("conversation").addEventListener("keydown", (event) => {
  const answer = event.target.answer;
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  const ends = { Home: 0, End: (answer?.tokens.length ?? 0) - 1 };
  if (!answer?.tokens.length || !(event.key in steps || event.key in ends)) return;
  event.preventDefault();
  const next = event.key in ends ? ends[event.key] : answer.chosen + steps[event.key];
  const index = Math.max(0, Math.min(answer.tokens.length - 1, next));
  answer.tokens[index].element.scrollIntoView({ block: "nearest" });
  pick(answer, index);
  say($("tip").textContent);
});

// Conversation

function say(text) {
  $("status").textContent = text;
}

function append(parent, element) {
  const scrolled = $("conversation");
  const scrolls = scrolled.scrollHeight > scrolled.clientHeight + 1 ? scrolled : document.scrollingElement;
  parent.append(element);
  scrolls.scrollTop = scrolls.scrollHeight;
}

function followText() {
  const scrolled = $("conversation");
  const scrolls = scrolled.scrollHeight > scrolled.clientHeight + 1 ? scrolled : document.scrollingElement;
  if (scrolls.scrollHeight - scrolls.scrollTop - scrolls.clientHeight < 120) scrolls.scrollTop = scrolls.scrollHeight;
}

function wishes(isSpeculative) {
  const wanted = {
    temperature: Number($("temperature").value),
    seed: Number($("seed").value),
    max_tokens: Number($("max-tokens").value),
    speculation: { enabled: isSpeculative, trace: true },
    stream: true,
  };
  if (takesLogprobs && $("logprobs").checked) wanted.logprobs = true;
  return wanted;
}

const ENDS = { stop: "finished", length: "cut at the most tokens", tool_calls: "calls tools" };

async function generate(turn, messages, body) {
  const answer = new Answer(body.speculation.enabled ? "Speculation on" : "Speculation off");
  append(turn, answer.element);
  unpick();
  shown = answer;
  draw();
  try {
    const response = await ask("v1/chat/completions", { key: $("key").value, body: { messages, ...body }, signal: running.signal });
    for await (const chunk of chunks(response)) {
      answer.take(chunk);
      followText();
      draw();
    }
    answer.end(ENDS[answer.finish] ?? answer.finish);
  } catch (error) {
    const isStopped = error.name === "AbortError";
    answer.end(isStopped ? "stopped" : "broke off");
    if (!answer.tokens.length && !isStopped) answer.element.remove();
    error.answer = answer;
    throw error;
  }
  return answer;
}

function compareLine(first, second) {
  const isSame = first.plainText === second.plainText;
  const [on, off] = first.isSpeculative ? [first, second] : [second, first];
  const ratio = off.figures().totalMs / on.figures().totalMs;
  const speed = `speculation took ${on.figures().totalMs.toFixed(0)} ms, plain decoding ${off.figures().totalMs.toFixed(0)} ms (${ratio.toFixed(2)} times as fast)`;
  return `${isSame ? "Same text" : "The texts differ"}: ${speed}.`;
}

function isFilledIn() {
  if ($("options").checkValidity()) return true;
  $("settings").open = true;
  $("options").reportValidity();
  return false;
}

async function run(turn, text) {
  running = new AbortController();
  const isSpeculative = $("speculation").checked;
  const isCompared = $("compare").checked;
  const messages = [...said, { role: "user", content: text }];
  const bodies = [wishes(isSpeculative), wishes(!isSpeculative)].slice(0, isCompared ? 2 : 1);
  setRunning(true);
  say("The answer is being made.");
  const answers = [];
  let failure;
  try {
    for (const body of bodies) {
      const answer = await generate(turn, messages, body);
      answer.isSpeculative = body.speculation.enabled;
      answers.push(answer);
    }
    if (isCompared) append(turn, make("p", { className: "verdict", textContent: compareLine(...answers) }));
  } catch (error) {
    failure = error;
    if (!answers.length && error.answer?.tokens.length) answers.push(error.answer);
  }
  running = null;
  setRunning(false);
  if (answers.length) said.push(messages.at(-1), { role: "assistant", content: answers[0].content });
  if (failure && failure.name !== "AbortError") showError(turn, failure, answers.length ? null : text);
  else say(failure ? "Stopped." : `${answers[0].plainText}\n${turn.querySelector(".verdict, .outcome").textContent}`);
  draw();
}

function showError(turn, error, text) {
  const box = make("div", { className: "error" }, make("span", { textContent: error.message }));
  box.setAttribute("role", "alert");
  if (text !== null) {
    const again = make("button", { type: "button", textContent: "Try again" });
    again.addEventListener("click", () => {
      if (running || !isFilledIn()) return;
      box.remove();
      $("message").focus();
      run(turn, text);
    });
    box.append(again);
  }
  append(turn, box);
  if (error.status === 401) {
    $("settings").open = true;
    $("key").focus();
  }
}

function submit(text) {
  if (running || !text.trim() || !isFilledIn()) return;
  $("welcome").hidden = true;
  $("message").value = "";
  append($("conversation"), make("div", { className: "said", textContent: text }));
  const turn = make("div", { className: "turn" });
  append($("conversation"), turn);
  run(turn, text);
}

// Composer and settings

function setRunning(is) {
  $("send").textContent = is ? "Stop" : "Send";
  $("send").classList.toggle("stop", is);
  $("new-chat").disabled = is;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else submit($("message").value);
});
$("options").addEventListener("submit", (event) => event.preventDefault());
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit($("message").value);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  unpick();
  running?.abort();
});
$("temperature").addEventListener("input", () => ($("temperature-value").textContent = $("temperature").value));
$("new-seed").addEventListener("click", () => ($("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]));
$("new-chat").addEventListener("click", () => {
  said.length = 0;
  shown = null;
  $("conversation").replaceChildren($("welcome"));
  $("welcome").hidden = false;
  $("message").focus();
  draw();
});
$("key").addEventListener("change", meet);
addEventListener("resize", draw);
$("live").addEventListener("toggle", draw);

// Light and dark

const THEMES = ["system", "light", "dark"];

function setTheme(name) {
  const theme = THEMES.includes(name) ? name : "system";
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = `Theme: ${theme}`;
}

function storedTheme(value) {
  try {
    if (value) localStorage.setItem("specedge-theme", value);
    return localStorage.getItem("specedge-theme");
  } catch {
    return value ?? null; // a browser that stores nothing
  }
}

$("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  setTheme(next);
  storedTheme(next);
});

// Start

async function meet() {
  const key = $("key").value;
  const [version, docs] = await Promise.all(["version", "openapi.json"].map((path) => ask(path, { key }).then((r) => r.json()).catch(() => ({}))));
  const chat = docs.paths?.["/v1/chat/completions"]?.post?.requestBody?.content?.["application/json"]?.schema;
  takesLogprobs = Boolean(chat?.properties?.logprobs);
  $("logprobs-row").hidden = !takesLogprobs;
  const target = version.target_model;
  $("models").textContent = target
    ? `target ${target} · ${version.draft_model ? `drafts by ${version.draft_model}` : "no draft model"} · version ${version.version}`
    : "the verifier has not answered yet";
}

setTheme(storedTheme());
for (const text of EXAMPLES) {
  const button = make("button", { type: "button", textContent: text });
  button.addEventListener("click", () => submit(text));
  $("welcome").querySelector(".examples").append(button);
}
if (matchMedia("(max-width: 860px)").matches) {
  $("live").open = false;
  $("settings").open = false;
}
meet();
drawNow();
if (matchMedia("(hover: hover)").matches) $("message").focus();
