"""Prompts and answers for the replay, written for it: what a capable model is asked for, and what it would answer."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["summarise", "edit", "code", "chat"]


@dataclass(frozen=True, slots=True)
class Case:
    """One request and its answer.

    Attributes:
        kind: what is asked for.
        prompt: what the model reads.
        answer: what it says.
        prediction: what its user would expect it to say; "" where there is nothing to expect.
    """

    kind: Kind
    prompt: str
    answer: str
    prediction: str = ""


_MINUTES = """\
Minutes of the harbour committee, 4 March. Present: Ida Brandt (chair), Tom Okafor, Lena Fischer, Ravi Menon. The \
chair opened the meeting at 18:05. Tom Okafor reported that the dredging of the north channel is two weeks behind \
schedule, because the contractor's barge was damaged in the February storm. The contractor has promised a \
replacement barge by 15 March. Lena Fischer presented the repair estimate for the east pier: 148,000 euros, of which \
60,000 euros would be covered by the regional infrastructure fund if the application is filed before the end of the \
month. Ravi Menon asked whether the pier could stay open to the ferry during the repairs. Lena Fischer answered that \
the ferry would have to use the fish quay on weekdays. The committee approved the repair estimate for the east pier \
unanimously, and asked Lena Fischer to file the application with the regional infrastructure fund. The next meeting \
is on 1 April at 18:00."""

_LETTER = """\
Dear Ms Alvarez,

Thank you for you're letter of the 12th about the heating in apartment 4B. I am sorry that the radiators in the living \
room and in the small bedroom has been cold since Monday. Our technician visited the building on Wednesday and found \
that the circulation pump in the cellar is worn out. A new pump was ordered on the same day and will be delivered next \
Tuesday. Until then, we can lend you two electric heaters free of charge; please call the office between nine and \
twelve, so that we can bring them to you're door. The extra electricity will be deducted from you're next bill.

With kind regards,
Jonas Weber, Property Management"""

_ARTICLE = """\
The bay laurel keeps its leaves all year, and it has been grown in pots since Roman times. A bay laurel wants a \
sunny place out of the wind, a pot with good drainage, and soil that is neither wet nor bone dry. Water it when the \
upper three centimetres of the soil feel dry. From April to August it takes a weak liquid fertiliser every two \
weeks. In winter a bay laurel in a pot must be kept from hard frost, since its roots freeze more easily than its \
leaves: a cool, bright stairwell between two and ten degrees is ideal. Scale insects are its commonest pest; they \
sit on the underside of the leaves and can be wiped off with soapy water. Cut it in late spring, and dry the cut \
leaves in the shade."""

_CODE = '''\
class Inventory:
    """Items on the shelves of one warehouse."""

    def __init__(self, warehouse_id: str) -> None:
        self.warehouse_id = warehouse_id
        self.items: dict[str, int] = {}

    def add(self, item: str, count: int) -> None:
        if count <= 0:
            raise ValueError(f"count must be positive, not {count}")
        self.items[item] = self.items.get(item, 0) + count

    def remove(self, item: str, count: int) -> None:
        if count <= 0:
            raise ValueError(f"count must be positive, not {count}")
        if self.items.get(item, 0) < count:
            raise KeyError(f"only {self.items.get(item, 0)} of {item} are left")
        self.items[item] -= count
        if self.items[item] == 0:
            del self.items[item]

    def total(self) -> int:
        return sum(self.items.values())
'''

_CODE_RENAMED = _CODE.replace("Inventory", "Stock").replace("items", "shelves")

_CODE_LOGGED = (
    _CODE.replace("class Inventory", "import logging\n\nlogger = logging.getLogger(__name__)\n\n\nclass Inventory")
    .replace("get(item, 0) + count\n", 'get(item, 0) + count\n        logger.info("added %d of %s", count, item)\n')
    .replace("-= count\n", '-= count\n        logger.info("removed %d of %s", count, item)\n')
)

