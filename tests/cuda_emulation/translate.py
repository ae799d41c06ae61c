"""Makes a .cu file into C++ that the emulation compiles: launches become calls, dynamic shared memory a pointer.

python translate.py SOURCE.cu TARGET.cpp
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PAIRS = {")": "(", "]": "[", "}": "{", ">": "<"}


def closing(text: str, at: int) -> int:
    """The place of the bracket that closes the one at `at`."""
    opening, depth = text[at], 0
    close = {value: key for key, value in PAIRS.items()}[opening]
    for place in range(at, len(text)):
        depth += (text[place] == opening) - (text[place] == close)
        if depth == 0:
            return place
    raise ValueError(f"unbalanced {opening} in {text[at : at + 80]!r}")


def start_of_kernel(text: str, end: int) -> int:
    """Where the expression `name<arguments>` that ends before `end` begins."""
    place = end
    while text[place - 1].isspace():
        place -= 1
    if text[place - 1] == ">":
        depth = 0
        while True:
            place -= 1
            depth += (text[place] == ">") - (text[place] == "<")
            if depth == 0:
                break
    while text[place - 1].isspace():
        place -= 1
    while re.match(r"[\w:]", text[place - 1]):
        place -= 1
    return place


def translate(text: str) -> str:
    text = re.sub(
        r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*|alignas\(\d+\)\s*)?([\w ]+?)\s+(\w+)\[\];",
        r"\1* \2 = static_cast<\1*>(emulation::dynamic_shared_memory());",
        text,
    )
    while (at := text.find("<<<")) >= 0:
        begin, end = start_of_kernel(text, at), text.index(">>>", at)
        open_call = text.index("(", end)
        close_call = closing(text, open_call)
        kernel, launch, arguments = text[begin:at].strip(), text[at + 3 : end], text[open_call : close_call + 1]
        text = (
            text[:begin]
            + f"emulation::launch_kernel([&] {{ {kernel}{arguments}; }}, {launch})"
            + text[close_call + 1 :]
        )
    return text


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.write_text(f'#line 1 "{source}"\n' + translate(source.read_text()))
