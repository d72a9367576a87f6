"""Parameter files: each mistake is named with file, key, value and rule; nothing is taken in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from perfusion.config import Params, load_params
from perfusion.errors import ConfigError


@pytest.fixture
def mistake(tmp_path: Path) -> Callable[[str], str]:
    """The text of the error that a file with this content ends with, without the file's name."""

    def read(content: str) -> str:
        file = tmp_path / "mine.yaml"
        file.write_text(content)
        with pytest.raises(ConfigError) as caught:
            load_params(file)
        assert all(line.startswith(f"{file}: ") for line in str(caught.value).splitlines()[:1])
        return str(caught.value).replace(f"{file}: ", "")

    return read


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("dta: {}", "dta: unknown key; did you mean 'data'?"),
        ("data: {min_record: 5}", "data.min_record: unknown key; did you mean 'min_records'?"),
        ("data: {zzz: 5}", "data.zzz: unknown key; known keys: min_records, ratios"),
        (
            "reward: {optimiser: {steps: 9, lr: 0.1, beta: 1}}",
            "reward.optimiser.beta: unknown key; did you mean 'beta2'?",
        ),
        ("reward: {optimiser: {lr: 0.1}}", "reward.optimiser.steps: required key is missing"),
        ("data: {min_records: 0}", "data.min_records = 0: Input should be greater than or equal to 1"),
        ("data: {cold_users: 1.5}", "data.cold_users = 1.5: Input should be less than or equal to 1"),
        ("data: {max_image_pixels: 60000000}", "data.max_image_pixels = 60000000: Input should be less than"),
        ("data: {min_records: many}", "data.min_records = 'many': Input should be a valid integer"),
        ("reward: {optimiser: {steps: 9, lr: .inf}}", "reward.optimiser.lr = inf: Input should be a finite number"),
        ("reward: {optimiser: {steps: 9, lr: .nan}}", "reward.optimiser.lr = nan: Input should be"),
        ("reward: {variant: fuller}", "reward.variant = 'fuller': Input should be 'full', 'shared'"),
        ("name: My Model", "name = 'My Model': String should match pattern"),
        ("data: 3", "data = 3: Input should be a valid dictionary"),
        ("data:", "data = None: Input should be a valid dictionary"),
        ("[1, 2]", "the file = [1, 2]: Input should be a valid dictionary"),
        ("data: {ratios: [0, 1, 1]}", "data.ratios (0, 1, 1): need a training share above 0"),
        ("data: {ratios: [8, 1]}", "data.ratios.2: required key is missing"),
        ("seed: 1\nname: a\nseed: 2", "not valid YAML: key 'seed' stands twice"),
        ("data: {min_records: 5, min_records: 6}", "not valid YAML: key 'min_records' stands twice"),
        ("data: [", "not valid YAML"),
        ("seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_mistake_is_named(mistake: Callable[[str], str], content: str, told: str) -> None:
    assert mistake(content).startswith(told)


def test_every_mistake_is_named_at_once_and_on_one_line_each(mistake: Callable[[str], str]) -> None:
    lines = mistake(f"seed: {'x' * 500}\ndta: {{}}\ndata: {{min_records: 0, cold_users: 2}}").splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) < 200


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such parameter file; shipped ones are"):
        load_params(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not a readable parameter file"):
        load_params(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfeseed")
    with pytest.raises(ConfigError, match="not a readable parameter file"):
        load_params(tmp_path / "binary.yaml")


def test_an_empty_file_is_all_defaults_and_a_value_overrides_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# nothing\n")
    assert load_params(tmp_path / "mine.yaml") == Params()
    (tmp_path / "mine.yaml").write_text("data: {min_records: 3}\n")
    changed = load_params(tmp_path / "mine.yaml")
    assert changed.data == Params().data.model_copy(update={"min_records": 3})
    assert changed.model_copy(update={"data": Params().data}) == Params()


def test_parameters_are_frozen() -> None:
    for section, name in ((Params(), "seed"), (Params().data, "min_records")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 3)
