"""The prompts: short requests for tales, and some long ones that begin with the same page."""

_PAGE = """\
At the edge of the pine wood, where the brook leaves the millpond, there stood a crooked house with a blue door. In \
the house lived an old clockmaker called Mister Tobias Pell, and with him lived a lame magpie, a tabby cat with one \
white ear, and a hedgehog who had come in from the frost and had never gone out again. Every evening the clockmaker \
wound the seven clocks on the kitchen wall. The magpie counted aloud while he did it, and nearly always she counted \
eight. "There are only seven," said the cat. "I can hear eight," said the magpie, "and what I can hear I shall \
count." The hedgehog said nothing. He slept under the stove, where it was warm, and he had reasons of his own to stay \
there. One night the wind blew the blue door open, the lamp went out, and all seven clocks stopped in the same \
moment. In the dark the friends held their breath. And then they heard it too, quite softly, from under the stove: \
tick, tick, tick. Mister Pell lit a candle and went down upon his knees.\
"""

_LONG = (
    "Tell me what he found under the stove.",
    "Tell the story again, but let the hedgehog speak first.",
    "Who had hidden the eighth clock, and why? Tell me in a few sentences.",
    "What did the magpie say on the next morning?",
    "Please write how the tale ends, with a happy supper for all of them.",
    "Tell me a tale of the cat with one white ear when she was a kitten.",
    "The wind came back on the second night. What did it want?",
    "Make up a song that the seven clocks sing at midnight.",
)

_SHORT = (
    "Tell me a story about a duckling who is afraid of puddles.",
    "Tell me a story.",
    "Please tell a tale about a beaver who builds a bridge for the ants.",
    "What does the moon say to the lighthouse?",
    "Tell me a short story about two mice, one cheese and a very long ladder.",
    "I should like a bedtime story about a snail who wins a race.",
    "Write about a small boat named Marigold that wants to see the sea.",
    "Tell me about the bear who could not sleep in winter because the snow was too loud.",
    "Hello!",
    "Tell me a story about an owl who opens a school for young bats, and about the one bat who is always late.",
    "A baker has 12 rolls and gives 5 of them to the sparrows. How many has he left?",
    "Tell me a tale in which a frog keeps a promise.",
    "Why did the goat climb on the roof of the church?",
    "Tell a story about Peter, who finds a key that fits no door in the whole house.",
    "Tell me a story about a lost mitten.",
    "Please tell me how the fox and the goose became neighbours, and what they quarrelled about on the first day.",
    "Tell a tale about three brothers, a grey horse and a pot of honey.",
    "What did Grandmother Mole keep in the tin box?",
    "Write a story about a cloud that is afraid of heights.",
    "Tell me a story about a robin who mends umbrellas in a hollow oak.",
    "There are 4 nests with 3 eggs in each. How many eggs are there?",
    "Tell me about the day on which the river ran backwards.",
    "Tell me a story about a girl named Annie and her paper kite.",
    "A tale, please, with a clever spider and a foolish king.",
    "Tell me a story about a squirrel who forgets where the nuts are, every year, and who finds something better.",
    "Who lives in the old boot by the garden gate?",
    "Tell a story about a snowman who takes a train to the south.",
    "Tell me about a shy otter.",
    "Write me a letter from a penguin to his cousin, the puffin.",
    "Tell me a story about a toad who wanted to be painted.",
    "Tell a tale about a donkey who carries bells to market and does not know that everyone can hear him coming.",
    "What happened when the rooster overslept?",
    "Tell me a story about the smallest star.",
    "Tell the tale of a sailor, a parrot and an island made of bread.",
    "Please tell me a story about a rabbit who counts everything he sees.",
    "Tell me a story about a pair of shoes that walk home alone in the rain.",
    "Lucy had 9 ribbons and bought 6 more. Then she lost 2. How many ribbons has she now?",
    "Tell me how the badger got his stripes.",
    "Tell a story about a bee who is too polite to sting.",
    "Write a tale about a wooden soldier on a windowsill who guards the house while all are asleep.",
    "Tell me a story about a turtle and her umbrella.",
    "Tell me of a village where nobody could whistle.",
    "Once there was a lamb who would not follow. Go on!",
    "Tell me a story about a boy who swaps shadows with his dog.",
    "Tell a tale about a candle that was saved for a great day.",
    "What did the scarecrow dream of?",
)


def all_prompts() -> list[str]:
    """Every prompt in a fixed order, the long ones spread among the short ones."""
    prompts = list(_SHORT)
    for index, question in enumerate(_LONG):
        prompts.insert(3 + 7 * index, f"{_PAGE}\n\n{question}")
    return prompts
