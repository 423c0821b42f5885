"""Honest selection: which experiment a trial runs, and which one confirms its settings.

A trial sees validation folds, seeds of its own, the first judge and half of the attacked classes. The confirmation has
the test folds once, the experiment's own seeds, the second judge and all classes. `test` is sealed in both: its rows
are the same under every seed, so that no pair of samples that scored a trial scores the confirmation. Where trials are
scored by canaries, their fold is sealed too, and trials have one half of it, the confirmation the other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

from oakum.config import ConfigError
from oakum.search.objectives import Floor, Objective

FIRST_SEARCH_SEED = 1000
BASELINE = "none"
TRIAL = "trial"
SEALED = "test"
CANARIES = "canary"
# What a space or a rung may not change.
PROTOCOL_PATHS = (
    *("name", "data", "folds", "settings", "seeds", "experiment_seed", "canaries", "evaluation"),
    *("attacks.nonmembers", "attacks.identities"),
)


def trial_experiment(
    experiment: Mapping[str, Any],
    objectives: Iterable[Objective],
    floors: Iterable[Floor],
    seeds: tuple[int, ...],
    private_classes: int,
) -> dict[str, Any]:
    """Return the experiment that trials run, without their setting: only the attacks that the search asks about.

    Args:
        experiment: as the user's file says it.
        seeds: of the search; the experiment's own are for the confirmation.
        private_classes: of the target; half of them, rounded up, are attacked by model inversion.

    Raises:
        ConfigError: a key that no attack of the experiment yields, or that belongs to the test fold; a split that
            cannot be sealed; seeds shared with the confirmation; no second judge for the confirmation.
    """
    keys = _keys(objectives, floors)
    data = _sealed(experiment)
    shared = set(seeds) & set(data.get("seeds", (0, 1, 2)))
    if shared:
        raise ConfigError(
            f"seed {min(shared)} is both the search's and the experiment's: a setting would be confirmed on what it "
            "was chosen with"
        )
    if "val" not in _taken(data):
        raise ConfigError("a search measures on the fold `val`; let `folds.rules` take it")
    attacks = dict(data.get("attacks") or {})
    asked = {kind: _asked(keys, kind) for kind in ("membership", "inversion")}
    for kind, labels in asked.items():
        attacks[kind] = _chosen(attacks.get(kind) or (), labels, kind)
    attacks["nonmembers"] = "val"
    if asked["inversion"]:
        if not (data.get("evaluation") or {}).get("second"):
            raise ConfigError(
                "a search on inversion needs two judges: `evaluation.model` scores the trials, `evaluation.second` "
                "the confirmation; add `evaluation.second`"
            )
        attacked = attacks.get("identities") or private_classes
        attacks["identities"] = math.ceil(attacked / 2)
        data["evaluation"] = {**data["evaluation"], "second": None, "extractors": []}
    else:
        data.pop("evaluation", None)
        data.pop("priors", None)
    if any(key.startswith("canary/") for key in keys):
        data = _with_half_of_the_canaries(data, "search")
    else:
        data.pop("canaries", None)
    return {**data, "attacks": attacks, "settings": {BASELINE: "none"}, "seeds": list(seeds)}


def confirmation_experiment(
    experiment: Mapping[str, Any],
    name: str,
    settings: Mapping[str, Mapping[str, Any]],
    *,
    trial: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the experiment that confirms settings beside `none`: test folds, own seeds, the judges exchanged.

    All attacks of the experiment are run, also those that the search did not look at; what an attack's entry says about
    settings is dropped, since the settings are others.

    Args:
        trial: what trials ran; where these met canaries, the confirmation has the others. None: they met none.
    """
    data = _sealed(experiment)
    if (trial or {}).get("canaries") is not None:
        data = _with_half_of_the_canaries(data, "confirmation")
    attacks = dict(data.get("attacks") or {})
    attacks["inversion"] = [_without(entry, "settings") for entry in attacks.get("inversion") or ()]
    attacks["nonmembers"] = "test"
    evaluation = data.get("evaluation")
    if evaluation and evaluation.get("second"):
        first = {part: evaluation[part] for part in ("model", "recipe") if part in evaluation}
        data["evaluation"] = {**_without(evaluation, "recipe"), **evaluation["second"], "second": first}
    return {
        **data,
        "name": name,
        "description": f"Confirmation of a search over {data['name']}.",
        "attacks": attacks,
        "settings": {BASELINE: "none", **settings},
    }