_TESTS = """\
import pytest

from inventory import Inventory


def test_add_increases_the_count() -> None:
    inventory = Inventory("north")
    inventory.add("rope", 3)
    inventory.add("rope", 2)
    assert inventory.items == {"rope": 5}
    assert inventory.total() == 5


def test_add_refuses_a_count_that_is_not_positive() -> None:
    inventory = Inventory("north")
    with pytest.raises(ValueError, match="count must be positive, not 0"):
        inventory.add("rope", 0)


def test_remove_decreases_the_count() -> None:
    inventory = Inventory("north")
    inventory.add("rope", 3)
    inventory.remove("rope", 2)
    assert inventory.items == {"rope": 1}
    assert inventory.total() == 1


def test_remove_forgets_an_item_that_is_used_up() -> None:
    inventory = Inventory("north")
    inventory.add("rope", 3)
    inventory.remove("rope", 3)
    assert inventory.items == {}


def test_remove_refuses_more_than_is_there() -> None:
    inventory = Inventory("north")
    inventory.add("rope", 3)
    with pytest.raises(KeyError, match="only 3 of rope are left"):
        inventory.remove("rope", 4)
"""

CASES = (
    Case(
        "summarise",
        f"Summarise these minutes in four sentences.\n\n{_MINUTES}\n\nSummary:\n",
        "The dredging of the north channel is two weeks behind schedule, because the contractor's barge was damaged in "
        "a storm; a replacement barge is promised by 15 March. The committee unanimously approved the repair estimate "
        "for the east pier of 148,000 euros. Lena Fischer will file the application with the regional infrastructure "
        "fund, which would cover 60,000 euros, before the end of the month. During the repairs the ferry would have to "
        "use the fish quay on weekdays. The next meeting is on 1 April.",
    ),
    Case(
        "summarise",
        f"What must I do to keep a bay laurel? List the points.\n\n{_ARTICLE}\n\nPoints:\n",
        "- Place: sunny and out of the wind, in a pot with good drainage.\n"
        "- Water: when the upper three centimetres of the soil feel dry.\n"
        "- Fertiliser: a weak liquid fertiliser every two weeks from April to August.\n"
        "- Winter: keep it from hard frost, ideally in a cool, bright stairwell between two and ten degrees.\n"
        "- Pests: wipe scale insects off the underside of the leaves with soapy water.\n"
        "- Cutting: in late spring; dry the cut leaves in the shade.",
    ),
    Case(
        "edit",
        f"Correct the mistakes in this letter and change nothing else.\n\n{_LETTER}\n\nCorrected letter:\n",
        _LETTER.replace("you're", "your").replace("bedroom has", "bedroom have"),
        _LETTER,
    ),
    Case(
        "edit",
        f"The meeting was on 5 March and Tom Okafor is now called Tom Adeyemi. Rewrite.\n\n{_MINUTES}\n\nRewritten:\n",
        _MINUTES.replace("4 March", "5 March").replace("Okafor", "Adeyemi"),
        _MINUTES,
    ),
    Case(
        "code",
        f"Rename the class to Stock and its items to shelves.\n\n```python\n{_CODE}```\n\n```python\n",
        _CODE_RENAMED,
        _CODE,
    ),
    Case(
        "code",
        f"Log every change of the items.\n\n```python\n{_CODE}```\n\n```python\n",
        _CODE_LOGGED,
        _CODE,
    ),
    Case("code", f"Write tests for this class.\n\n```python\n{_CODE}```\n\n```python\n", _TESTS),
    Case(
        "chat",
        "Why is the sky dark at night, if there are stars in every direction?\n",
        "Because the universe has an age. Light needs time to reach us, so we see only as far as light has travelled "
        "since the beginning, and within that distance there are far too few stars to cover the whole sky. Besides, "
        "space has been stretching all the while, which has shifted the oldest glow out of the range our eyes can "
        "see. If either of these were otherwise, the night would shine like the surface of the sun.",
    ),
    Case(
        "chat",
        "Give me three ideas for a rainy Sunday with two small children.\n",
        "First, build a post office: shoe boxes become letterboxes, and everybody writes, draws and delivers mail from "
        "room to room. Second, bake flat bread together; kneading keeps small hands busy, and the result is eaten at "
        "once. Third, put on boots and go out anyway to look for snails, sail bark boats down the gutter, and come "
        "home to a warm bath.",
    ),
)
