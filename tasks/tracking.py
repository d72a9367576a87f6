"""What MLflow remembers of a flow run: a parent run, a run per trained model with live curves, and the evidence.

Stages know nothing of MLflow: they write logs, and a follower here reads along. A cached stage is told of as well, from
the log and the metrics of the run that did the work, and its run says so (tag `cached`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from perfusion.config import Params
from perfusion.governance import Decision, lineage_record
from tasks.livelog import LogTail
from tasks.store import is_server
from tasks.workspace import REPOSITORY, Workspace

__all__ = ["FlowRecord", "experiment_of", "flow_record", "metric_key", "open_store", "source_state", "store_failure"]

BATCH = 900  # MLflow takes at most 1000 metrics at once
POLL_SECONDS = 1.0
CODE = ("perfusion", "tasks", "flows")
Progress = Callable[[str, int, int], None]


def open_store(workspace: Workspace) -> MlflowClient:
    """The store's client; makes the store when it does not exist, and makes it MLflow's default in this process."""
    if not is_server(workspace.tracking_uri):
        workspace.mlruns.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(workspace.tracking_uri)
    mlflow.set_registry_uri(workspace.tracking_uri)
    return MlflowClient(tracking_uri=workspace.tracking_uri, registry_uri=workspace.tracking_uri)


def store_failure(error: Exception) -> str | None:
    """What to tell of an error that means that the store cannot be used now; None for any other error."""
    if not isinstance(error, MlflowException):
        return None
    unanswered = error.message.startswith("API request to ")  # what MLflow says when all its tries met no server
    if error.error_code != "TEMPORARILY_UNAVAILABLE" and not unanswered:
        return None
    return (
        f"MLflow's store cannot be used: {error.message.strip().splitlines()[0]}\n"
        "remedy: see that its server or database is there, that its disk has space and that nobody holds a lock on it; "
        "then run again, what has finished is kept"
    )


@contextmanager
def flow_record(workspace: Workspace, params: Params, tags: Mapping[str, str]) -> Iterator[FlowRecord]:
    """The MLflow run of one flow run, with system metrics; ends FAILED when the block raises."""
    client = open_store(workspace)
    experiment = experiment_of(client, workspace, params.name)
    _close_forsaken(client, experiment, workspace)
    source = source_state(REPOSITORY)
    run = client.create_run(
        experiment,
        run_name=time.strftime("%Y-%m-%d %H:%M:%S"),
        tags={
            "mlflow.source.name": "make retrain",
            "mlflow.source.type": "PROJECT",
            "mlflow.source.git.commit": source["commit"],
            "workspace": str(workspace.root),
            "machine": socket.gethostname(),
            **tags,
        },
    )
    record = FlowRecord(client, experiment, run.info.run_id, workspace, params)
    monitor = SystemMetricsMonitor(
        run.info.run_id, sampling_interval=10, resume_logging=False, tracking_uri=workspace.tracking_uri
    )
    monitor.start()
    try:
        record.configuration(source)
        yield record
    except BaseException:
        record.end("FAILED")
        raise
    else:
        record.end("FINISHED")
    finally:
        monitor.finish()


def _close_forsaken(client: MlflowClient, experiment: str, workspace: Workspace) -> None:
    """End the runs that a killed process left open: whoever holds the workspace knows that nobody writes them now.

    On a shared server another machine's workspace may bear the same path; its runs are its own.
    """
    running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    here = (str(workspace.root), socket.gethostname())
    told = ((run.info.run_id, run.data.tags) for run in running)
    own = {run_id for run_id, tags in told if (tags.get("workspace"), tags.get("machine")) == here}
    for run in running:
        if {run.info.run_id, run.data.tags.get(MLFLOW_PARENT_RUN_ID)} & own:
            client.set_terminated(run.info.run_id, "KILLED")


class FlowRecord:
    """Writes one flow run into the store."""

    def __init__(
        self, client: MlflowClient, experiment: str, run_id: str, workspace: Workspace, params: Params
    ) -> None:  # fmt: skip
        self.client = client
        self.experiment = experiment
        self.run_id = run_id
        self.workspace = workspace
        self.params = params
        self.runs: dict[str, str] = {}  # trained model -> its nested run
        self.stages: dict[str, str] = {}  # trained model -> the stage that trains it
        self.source: Mapping[str, str] = {}  # what `source_state` said when the run began

    def configuration(self, source: Mapping[str, str]) -> None:
        """Parameters, and what is needed to get exactly this code and pipeline again."""
        self.source = source
        values = _flat(self.params.model_dump(mode="json"))
        self.client.log_batch(self.run_id, params=[Param(name, str(value)) for name, value in values.items()])
        self.client.log_text(self.run_id, json.dumps(self.params.model_dump(mode="json"), indent=2), "resolved.json")
        self.client.log_text(self.run_id, source["diff"], "git.diff")
        self.client.log_text(self.run_id, json.dumps(_machine(), indent=2), "machine.json")

    def dataset(self, digest: str, counts: Mapping[str, Any]) -> None:
        """The dataset trained on, by its canonical content hash."""
        location = str(self.workspace.data.resolve())
        entity = Dataset(
            name=location.rsplit("/", 1)[-1], digest=digest[:36], source_type="local",
            source=json.dumps({"uri": location}), profile=json.dumps(dict(counts)),
        )  # fmt: skip
        context = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(self.run_id, [DatasetInput(entity, context)])

    @contextmanager
    def following(self, stage: str, progress: Progress | None = None) -> Iterator[None]:
        """Read the stage's log along while the block runs it; what it wrote is in the store when the block ends."""
        follower = _Follower(self, stage, progress)
        follower.start()
        try:
            yield
        finally:
            follower.finish()

    def stage(self, stage: str, cached: bool, seconds: float) -> None:
        """A stage that ended well: its metrics; where it was cached, also what its log tells."""
        if cached:
            _Follower(self, stage, None).replay()
        record = json.loads(self.workspace.metrics(stage).read_text())
        metrics = _numbers(record)
        self.log_metrics(self.run_id, {f"{stage}/{name}": value for name, value in metrics.items()})
        self.log_metrics(self.run_id, {f"seconds/{stage}": seconds})
        self.client.set_tag(self.run_id, f"cached.{stage}", str(cached).lower())
        for model in [model for model, its_stage in self.stages.items() if its_stage == stage]:
            own = _numbers(record[model]) if isinstance(record.get(model), dict) else metrics
            self.log_metrics(self.runs[model], {f"final/{name}": value for name, value in own.items()})
            self.client.set_tag(self.runs[model], "cached", str(cached).lower())
            self.client.set_terminated(self.runs[model])

    def model_run(self, model: str, stage: str) -> str:
        """The nested run of a model that `stage` trains, made on first use."""
        if model not in self.runs:
            tags = {MLFLOW_PARENT_RUN_ID: self.run_id, "model": model, "stage": stage}
            run = self.client.create_run(self.experiment, run_name=model, tags=tags)
            self.runs[model], self.stages[model] = run.info.run_id, stage
            section = _flat(self.params.model_dump(mode="json").get(model, {}))
            values = [Param(name, str(value)) for name, value in section.items()]
            self.client.log_batch(run.info.run_id, params=[*values, Param("seed", str(self.params.seed))])
        return self.runs[model]

    def decision(self, decision: Decision, asked_in: str | None) -> None:
        """A gate's verdict with what it rests on, for people as text and for tools as the whole record.

        Args:
            decision: of the gate.
            asked_in: the run in which it was asked: this one, or an earlier one of the same models.
        """
        gate, record = decision.gate, {**decision.to_dict(), "run_id": asked_in}
        self.client.set_tag(self.run_id, f"gate.{gate}", decision.verdict)
        self.client.log_text(self.run_id, "\n".join([decision.verdict, *decision.reasons]) + "\n", f"gates/{gate}.txt")
        self.client.log_text(self.run_id, json.dumps(record, indent=1, allow_nan=False), f"gates/{gate}.json")
        numbers = _numbers(decision.statistics)
        self.log_metrics(self.run_id, {f"gate_{gate}/{name}": value for name, value in numbers.items()})

    def origin(self, content_hash: str) -> None:
        """What `perfusion restore` needs, before any version of this run can be promoted.

        Args:
            content_hash: of the dataset, canonical.
        """
        paths = self.workspace
        lock, params = yaml.safe_load(paths.dvc_lock.read_text()), self.params.model_dump(mode="json")
        lineage = lineage_record(
            dataset_digest=content_hash, params=params, code_sha=self.source["commit"],
            code_dirty=bool(self.source["diff"]), lock=lock, versions=_machine()["libraries"],
        )  # fmt: skip
        self.client.log_text(self.run_id, json.dumps(lineage, indent=2), "lineage.json")
        self._log_files(paths.dvc_yaml, paths.dvc_lock, paths.params_file, paths.data_dvc)

    def _log_files(self, *files: Path) -> None:
        for file in files:
            if file.exists():
                self.client.log_artifact(self.run_id, str(file))

    def evidence(self) -> None:
        """Everything needed to judge or restore this run, in the layout of a workspace's work folder."""
        paths = self.workspace
        self._log_files(paths.dvc_yaml, paths.dvc_lock, paths.params_file, paths.data_dvc, paths.outcome)
        for folder in ("metrics", "logs", "evaluation", "report", "quarantine", "snapshot"):
            if (paths.work / folder).is_dir():
                self.client.log_artifacts(self.run_id, str(paths.work / folder), folder)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Numbers of one moment."""
        now = int(time.time() * 1000)
        self.log_points(run_id, [Metric(metric_key(name), value, now, step) for name, value in metrics.items()])

    def log_points(self, run_id: str, points: list[Metric]) -> None:
        """Points of curves, in as few writes as MLflow allows."""
        for start in range(0, len(points), BATCH):
            self.client.log_batch(run_id, metrics=points[start : start + BATCH])

    def tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the flow's own run."""
        self.client.log_batch(self.run_id, tags=[RunTag(name, value[:4999]) for name, value in tags.items()])

    def end(self, status: str) -> None:
        """Close the flow's run, and nested runs that a failure left open."""
        for run_id in [*self.runs.values(), self.run_id]:
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_terminated(run_id, status)


