"""What MLflow keeps of a benchmark: a parent run of the call, a nested run for each table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tasks.studies.drawing import draw_chart
from tasks.studies.place import Studies
from tasks.studies.tables import Table
from tasks.studies.words import claim_text, header, metrics_of, plain_rows
from tasks.tracking import experiment_of, metric_key, open_store, source_state
from tasks.workspace import REPOSITORY

__all__ = ["record_benchmark"]


def record_benchmark(
    studies: Studies, tables: Sequence[Table], sheets: Mapping[str, bytes], page: Path, facts: Mapping[str, str]
) -> str:
    """Write tables, charts, sheets and the page into the store; returns the parent run's id."""
    client = open_store(studies.workspace)
    experiment = experiment_of(client, studies.workspace, studies.workspace.params().name)
    tags = {
        "mlflow.source.name": "perfusion benchmark", "mlflow.source.type": "PROJECT", "kind": "benchmark",
        "mlflow.source.git.commit": source_state(REPOSITORY)["commit"], "workspace": str(studies.workspace.root),
    }  # fmt: skip
    name = time.strftime("benchmark %Y-%m-%d %H:%M:%S")
    parent = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    client.log_batch(parent, params=[Param(key, value) for key, value in facts.items()])
    client.log_artifact(parent, str(page))
    client.log_artifact(parent, str(studies.place.root / "plan.json"))
    for table in tables:
        own = {**tags, MLFLOW_PARENT_RUN_ID: parent, "study": table.name}
        run = client.create_run(experiment, run_name=table.name, tags=own).info.run_id
        now = int(time.time() * 1000)
        metrics = [Metric(metric_key(key), value, now, 0) for key, value in metrics_of(table).items()]
        titles = {row.name: row.title for row in table.rows}
        verdicts = {
            f"claim.{metric_key(f'{claim.left} over {claim.right} in {claim.metric}')}": claim.verdict
            for claim in table.claims
        }
        client.log_batch(run, metrics=metrics[:900], tags=[RunTag(key[:250], value) for key, value in verdicts.items()])
        heads = [head or "system" for head in header(table)]
        unique = [head if heads.index(head) == place else f"{head} ({place})" for place, head in enumerate(heads)]
        client.log_table(run, pd.DataFrame(plain_rows(table), columns=unique, dtype=object), f"{table.name}.json")
        said = [*(claim_text(claim, titles) for claim in table.claims), *table.notes]
        client.log_text(run, "\n".join(said) + "\n", f"{table.name}.txt")
        for number, chart in enumerate(table.charts):
            _log_png(studies, client, run, f"{table.name}-{number}.png", draw_chart(chart))
        if table.name in sheets:
            _log_png(studies, client, run, f"{table.name}-sheet.png", sheets[table.name])
        client.set_terminated(run)
    client.set_terminated(parent)
    return str(parent)


def _log_png(studies: Studies, client, run: str, name: str, png: bytes) -> None:  # type: ignore[no-untyped-def]
    file = studies.place.work / "charts" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png)
    client.log_artifact(run, str(file))
