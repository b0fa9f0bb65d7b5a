"""One session's draft trie, step by step, as a text that can be read and reviewed: trie_trace.txt."""

from collections.abc import Callable

from specedge.trie import DEAD, ROOT, DraftTrie, anchor_at

PROMPT = ["once", "upon", "a"]
MAX_LIVE_NODES = 6


class Recorder:
    """Drives a trie in words and writes down what it did."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.trie = DraftTrie([self.identify(word) for word in PROMPT], max_live_nodes=MAX_LIVE_NODES)
        self.lines = [f"prompt: {self.text()}", f"at most {MAX_LIVE_NODES} live nodes"]

    def identify(self, word: str) -> int:
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def text(self) -> str:
        return " ".join(self.words[token] for token in self.trie.committed)

    def note(self, text: str) -> None:
        self.lines += ["", f"# {text}"]

    def draft(self, parent: int, word: str, log_prob: float) -> None:
        number = self.trie.add(parent, self.identify(word), self.trie.score(parent) + log_prob)
        home = self.trie.canonical(number)
        fate = f"alias of {home}" if home >= 0 else "dead" if home == DEAD else f"committed at {~home}"
        below = f"below {parent}" if parent >= 0 else f"after position {~parent}"
        self.lines.append(f"node {number}: {word!r} {below} {log_prob:+.1f}: {'live' if home == number else fate}")

    def verdict(self, words: str) -> None:
        commit = self.trie.commit([self.identify(word) for word in words.split()])
        self.lines += [f"verdict: {words}", f"  accepted {commit.accepted}, dead {sorted(commit.dead)}"]
        self.show()

    def trim(self) -> None:
        self.lines.append(f"trim: dropped {self.trie.trim()}")
        self.show()

    def show(self) -> None:
        self.lines.append(f"  {self.text()} |")
        self.show_below(ROOT, "    ")
        self.lines.append(f"  best first: {self.trie.select(MAX_LIVE_NODES)}")

    def show_below(self, parent: int, indent: str) -> None:
        for number in self.trie.children(parent).values():
            word = self.words[self.trie.token(number)]
            self.lines.append(
                f"{indent}{word}  (node {number}, position {self.trie.position(number)}, "
                f"score {self.trie.score(number):.1f})"
            )
            self.show_below(number, indent + "    ")


def test_one_session(golden: Callable[[str, str], None]) -> None:
    session = Recorder()
    session.note("The edge drafts a small tree.")
    session.draft(anchor_at(2), "time", -0.1)
    session.draft(anchor_at(2), "hill", -2.5)
    session.draft(0, "there", -0.2)
    session.draft(0, "a", -1.5)
    session.draft(2, "was", -0.1)
    session.show()

    session.note("The target writes 'time there lived': two nodes are walked, 'lived' is the bonus token.")
    session.verdict("time there lived")

    session.note("These nodes were sent before the edge knew of that verdict.")
    session.draft(4, "a", -0.3)
    session.draft(2, "lived", -2.0)
    session.draft(6, "a", -0.4)
    session.draft(6, "an", -1.0)
    session.draft(7, "king", -0.5)
    session.draft(1, "stood", -0.5)
    session.show()

    session.note(
        "The edge knows now, and drafts from the frontier; one node repeats a live one, one extends the repeat."
    )
    session.draft(anchor_at(5), "a", -0.3)
    session.draft(11, "queen", -0.9)
    session.draft(12, "who", -0.2)
    session.draft(9, "who", -0.1)
    session.show()

    session.note("Two nodes too many: the lowest scores go, and what is drafted below them is dead.")
    session.draft(8, "old", -0.1)
    session.draft(14, "had", -0.4)
    session.trim()
    session.draft(13, "had", -0.1)

    session.note("The bonus token matches a node that was not verified yet: its subtree is there at once.")
    session.verdict("a king")

    session.note("Nothing survives a token that nobody guessed.")
    session.verdict("and")
    session.draft(14, "had", -0.4)
    session.draft(anchor_at(8), "a", -0.7)
    session.show()

    golden("trie_trace.txt", "\n".join(session.lines) + "\n")
