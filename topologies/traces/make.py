#!/usr/bin/env python3
"""Makes the synthetic traces of this folder: links that vary as mobile ones do, but were never
recorded. The logarithm of the rate wanders (a bounded random walk with a pull towards its mean, steps
every 20 ms), and now and then the link pauses. Format: Mahimahi's, one line for each 1500 bytes that
can be delivered, in milliseconds; the last line is the period.

    ./make.py            writes every trace, always the same
"""

import math
import random
from pathlib import Path

LINKS = {
    # name: (mean Mbit/s, spread of the logarithm, pauses a minute, their mean length in s)
    "synthetic-lte-slow": (5.0, 0.7, 1.5, 0.4),
    "synthetic-lte-fast": (17.0, 0.6, 1.0, 0.4),
    "synthetic-lte-steady": (5.2, 0.25, 3.0, 0.8),
}
SECONDS = 60


def trace(name, mean, spread, pauses, length):
    rng = random.Random(name)
    lines, level, credit, pause_until, t = [], 0.0, 0.0, 0.0, 0.0
    pull = 0.02
    while t < SECONDS:
        level += -pull * level + spread * math.sqrt(2 * pull) * rng.gauss(0, 1)
        level = max(-2.5 * spread, min(2.0 * spread, level))
        if t > pause_until and rng.random() < pauses / 60 * 0.02:
            pause_until = t + rng.expovariate(1 / length)
        rate = 0.0 if t < pause_until else mean * math.exp(level - spread * spread / 2)
        for ms in range(20):
            credit += rate * 125 / 1500
            while credit >= 1:
                credit -= 1
                lines.append(round(t * 1000) + ms)
        t += 0.02
    lines.append(SECONDS * 1000)
    return lines


if __name__ == "__main__":
    for name, shape in LINKS.items():
        path = Path(__file__).with_name(name + ".trace")
        path.write_text("".join(f"{ms}\n" for ms in trace(name, *shape)))
        print(path)
