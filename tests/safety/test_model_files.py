"""Files of models that mean harm, in every place that reads one: refused by name, and nothing of theirs is run."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
import tiny_models
import torch
import yaml
from mlflow.exceptions import MlflowException

from perfusion.checkpoint import load_training_state
from perfusion.config import ClipConfig, ScorerWeights
from perfusion.data import FeatureEncoder
from perfusion.errors import WeightsError
from perfusion.generation import PerFusionPipeline
from perfusion.generation import load_backbone as load_diffusion
from perfusion.generation.backbone import load_unet
from perfusion.generation.pmg import keywords_by_model
from perfusion.reward import PerFusionRM, load_backbone, twin
from perfusion.scorers.aesthetic import load_head
from perfusion.scorers.weights import Source, locate, read_state
from tasks.quiet import QUIET

SOURCE = Source("evaluate.weights.hpsv2", "somebody/model", ("weights.safetensors", "weights.pt"))
READERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    # place that reads -> the folder it reads, the weights in it, the reader
    "reward model": ("reward", "model.safetensors", PerFusionRM.from_pretrained),
    "reward backbone": ("clip", "model.safetensors", load_backbone),
    "pipeline": ("generator", "unet/diffusion_pytorch_model.safetensors", PerFusionPipeline.from_pretrained),
    "diffusion backbone": ("generator", "unet/diffusion_pytorch_model.safetensors", load_diffusion),
    "U-Net": ("generator/unet", "diffusion_pytorch_model.safetensors", load_unet),
    "language model": ("clip", "model.safetensors", lambda folder: keywords_by_model(str(folder), {}, 3)),
}
HEADERS = {
    "nothing": b"",
    "a header longer than the file": struct.pack("<Q", 1 << 60) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 4) + b"xxxx",
    "a tensor beyond the end": (
        lambda text: struct.pack("<Q", len(text)) + text
    )(json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()),
}  # fmt: skip


class Trap:
    """Unpickled, it opens a file for writing: the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.canary), "w")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole tiny models: reward, clip, generator."""
    root = tmp_path_factory.mktemp("models")
    encoder = FeatureEncoder.fit(tiny_models.USERS)
    tiny_models.tiny_reward(root / "reward", encoder)
    tiny_models.tiny_generator(root / "generator", encoder)
    sizes = ClipConfig(width=16, layers=1, heads=2, patch=8, projection=8)
    twin(tiny_models.PROMPTS, 16, sizes).save(root / "clip")
    return root


@pytest.fixture
def copied(models: Path, tmp_path: Path) -> Callable[[str], tuple[Path, Path, Callable[[Path], object]]]:
    """A function that gives a reader's folder to be spoiled, its weights file and the reader."""

    def copy(reader: str) -> tuple[Path, Path, Callable[[Path], object]]:
        folder, weights, read = READERS[reader]
        place = Path(shutil.copytree(models / folder, tmp_path / "model"))
        return place, place / weights, read

    return copy


def trapped(path: Path, canary: Path, how: str) -> None:
    """A file that runs code when it is unpickled: as torch saves it, or a plain pickle."""
    if how == "torch":
        torch.save({"weight": Trap(canary)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Trap(canary)}, protocol=2))


def test_the_trap_works(tmp_path: Path, canary: Path) -> None:
    """Else nothing below would prove anything."""
    trapped(tmp_path / "x.pkl", canary, "pickle")
    pickle.loads((tmp_path / "x.pkl").read_bytes())["weight"].close()
    assert canary.exists()


@pytest.mark.parametrize("reader", [name for name in READERS if name != "language model"])
def test_whole_models_load(models: Path, reader: str) -> None:
    folder, _, read = READERS[reader]
    assert read(models / folder) is not None


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_in_place_of_weights_runs_nothing(copied, canary: Path, reader: str, how: str) -> None:
    folder, weights, read = copied(reader)
    weights.unlink()
    name = weights.name.replace("model.safetensors", "model.bin")
    trapped(weights.with_name("pytorch_model.bin" if name == "model.bin" else name), canary, how)
    with pytest.raises(WeightsError, match=str(folder)):
        read(folder)
    assert not canary.exists()


@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_under_the_name_of_safetensors_runs_nothing(copied, canary: Path, reader: str) -> None:
    folder, weights, read = copied(reader)
    trapped(weights, canary, "torch")
    with pytest.raises(WeightsError, match=str(folder)):
        read(folder)
    assert not canary.exists()


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("reader", ["reward model", "reward backbone", "pipeline", "U-Net"])
def test_a_bad_header_is_refused_by_name(copied, reader: str, header: str) -> None:
    folder, weights, read = copied(reader)
    weights.write_bytes(HEADERS[header])
    with pytest.raises(WeightsError, match=str(folder)):
        read(folder)