class _Follower:
    """Carries a stage's log into the store as it grows."""

    def __init__(self, record: FlowRecord, stage: str, progress: Progress | None) -> None:
        self._record = record
        self._stage = stage
        self._tail = LogTail(record.workspace.log(stage))
        self._progress = progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"follow-{stage}", daemon=True)
        self._error: Exception | None = None

    def start(self) -> None:
        """Begin at the log's present end: what stands there is of an earlier run, until the stage begins it anew."""
        self._tail.poll()
        self._thread.start()

    def finish(self) -> None:
        """Read what is left and stop; an error met on the way is raised here."""
        self._ended.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def replay(self) -> None:
        """Carry over a whole log at once."""
        self._carry(self._tail.poll())

    def _follow(self) -> None:
        try:
            while not self._ended.wait(POLL_SECONDS):
                self._carry(self._tail.poll())
            self._carry(self._tail.poll())
        except Exception as error:  # raised in `finish`, on the thread that can tell of it
            self._error = error

    def _carry(self, records: list[dict[str, Any]]) -> None:
        points: dict[str, list[Metric]] = {}
        latest: dict[str, tuple[int, int]] = {}
        for entry in records:
            if "metrics" in entry:
                model, _, part = entry["run"].partition("-")
                moment, step = int(entry["time"] * 1000), int(entry["step"])
                points.setdefault(model, []).extend(
                    Metric(metric_key(f"{part}/{name}" if part else name), float(value), moment, step)
                    for name, value in entry["metrics"].items()
                )
                latest[entry["run"]] = (step, int(entry["of"]))
            elif "image" in entry:
                self._picture(entry)
        for model, metrics in points.items():
            self._record.log_points(self._record.model_run(model, self._stage), metrics)
        for run, (step, of) in latest.items():
            if self._progress is not None:
                self._progress(run, step, of)

    def _picture(self, entry: Mapping[str, Any]) -> None:
        from PIL import Image

        file = self._record.workspace.root / entry["image"]
        if file.exists():  # a resumed run's log may name pictures that were cleaned away
            run_id = self._record.model_run(entry["run"].partition("-")[0], self._stage)
            with Image.open(file) as picture:
                self._record.client.log_image(run_id, picture, key=metric_key(entry["name"]), step=int(entry["step"]))


