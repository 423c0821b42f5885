"""Per-sample gradient statistics of a model, computed once for all attacks that read them; `gradients.parquet`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oakum.attacks.membership._gradients import gradient_statistics
from oakum.pipeline.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Compute the statistics of the unmasked model on the first points of every fold; payload: `gradients.parquet`."""
    module = context.unmasked("target")
    most = context.task.config["points_per_fold"]
    tables = []
    for fold in sorted(context.task.folds):
        points = context.folds.points(fold)
        count = len(points) if most is None else min(most, len(points))
        found = gradient_statistics(module, points.x[:count], points.y[:count])
        columns = {"fold": pa.array([fold] * count, pa.string()), "row": points.rows[:count].numpy(), **found}
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), context.output / "gradients.parquet")
    return {"metrics": {}, "points": sum(len(table) for table in tables)}
