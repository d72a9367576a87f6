"""A dataset described: distributions equal to plain counting, charts that are pictures, one page that stands alone."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from perfusion.data.charts import bar_chart
from perfusion.data.layout import GROUP_SCHEMA, write_rows
from perfusion.data.portrait import distributions, draw_distributions, write_description
from perfusion.data.prompts import phrases


@pytest.fixture
def groups(tmp_path):
    """300 records of 40 users; the first place is picked twice as often as the others."""
    random = np.random.default_rng(0)
    words = ["dress", "v-neck", "slim-fit", "long $leeve", "red"]
    rows = []
    for number in range(300):
        size = int(random.integers(2, 6))
        weights = np.r_[2.0, np.ones(size - 1)]
        pick = int(random.choice(size, p=weights / weights.sum()))
        prompt = ", ".join(random.choice(words, random.integers(1, 5))) + (",  ," if number % 3 else "")
        rows.append(
            {"record_id": f"r{number}", "user_id": f"u{random.integers(40)}", "created_at": None, "prompt": prompt,
             "image_ids": [f"i{number}-{n}" for n in range(size)], "picked": [n == pick for n in range(size)]}
        )  # fmt: skip
    rows.append({**rows[0], "record_id": "lacking", "prompt": None})
    path = tmp_path / "groups.parquet"
    write_rows(path, GROUP_SCHEMA, [pa.Table.from_pylist(rows, schema=GROUP_SCHEMA)])
    return path, pd.DataFrame(rows[:-1])


def counts(values) -> list[list[int]]:
    return [[value, count] for value, count in sorted(Counter(values).items())]


def test_distributions_are_those_of_plain_counting(groups):
    path, rows = groups
    found = distributions(path, top=3)
    assert found["records_per_user"]["counts"] == counts(rows["user_id"].value_counts())
    assert found["group_size"]["counts"] == counts(rows["image_ids"].str.len())
    assert found["picked"]["counts"] == [[1, 300]]
    assert found["prompt_characters"]["counts"] == counts(rows["prompt"].str.len())
    assert found["prompt_phrases"]["counts"] == counts(len(phrases(prompt)) for prompt in rows["prompt"])
    own = Counter(phrase for prompt in rows["prompt"] for phrase in set(phrases(prompt)))
    assert found["top_phrases"] == [
        list(item) for item in sorted(own.items(), key=lambda item: (-item[1], item[0]))[:3]
    ]
    per_user = rows["user_id"].value_counts()
    assert found["records_per_user"]["median"] == int(np.quantile(per_user, 0.5, method="inverted_cdf"))
    assert (found["records_per_user"]["least"], found["records_per_user"]["most"]) == (per_user.min(), per_user.max())


def test_a_preferred_place_shows(groups):
    path, rows = groups
    positions = distributions(path)["positions"]
    assert [row["position"] for row in positions] == [1, 2, 3, 4, 5]
    assert positions[0]["records"] == 300
    third = rows[rows["picked"].str.len() >= 3]
    assert positions[2]["records"] == len(third)
    assert positions[2]["picked"] == pytest.approx(third["picked"].str[2].mean())
    assert positions[2]["expected"] == pytest.approx((1 / third["picked"].str.len()).mean())
    assert positions[0]["picked"] > 1.3 * positions[0]["expected"]
    assert positions[1]["picked"] < positions[1]["expected"]


def test_the_page_stands_alone_and_the_charts_are_pictures(groups, tmp_path):
    path, _ = groups
    found = distributions(path)
    facts = {"users": 40, "group_size": {"2": 7, "5": 293},
             "user_features": {"style": {"kind": "str", "values": 3, "missing": 1}}}  # fmt: skip
    page = write_description(tmp_path / "out", "<shop> & co", facts, found)
    text = page.read_text()
    assert "2: 7, 5: 293" in text
    assert "<td>style</td><td>str</td><td>3 values</td>" in text
    assert "&lt;shop&gt; &amp; co" in text
    assert text.count("data:image/png;base64,") == len(draw_distributions(found)) == 7
    assert "http" not in text
    for name in draw_distributions(found):
        with Image.open(tmp_path / "out" / name) as chart:
            assert chart.format == "PNG"
            assert np.asarray(chart.convert("L")).std() > 5
    assert json.loads((tmp_path / "out" / "describe.json").read_text())["distributions"] == found


def test_nothing_and_very_much_can_be_drawn(tmp_path):
    """No record at all, one record, and prompts of 10 kB beside short ones."""
    path = tmp_path / "groups.parquet"
    for prompts in ([], ["x"], ["x", "y" * 10_240, "long, " * 1000]):
        rows = [
            {"record_id": str(n), "user_id": "u", "created_at": None, "prompt": prompt, "image_ids": ["a", "b"],
             "picked": [True, False]}
            for n, prompt in enumerate(prompts)
        ]  # fmt: skip
        write_rows(path, GROUP_SCHEMA, [pa.Table.from_pylist(rows, schema=GROUP_SCHEMA)])
        found = distributions(path)
        assert sum(count for _, count in found["group_size"]["counts"]) == len(prompts)
        assert len(draw_distributions(found)) == 7


def test_what_has_no_value_leaves_a_gap():
    nan = float("nan")
    chart = bar_chart("t", ["a", "b"], [nan, 1.0], intervals=[None, (0.5, 1.5)], marks=("m", [0.3, nan]), flat=True)
    assert Image.open(io.BytesIO(chart)).format == "PNG"
