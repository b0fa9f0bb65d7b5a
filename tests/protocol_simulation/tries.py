"""Both tries of a stream against its own history: what was sent, in order, and what the target says.

Of the nodes that have arrived those are live that agree with the committed tokens and reach beyond them. Paths are
numbered, so that two nodes with the same path, which name each other, have the same number.
"""

from collections.abc import Sequence

from protocol_simulation.world import World
from specedge.trie import ROOT, DraftTrie


class Answer:
    """What one request is to get.

    Args:
        text: prompt and answer, as the target alone would have it.
        num_prompt: tokens of the prompt.
    """

    def __init__(self, name: str, text: tuple[int, ...], num_prompt: int, finish_reason: str) -> None:
        self.name = name
        self.text = text
        self.num_prompt = num_prompt
        self.finish_reason = finish_reason
        self.is_over = False  # for its user


class History:
    """Draft nodes in order of their numbers.

    Attributes:
        num_arrived: of a stream's nodes, those that its verifier has taken in.
        was_full: more nodes were live at once than `max_live`, so that some may have been dropped.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.paths: list[int] = []
        self.above: list[int] = []  # the paths' numbers without their last token; an anchor where that is text
        self.lengths: list[int] = []
        self.agreeing: list[int] = []  # tokens of each path that agree with the text
        self.num_arrived = 0
        self.was_full = False
        self._numbers: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """Further nodes."""
        text = self.answer.text
        for token, parent in zip(tokens, parents, strict=True):
            if parent < 0:
                above, length, agreeing = parent, -parent, -parent
            else:
                above, length, agreeing = self.paths[parent], self.lengths[parent], self.agreeing[parent]
            if agreeing == length and length < len(text) and text[length] == token:
                # Where a path is text as far as it goes, its anchor is its only name.
                agreeing += 1
                path = ~length
            else:
                path = self._numbers.setdefault((above, token), len(self._numbers))
            self.tokens.append(token)
            self.parents.append(parent)
            self.paths.append(path)
            self.above.append(above)
            self.lengths.append(length + 1)
            self.agreeing.append(agreeing)

    def live(self, num_committed: int, num_nodes: int) -> dict[int, int]:
        """A node for each live path among the first nodes."""
        lengths, agreeing, paths = self.lengths, self.agreeing, self.paths
        return {
            paths[number]: number
            for number in range(num_nodes)
            if lengths[number] > num_committed and agreeing[number] >= num_committed
        }


def check_trie(world: World, who: str, trie: DraftTrie, history: History, num_nodes: int) -> None:
    """Holds a trie that numbers nodes as the stream does to the first nodes of its history."""
    num_committed = len(trie.committed)
    name = f"{who} of {history.answer.name}"
    world.check(
        tuple(trie.committed) == history.answer.text[:num_committed],
        f"{name} has committed another text than the target's",
    )
    world.check(trie.num_nodes == num_nodes, f"{name} has {trie.num_nodes} nodes of {num_nodes}")
    live = history.live(num_committed, num_nodes)
    history.was_full |= len(live) > trie.max_live_nodes
    numbers = trie.live_numbers()
    for number in numbers:
        parent = trie.parent(number)
        above = ~(num_committed - 1) if parent == ROOT else history.paths[parent]
        world.check(
            history.paths[number] in live
            and history.above[number] == above
            and trie.token(number) == history.tokens[number],
            f"{name}: node {number} is live below {parent}, which cannot be after {num_committed} tokens",
        )
    if not history.was_full:
        world.check(len(numbers) == len(live), f"{name}: {len(numbers)} nodes are live, {len(live)} should be")
