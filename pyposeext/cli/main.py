"""The command `pyposeext`: picks the verb and turns wrong input into one sentence.

Exit codes: 0 done; 2 wrong input, or a video or an image of a folder that could not be read (what was read is kept);
130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import pyposeext
from pyposeext.errors import InputError

# Each verb is a module of this folder. It has a function of the verb's name whose parameters are the options, or, where
# that is not enough, a function main(arguments) that returns the exit code.
VERBS = {
    "track": "find people in a video, follow them, and write files and an overlay video",
    "predict": "find people in an image, a folder of images or a video",
    "train": "train a model",
    "eval": "measure a model or a file of results",
    "models": "list the models",
    "weights": "fetch, list, convert and verify weight files",
    "system": "say what is installed and what this machine has",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        print(f"pyposeext {pyposeext.__version__}" if arguments == ["--version"] else _help())
        return 0
    try:
        return _run(arguments[0], arguments[1:])
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever read the output has enough of it; closing keeps Python from failing at the last flush.
        sys.stderr.close()
        return 0
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{place}")
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _run(verb: str, arguments: Sequence[str]) -> int:
    if verb not in VERBS:
        raise InputError(f"there is no verb {verb!r}: choose one of {', '.join(VERBS)}")
    module = importlib.import_module(f"pyposeext.cli.{verb}")
    if hasattr(module, "main"):
        code: int = module.main(arguments)
        return code
    import tyro

    tyro.cli(getattr(module, verb), prog=f"pyposeext {verb}", args=list(arguments))
    return 0


def _fail(sentence: str, code: int = 2) -> int:
    print(f"pyposeext: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(
        [
            f"pyposeext {pyposeext.__version__}: human pose in images and video",
            "",
            "usage: pyposeext VERB ...",
            "",
            *lines,
            "",
            "pyposeext VERB --help says more; pyposeext --version the version.",
        ]
    )
