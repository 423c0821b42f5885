"""Query a released model once on several folds; payload: `answers.parquet`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oakum.attacks.access import Points
from oakum.metrics.utility import accuracy, balanced_accuracy, loss_spread, top_accuracy
from oakum.models.base import predict_log_probabilities
from oakum.pipeline.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Query the released model once on every fold of the stage; payload: `answers.parquet`."""
    module = context.released("target")
    tables, metrics = [], {}
    for fold in sorted(context.task.folds):
        points = context.folds.points(fold)
        log_probabilities = predict_log_probabilities(module, points.x.to(context.device)).cpu().numpy()
        y = points.y.numpy()
        tables.append(_answers_table(fold, points, log_probabilities))
        predicted = log_probabilities.argmax(axis=1)
        found = {
            "accuracy": accuracy(predicted, y),
            "balanced_accuracy": balanced_accuracy(predicted, y),
            **loss_spread(log_probabilities, y),
        }
        if log_probabilities.shape[1] > 5:
            found["top5_accuracy"] = top_accuracy(log_probabilities, y, 5)
        metrics.update({f"{fold}_{name}": value.to_json() for name, value in found.items()})
    pq.write_table(pa.concat_tables(tables), context.output / "answers.parquet")
    return {"metrics": metrics}


def _answers_table(fold: str, points: Points, log_probabilities: NDArray[np.float64]) -> pa.Table:
    return pa.table(
        {
            "fold": pa.array([fold] * len(points), pa.string()),
            "row": points.rows.numpy(),
            "label": points.y.numpy(),
            "log_probs": pa.array(list(log_probabilities), pa.list_(pa.float64())),
        }
    )