def source_state(repository: Path) -> dict[str, str]:
    """The commit, and the difference of the working tree to it as a patch; "unknown" and "" outside git.

    Code that was not added to git yet is part of the patch; other unknown files (notes, secrets) are not.
    """

    def git(*arguments: str, index: Path | None = None) -> str | None:
        environment = {**os.environ, **({"GIT_INDEX_FILE": str(index)} if index is not None else {})}
        try:
            done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, env=environment)
        except FileNotFoundError:
            return None
        return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": "unknown", "diff": ""}
    with TemporaryDirectory(prefix="perfusion-git-") as folder:
        index = Path(folder) / "index"  # a copy, so that the user's own stays as it is
        # with its time, by which git knows that a file as old as the index may have changed since
        shutil.copy2(repository / (git("rev-parse", "--git-path", "index") or "").strip(), index)
        code = [folder for folder in CODE if (repository / folder).is_dir()]  # git adds nothing when one is not there
        git("add", "--intent-to-add", "--", *code, index=index)
        plain = ("--binary", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv")  # as `git apply` takes it
        return {"commit": commit.strip(), "diff": git("diff", "HEAD", *plain, index=index) or ""}


def _machine() -> dict[str, Any]:
    """What the numbers were computed on."""
    libraries = ("torch", "diffusers", "transformers", "numpy", "pandas", "pyarrow", "pillow")
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "libraries": {name: version(name) for name in libraries},
    }


def experiment_of(client: MlflowClient, workspace: Workspace, name: str) -> str:
    """The experiment of that name, made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    if is_server(workspace.tracking_uri):
        return str(client.create_experiment(name))  # the server knows where its artifacts go
    folder = workspace.mlruns.resolve() / "artifacts" / name
    return str(client.create_experiment(name, artifact_location=folder.as_uri()))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among nested metrics; truth values, texts and lists are no metrics."""
    return {
        name: float(value)
        for name, value in _flat(values).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def metric_key(name: str) -> str:
    """A name that MLflow takes: letters, digits and _ - . / and space."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)
