"""The manifests for Kubernetes parse, name what exists, pin what they run, and are what Prefect's worker accepts."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from typing import Any

import imports
import pytest
import yaml

from tasks.launching import SHARED

FOLDER = imports.REPOSITORY / "deploy" / "kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
PINNED = re.compile(r"^[\w./-]+:\d[\w.-]*$")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def found(value: Any, key: str) -> list[Any]:
    """Every value under a key, anywhere."""
    if isinstance(value, dict):
        return [v for k, v in value.items() if k == key] + [hit for v in value.values() for hit in found(v, key)]
    return [hit for item in value for hit in found(item, key)] if isinstance(value, list) else []


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_manifest_is_whole_and_pinned(file: Any) -> None:
    for document in documents(file.name):
        assert {"apiVersion", "kind", "metadata", "spec"} <= document.keys()
        assert all(PINNED.match(image) for image in found(document, "image")), "an image without a version"
        claims = [claim["claimName"] for claim in found(document, "persistentVolumeClaim")]
        assert set(claims) <= {documents("storage.yaml")[0]["metadata"]["name"]}
        for pod in found(document, "template"):
            mounted = {mount["name"] for mounts in found(pod, "volumeMounts") for mount in mounts}
            assert mounted == {volume["name"] for volumes in found(pod, "volumes") for volume in volumes}


def test_selectors_find_their_pods() -> None:
    service, job = documents("training.yaml")
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    dask, *deployments = documents("dask.yaml")
    labels = [deployment["spec"]["template"]["metadata"]["labels"] for deployment in deployments]
    assert dask["spec"]["selector"] in labels
    assert [deployment["spec"]["selector"]["matchLabels"] for deployment in deployments] == labels


def test_the_shared_training_is_a_stage_and_its_numbers_agree() -> None:
    service, job = documents("training.yaml")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    words = shlex.split(container["args"][0])
    said = dict(pairwise(words))
    machines, gpus = job["spec"]["completions"], container["resources"]["limits"]["nvidia.com/gpu"]
    assert job["spec"]["parallelism"] == machines == int(said["--num_machines"])
    assert int(said["--num_processes"]) == machines * gpus
    assert said["--main_process_ip"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert said["-m"] == "tasks.stages"
    assert words[-1] in SHARED


def test_launchers_options_are_accelerates() -> None:
    from accelerate.commands.launch import launch_command_parser

    container = documents("training.yaml")[1]["spec"]["template"]["spec"]["containers"][0]
    words = shlex.split(container["args"][0].replace("$JOB_COMPLETION_INDEX", "1"))
    options = launch_command_parser().parse_args(words[words.index("launch") + 1 :])
    assert (options.num_machines, options.num_processes, options.machine_rank) == (2, 16, 1)
    assert (options.module, options.training_script, options.training_script_args) == (
        True, "tasks.stages", ["generator"]
    )  # fmt: skip


def test_the_work_pool_uses_the_variables_it_defines_and_has_what_prefect_asks_for() -> None:
    template = json.loads((FOLDER / "work-pool.json").read_text())
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert used == template["variables"]["properties"].keys()
    manifest = template["job_configuration"]["job_manifest"]
    pod = manifest["spec"]["template"]["spec"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    assert {"annotations", "labels"} <= manifest["metadata"].keys()
    assert (pod["parallelism"], pod["completions"], pod["restartPolicy"]) == (1, 1, "Never")
    assert pod["containers"][0]["name"] == "prefect-job"
    deployment = yaml.safe_load((imports.REPOSITORY / "prefect.yaml").read_text())["deployments"][0]
    assert deployment["work_pool"]["name"] == "perfusion"