@pytest.mark.parametrize(
    ("suffix", "how"), [(".pt", "torch"), (".ckpt", "torch"), (".bin", "pickle"), (".pkl", "pickle")]
)
def test_single_files_run_nothing(tmp_path: Path, canary: Path, suffix: str, how: str) -> None:
    """A scorer's weights, an aesthetic head and a training state that was put in the place of ours."""
    file = tmp_path / f"weights{suffix}"
    trapped(file, canary, how)
    with pytest.raises(WeightsError, match=r"no weights that can be read safely.*download weights"):
        read_state(file, SOURCE)
    with pytest.raises(WeightsError, match="not the weights of an aesthetic head"):
        load_head(file)
    with pytest.raises(WeightsError, match=r"not a training state.*delete it"):
        load_training_state(file, "key")
    assert not canary.exists()


@pytest.mark.parametrize("header", HEADERS)
def test_a_scorers_bad_safetensors_are_refused_by_name(tmp_path: Path, header: str) -> None:
    (tmp_path / "weights.safetensors").write_bytes(HEADERS[header])
    with pytest.raises(WeightsError, match=r"weights.safetensors: no weights that can be read safely"):
        read_state(tmp_path / "weights.safetensors", SOURCE)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("reader", ["reward model", "reward backbone"])
def test_code_beside_a_model_is_not_run_and_nobody_is_asked(
    copied, canary: Path, reader: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks on the terminal whether to run such code; a `yes |` in front of a command would agree."""
    folder, _, read = copied(reader)
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass X: pass\n")
    classes = {"AutoTokenizer": ["evil.X", None], "AutoImageProcessor": "evil.X"}
    _change(folder / file, auto_map=classes, tokenizer_class="X", image_processor_type="X")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with suppress(WeightsError):  # where transformers has a class of its own it takes that one and goes on
        read(folder)
    assert not canary.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"unet": ["evil", "X"]},
        {"_class_name": ["evil", "X"]},
        {"unet": ["subprocess", "Popen"]},
        {"vae": ["../x", "X"]},
    ],
)
def test_a_pipelines_index_runs_no_code(copied, canary: Path, change: dict[str, list[str]]) -> None:
    folder, _, read = copied("pipeline")
    for place in (folder / "evil.py", folder / "unet" / "evil.py", folder.parent / "x.py"):
        place.write_text(f"open({str(canary)!r}, 'w')\nclass X: pass\n")
    _change(folder / "model_index.json", **change)
    with pytest.raises(WeightsError, match=str(folder)):
        read(folder)
    assert not canary.exists()


@pytest.mark.parametrize("reader", ["reward model", "reward backbone", "pipeline", "diffusion backbone", "U-Net"])
def test_a_link_out_of_a_model_folder_is_refused(copied, tmp_path: Path, reader: str) -> None:
    folder, weights, read = copied(reader)
    outside = tmp_path / "elsewhere.safetensors"
    weights.rename(outside)
    weights.symlink_to(outside)
    with pytest.raises(WeightsError, match=r"a link to .*elsewhere.safetensors, outside"):
        read(folder)


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/passwd", "a/b.safetensors"])
@pytest.mark.parametrize("reader", ["reward model", "pipeline", "U-Net"])
def test_an_index_of_shards_names_files_beside_it(copied, reader: str, shard: str) -> None:
    folder, weights, read = copied(reader)
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(WeightsError, match=r"names the shard .*beside the index"):
        read(folder)


def test_the_hubs_own_links_are_followed(models: Path, tmp_path: Path) -> None:
    """Its cache keeps files under their hashes in blobs/ and links to them from snapshots/REVISION/."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((models / "clip").iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert load_backbone(snapshot) is not None


def test_a_scorers_folder_keeps_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "scorer"
    folder.mkdir()
    (tmp_path / "elsewhere.pt").write_bytes(b"x")
    (folder / "weights.pt").symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(WeightsError, match=r"a link to .*elsewhere.pt, outside"):
        locate(ScorerWeights(path=str(folder)), SOURCE)


def _change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_pickled_model_of_mlflow_is_refused(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours are made from code; one that is not came from elsewhere. `perfusion` and `make` set the switches."""
    (tmp_path / "served.py").write_text(
        "from mlflow.models import set_model\nfrom mlflow.pyfunc import PythonModel\n"
        "class Echo(PythonModel):\n    def predict(self, context, model_input: list[str]):\n"
        "        return model_input\n"
        "set_model(Echo())\n"
    )
    mlflow.pyfunc.save_model(tmp_path / "model", python_model=str(tmp_path / "served.py"))
    description = tmp_path / "model" / "MLmodel"
    found = yaml.safe_load(description.read_text())
    flavor = found["flavors"]["python_function"]
    del flavor["model_code_path"]
    flavor |= {"python_model": "python_model.pkl", "cloudpickle_version": "3.1.2"}
    description.write_text(yaml.safe_dump(found))
    trapped(tmp_path / "model" / "python_model.pkl", canary, "pickle")
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MlflowException, match="pickle is disallowed"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert not canary.exists()
