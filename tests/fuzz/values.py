"""Values that programs trip over, drawn from a seeded generator."""

from random import Random

INTEGERS = (0, 1, -1, 2, 7, 15, 16, 17, 127, 128, 255, 256, 512, 1023, 1024, 4095, 4096, 65_535, 2**31 - 1, 2**31)
LARGE = (2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), 10**40)
FLOATS = (0.0, -0.0, 0.5, 1.0, 1.5, 2.0, -0.5, 1e-9, 1e9, 5e-324, 1.8e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    " ",
    "a",
    "null",
    "NaN",
    "🙂" * 7,
    "\u0000",
    "\ud7ff\ue000\uffff",
    "\u202e\u200d\ufeff",
    "é\u0301",
    "<|im_end|>",
    "<tool_call>",
    "{}",
    "[" * 60,
    '"' * 9,
    "%s%n",
    "../../etc/passwd",
    "x" * 300,
    "word " * 50,
)
PIECES = (b"\xff" * 4, bytes(4), b"\x80" * 12, b"1e999", b'{"', b"\xed\xa0\x80")


def integer(draw: Random) -> int:
    """Mostly a limit or one beside it."""
    return draw.choice(INTEGERS if draw.random() < 0.7 else LARGE) + draw.choice((0, 0, 1, -1))


def text(draw: Random) -> str:
    """A text of any characters but surrogates."""
    if draw.random() < 0.8:
        return draw.choice(TEXTS)
    return "".join(chr(draw.randrange(1, 0xD800)) for _ in range(draw.randrange(1, 20)))


def damaged(draw: Random, content: bytes) -> bytes:
    """Bytes with some changed, cut out or doubled."""
    changed = bytearray(content)
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(4):
            case 0:
                changed[at : at + draw.randrange(1, 9)] = b""
            case 1:
                changed[at:at] = changed[: draw.randrange(1, 30)]
            case 2:
                changed[at : at + 1] = draw.randbytes(1)
            case _:
                changed[at : at + 4] = draw.choice(PIECES)
    return bytes(changed)