def check_keys_after(metrics: Iterable[str], objectives: Iterable[Objective], floors: Iterable[Floor]) -> str | None:
    """Return what to say of the first key that the metrics lack, or None."""
    known = sorted(metrics)
    for key in sorted(_keys(objectives, floors)):
        if key not in known:
            prefix = key.rpartition("/")[0]
            near = [other for other in known if other.startswith(prefix)] or known
            return f"no stage yields {key!r}; there is: {', '.join(near)}"
    return None


def confirmed_name(search: str) -> str:
    """Return the name of the experiment that confirms a search."""
    return f"{search}-confirmed"


def confirmed_key(key: str) -> str:
    """Return the key under which a confirmation holds what trials measured: of the test, not the validation fold."""
    return key.replace("/val_", "/test_")


def _keys(objectives: Iterable[Objective], floors: Iterable[Floor]) -> set[str]:
    keys = {key for objective in objectives for key in objective.keys} | {floor.key for floor in floors}
    for key in sorted(keys):
        if "/test_" in key:
            raise ConfigError(
                f"{key!r} is measured on the test fold, which a search never sees; write "
                f"{key.replace('/test_', '/val_')!r}"
            )
        if key.split("/")[1].endswith(".second") or key.endswith(".second"):
            raise ConfigError(f"{key!r} is the second judge's, which only the confirmation asks")
    return keys


def _asked(keys: Iterable[str], kind: str) -> list[str]:
    """Return the labels of the attacks that the keys name, in order; canaries meet membership attacks."""
    prefixes = {kind, "canary"} if kind == "membership" else {kind}
    return sorted({key.split("/")[1] for key in keys if key.split("/")[0] in prefixes and key.count("/") >= 2})


def _chosen(entries: Iterable[Any], labels: list[str], kind: str) -> list[Any]:
    found = {_label(entry): entry for entry in entries}
    for label in labels:
        if label not in found:
            raise ConfigError(
                f"the experiment has no {kind} attack {label!r}; add it under `attacks.{kind}` "
                f"(there: {', '.join(found) or 'none'})"
            )
    # Cells of a search are others than those that an entry may be limited to.
    return [_without(found[label], "settings", "seeds") for label in labels]


def _label(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry.get("as") or entry.get("name"))


def _without(entry: Any, *names: str) -> Any:
    return entry if isinstance(entry, str) else {key: value for key, value in entry.items() if key not in names}


def _sealed(experiment: Mapping[str, Any]) -> dict[str, Any]:
    data = copy.deepcopy(dict(experiment))
    folds = data.get("folds") or {}
    if folds.get("released"):
        raise ConfigError(
            "a released split draws its test fold anew for every seed, so a search cannot be kept from seeing what "
            "confirms it; write `folds.rules` instead"
        )
    if SEALED not in _taken(data):
        raise ConfigError("a search is confirmed on the fold `test`; let `folds.rules` take it")
    data["folds"] = {**folds, "sealed": sorted({*(folds.get("sealed") or ()), SEALED})}
    return data


def _with_half_of_the_canaries(data: dict[str, Any], part: str) -> dict[str, Any]:
    """Return the experiment with one half of the candidates, which are sealed; without canaries as it is."""
    canaries = data.get("canaries")
    if canaries is None:
        return data
    folds = data["folds"]
    sealed = sorted({*folds["sealed"], canaries.get("fold", CANARIES)})
    return {**data, "canaries": {**canaries, "part": part}, "folds": {**folds, "sealed": sealed}}


def _taken(data: Mapping[str, Any]) -> set[str]:
    return {fold for rule in (data.get("folds") or {}).get("rules") or () for fold in rule.get("take") or ()}
