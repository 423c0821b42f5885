"""Choose one setting for each defense from a finished run, by one rule that is fixed before the numbers are seen.

The rule (RelaxLoss, section 6.3, made exact): among the settings of a defense whose validation accuracy is at most one
point below that of `none`, the one with the lowest leakage; if none is within a point, the one with the highest
validation accuracy. Leakage is the largest AUC over the run's membership attacks, members against validation rows.

    oakum run jobs/experiments/location30_selection.yaml --json > selection.json
    python benchmarks/choose_settings.py selection.json --output benchmarks/results/location30_selection.json

A setting's label is `<defense>@<value>`; settings with equal text before the `@` compete.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ACCURACY_MARGIN = 0.01
ROUNDING = 1e-9


def measured(setting: dict[str, Any]) -> dict[str, Any]:
    """Return a setting's validation accuracy and its leakage with the attack that reached it."""
    metrics = setting["metrics"]
    aucs = {
        key.split("/")[1]: value["mean"]
        for key, value in metrics.items()
        if key.startswith("membership/") and key.endswith("/auc") and value["mean"] is not None
    }
    strongest = max(aucs, key=lambda attack: aucs[attack])
    return {
        "label": setting["label"],
        "val_accuracy": metrics["utility/val_accuracy"]["mean"],
        "leakage": aucs[strongest],
        "attack": strongest,
    }


def choose(settings: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return, for each defense, what the rule picks and why.

    Raises:
        ValueError: the run has no setting `none`.
    """
    rows = [measured(setting) for setting in settings]
    none = next((row for row in rows if row["label"] == "none"), None)
    if none is None:
        raise ValueError("the run needs a setting labeled `none` to compare accuracies with")
    floor = none["val_accuracy"] - ACCURACY_MARGIN - ROUNDING
    chosen = {}
    for family in dict.fromkeys(row["label"].split("@")[0] for row in rows):
        own = [row for row in rows if row["label"].split("@")[0] == family]
        close = [row for row in own if row["val_accuracy"] >= floor]
        best = min(close, key=lambda row: row["leakage"]) if close else max(own, key=lambda row: row["val_accuracy"])
        reason = "lowest leakage within 1 point" if close else "none within 1 point: closest accuracy"
        chosen[family] = {**best, "candidates": len(own), "reason": reason}
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="output of `oakum run ... --json`")
    parser.add_argument("--output", type=Path, help="JSON card to write")
    options = parser.parse_args()
    run = json.loads(options.results.read_text())
    chosen = choose(run["settings"])
    for family, row in chosen.items():
        print(
            f"{family:<28} {row['label']:<28} accuracy {row['val_accuracy']:.3f}  "
            f"AUC {row['leakage']:.3f} ({row['attack']})  {row['reason']}"
        )
    if options.output is not None:
        card = {
            "name": run["name"],
            "rule": "lowest leakage with validation accuracy within 1 point of none, else the closest",
            "seeds": run["seeds"],
            "chosen": chosen,
            "all": [measured(setting) for setting in run["settings"]],
        }
        options.output.write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
