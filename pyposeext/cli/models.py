"""`pyposeext models`: the models there are."""

from __future__ import annotations

import json
from typing import Annotated

import tyro


def models(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """List the models by name, with what each is.

    Args:
        as_json: print a JSON list instead of text.
    """
    from pyposeext.io.weights import list_weights
    from pyposeext.models.registry import ALIASES, list_models, model_entry

    models = [{"name": name, "about": _first_sentence(model_entry(name).builder.__doc__)} for name in list_models()]
    for alias, name in ALIASES.items():
        there = "its weights are installed" if alias in list_weights() else "its weights are not installed"
        models.append({"name": alias, "about": f"{name}; {there}"})
    if as_json:
        print(json.dumps(models, indent=2))
    else:
        width = max(len(model["name"]) for model in models)
        print("\n".join(f"{model['name']:{width}}  {model['about']}" for model in models))


def _first_sentence(documentation: str | None) -> str:
    return " ".join((documentation or "").strip().split("\n\n")[0].split())
