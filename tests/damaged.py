"""Files damaged at random: a valid one cut, with flipped bytes, or with pieces in other places."""

import contextlib
import random
import resource
import signal
from collections.abc import Iterator
from typing import Any

NASTY = (
    "height[cm]", "height[in]", "a[/b]", "[red]b", "c\x1b[2Jd", "e\u202ef", "g\nall claims hold",
    "US$ per $", r"$\frac{1}{$", "<script>alert(1)</script>", "h'\"&", "i\rj", "k\u2028l", "ü", "m\\$n",
)  # fmt: skip
_NUMBERS = (b"NaN", b"1e400", b"-1", b"1e308", b"null", b"[[", b"9" * 50, b'"x"', b"{}", b"0.5")


def damaged(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """``count`` variants of ``content``, none of them like it."""
    draw = random.Random(seed)
    made = 0
    while made < count:
        changed = bytearray(content)
        a, b = sorted(draw.randrange(len(content)) for _ in range(2))
        kind = draw.randrange(6)
        if kind == 0:
            del changed[a:]
        elif kind == 1:
            for _ in range(draw.choice((1, 1, 3, 20))):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
        elif kind == 2:
            del changed[a : min(b, a + 200)]
        elif kind == 3:
            changed[a:a] = content[b : b + draw.randrange(1, 200)]
        elif kind == 4:
            changed[a : a + draw.randrange(1, 9)] = draw.choice(_NUMBERS)
        else:
            changed[a] ^= 1 << draw.randrange(8)
        if bytes(changed) != content:
            made += 1
            yield bytes(changed)


@contextlib.contextmanager
def within(seconds: int, mebibytes: int = 1024) -> Iterator[None]:
    """The block ends in so many seconds, and the peak of memory rises by at most so much."""

    def late(signum: int, frame: Any) -> None:
        raise AssertionError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    risen = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert risen < mebibytes, f"{risen:.0f} MiB were allocated"
