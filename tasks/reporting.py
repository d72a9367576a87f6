"""Reports of a retraining: a summary for machines, one offline page a run, and one page that compares two runs.

summary(workspace)                    what `perfusion report --json` prints
write_report(workspace)               work/report/index.html
compare(workspace, a, b, out)         one page, from run ids, "generator@3" or two work folders
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.reporting_charts import curve_svg, panels
from tasks.reporting_compare import comparison_view
from tasks.reporting_page import write_page
from tasks.reporting_pictures import contact_sheet, data_uri
from tasks.reporting_record import RunRecord, read_record
from tasks.reporting_sources import open_run
from tasks.reporting_summary import summarise
from tasks.reporting_verdict import tiles_view, verdict_view
from tasks.reporting_views import data_view, gates_view, generator_view, reward_view, times_view
from tasks.reporting_words import GLOSSARY, flatten, number, seconds
from tasks.workspace import Workspace

__all__ = ["compare", "summary", "write_report"]


def summary(workspace: Workspace) -> dict[str, Any]:
    """The headline figures of the workspace's last run; what does not exist is None and `missing` says why.

    Raises:
        ReportError: nothing was recorded, a record is damaged, or the data counts do not add up.
    """
    record = read_record(workspace.root)
    return summarise(record, _serving(workspace, record))


def write_report(workspace: Workspace, out: Path | None = None) -> Path:
    """Write the page of the workspace's last run and return its path.

    Args:
        workspace: whose run.
        out: the file; None is report/index.html in the work folder.

    Raises:
        ReportError: nothing was recorded, a record is damaged, or the data counts do not add up.
    """
    record = read_record(workspace.root)
    serving = _serving(workspace, record)
    return write_page(
        out or workspace.report / "index.html",
        "report.html.j2",
        title=record.title,
        kicker=_kicker(record),
        verdict=verdict_view(record),
        gates=gates_view(record),
        gate_missing=_why_not_asked(record),
        tiles=tiles_view(record),
        sheet=contact_sheet(record),
        merchants=_merchants_sheet(record),
        reward=reward_view(record),
        generator=generator_view(record),
        data=data_view(record),
        curves=_curves(record),
        times=times_view(record),
        lineage=_lineage(workspace, record, serving),
        params=dict(flatten(record.params)),
        glossary=GLOSSARY,
        missing=summarise(record, serving)["missing"],
    )


def compare(workspace: Workspace, run_a: str | Path, run_b: str | Path, out: Path) -> Path:
    """Write the page that compares two runs, differences being B minus A, and return its path.

    Args:
        workspace: whose store and family of models are meant.
        run_a, run_b: each a workspace or its work folder, an MLflow run id, or a version ("generator@3",
            "perfusion-reward@champion").
        out: the file.

    Raises:
        ReportError: there is no such run, or it kept no evidence.
    """
    with open_run(workspace, run_a) as a, open_run(workspace, run_b) as b:
        return write_page(out, "compare.html.j2", **comparison_view(a, b), now=_now())


def _why_not_asked(record: RunRecord) -> str:
    if (record.outcome or {}).get("status") == "unchanged":
        return "Not asked: these very models serve already."
    return "The flow did not come to this gate."


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _serving(workspace: Workspace, record: RunRecord) -> dict[str, int | None]:
    """The champions of the run's family; none where there is no store yet."""
    if not workspace.has_store:
        return {}
    from tasks.registry import open_registry

    registry = open_registry(workspace.tracking_uri, workspace.mlruns)
    return registry.champions(record.params.get("name", "perfusion"))


def _kicker(record: RunRecord) -> list[str]:
    facts = [_now()]
    if (checked := record.metrics.get("validate")) is not None:
        facts.append(f"{number(checked['groups_in'], 0)} group records")
    if record.seconds:
        facts.append(f"{seconds(times_view(record)['total'])} of computing")
    return facts


def _merchants_sheet(record: RunRecord) -> str | None:
    """The sheet of one prompt for several merchants, which the evaluation drew."""
    file = record.picture_file("merchants_sheet.png")
    return data_uri(file) if file.exists() else None


def _curves(record: RunRecord) -> list[dict[str, str]]:
    drawings = []
    for run, table in record.curves():
        for metric in panels(table):
            values = table[metric].dropna()
            drawings.append(
                {
                    "run": run,
                    "metric": metric.replace("_", " "),
                    "svg": curve_svg(table, metric, salt=f"{run}-{metric}"),
                    "caption": f"from {number(values.iloc[0], 4)} to {number(values.iloc[-1], 4)}",
                }
            )
    return drawings


def _lineage(workspace: Workspace, record: RunRecord, serving: Mapping[str, int | None]) -> dict[str, Any]:
    """What made the run, as far as it was recorded."""
    run_id = (record.outcome or {}).get("run_id")
    known: dict[str, Any] = {"MLflow run": run_id or "none: the stages ran without the flow"}
    if run_id is not None and workspace.has_store:
        known["git commit"] = _commit(workspace, run_id)
    if workspace.verified_data.exists():
        known["data, content hash"] = json.loads(workspace.verified_data.read_text())["content_hash"]
    known |= {"data, as DVC knows it": record.data_digest or "not recorded", "seed": record.params.get("seed", 0)}
    return known | {f"champion {name}": version or "none" for name, version in serving.items()}


def _commit(workspace: Workspace, run_id: str) -> str:
    """The commit that the run was made with."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=workspace.tracking_uri)
    try:
        commit = client.get_run(run_id).data.tags.get("mlflow.source.git.commit", "not recorded")
    except MlflowException:
        return f"not recorded: the store at {workspace.tracking_uri} does not know the run"
    return str(commit)
