"""The rules of the layout as Great Expectations suites, and how their failures become quarantine entries.

Great Expectations (1.24) judges frames of plain columns: one row a user, a feature of a user, a
group, a candidate or a stored picture. Each
rule carries a remedy. Three of its habits are answered here: an empty frame passes every rule (callers refuse empty
tables before), a missing column fails without saying which rows (raised as an error), `mostly` hides bad rows (unused).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pandas as pd

from perfusion.config import DataConfig
from tasks.validation_columns import as_text

__all__ = [
    "Failures", "Rule", "candidate_rules", "feature_rules", "group_rules", "judge", "picture_rules", "user_rules",
]  # fmt: skip

ID_CHARS = 200
FEATURE_CHARS = 200
# The same ids as `perfusion.data.is_safe_id` allows.
SAFE_ID = r"^(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}\Z"
EARLIEST = datetime(2000, 1, 1)


@dataclass(frozen=True)
class Rule:
    """One rule over the rows of one frame.

    Attributes:
        name: short and stable; quarantine files and reports carry it.
        says: the rule in words.
        remedy: what the owner of the data can do.
        expectation: class name in `great_expectations.expectations`.
        kwargs: its arguments; `column` or the columns it looks at.
        shown: the column whose value is reported for a failing row.
        after: rules whose failing rows this one leaves alone, because there it could only repeat them.
        about: the column whose value is told before it; "" tells none.
    """

    name: str
    says: str
    remedy: str
    expectation: str
    kwargs: dict[str, Any]
    shown: str
    after: tuple[str, ...] = ()
    about: str = ""


@dataclass(frozen=True)
class Failures:
    """How one rule fared: rows judged, and the failing rows' labels with the value that failed."""

    rule: Rule
    checked: int
    failed: dict[Any, str]


def user_rules() -> list[Rule]:
    """Rules over users, but for their features."""
    return [*_id_rules("user_id", "users"), *_copy_rules("user_id", "user")]


def feature_rules() -> list[Rule]:
    """Rules over single features of users, of `validation_facts.feature_facts`."""
    return [
        replace(_readable("text", "text in UTF-8"), name="feature_readable", says="a feature reads as text in UTF-8",
                about="feature"),
        Rule(
            "feature_length", f"a feature has at most {FEATURE_CHARS} characters",
            "a category is a short name; shorten it, or leave the column out of users.parquet",
            "ExpectColumnValueLengthsToBeBetween", {"column": "text", "max_value": FEATURE_CHARS}, "text",
            about="feature",
        ),
        Rule(
            "feature_finite", "a feature is a finite number or empty",
            "write an empty value where the number is not known",
            "ExpectColumnValuesToBeBetween",
            {"column": "number", "min_value": -sys.float_info.max, "max_value": sys.float_info.max}, "number",
            about="feature",
        ),
    ]  # fmt: skip


def group_rules(config: DataConfig, latest: datetime) -> list[Rule]:
    """Rules over whole groups; `latest` is the last date a record may carry."""
    return [
        *_id_rules("record_id", "groups"),
        *_copy_rules("record_id", "record"),
        *_id_rules("user_id", "groups"),
        Rule(
            "user_known", "the group's user is in users.parquet", "add the user, or correct the group's user_id",
            "ExpectColumnValuesToNotBeInSet", {"column": "user_state", "value_set": ["absent"]}, "user_id",
        ),
        Rule(
            "user_valid", "the group's user passed the rules for users", "mend the user (see quarantine/users.parquet)",
            "ExpectColumnValuesToNotBeInSet", {"column": "user_state", "value_set": ["quarantined"]}, "user_id",
        ),
        _readable("created_at", "a date and time"),
        _present("created_at", ("created_at_readable",)),
        Rule(
            "created_at_range", f"the date lies between {EARLIEST:%Y-%m-%d} and {latest:%Y-%m-%d}",
            "correct the clock or the unit (seconds read as milliseconds?) of what wrote the record",
            "ExpectColumnValuesToBeBetween",
            {"column": "created_at", "min_value": EARLIEST, "max_value": latest}, "created_at",
        ),
        _readable("prompt", "text in UTF-8"),
        _present("prompt", ("prompt_readable",)),
        Rule(
            "prompt_words", "the prompt has a letter or a digit", "a group without a prompt cannot be trained on",
            "ExpectColumnValuesToMatchRegex", {"column": "prompt", "regex": r"[^\W_]"}, "prompt",
        ),
        Rule(
            "prompt_length", f"the prompt has at most {config.max_prompt_chars} characters",
            "shorten it, or raise data.max_prompt_chars",
            "ExpectColumnValueLengthsToBeBetween", {"column": "prompt", "max_value": config.max_prompt_chars}, "prompt",
        ),
        _readable("image_ids", "a list of picture ids"),
        _present("image_ids", ("image_ids_readable",)),
        Rule(
            "candidates", f"the group has 1 to {config.max_group_size} candidates",
            "leave out empty groups; for larger ones raise data.max_group_size",
            "ExpectColumnValuesToBeBetween",
            {"column": "candidates", "min_value": 1, "max_value": config.max_group_size}, "candidates",
        ),
        _readable("picked", "a list of booleans (or 0 and 1)"),
        _present("picked", ("picked_readable",)),
        Rule(
            "picked_complete", "every candidate says whether it was picked", "write true or false for each candidate",
            "ExpectColumnValuesToBeInSet", {"column": "picked_gaps", "value_set": [0]}, "picked",
        ),
        Rule(
            "picked_length", "picked and image_ids have the same length", "write one true or false a candidate",
            "ExpectColumnPairValuesToBeEqual",
            {"column_A": "picks", "column_B": "candidates", "ignore_row_if": "either_value_is_missing"}, "lengths",
        ),
    ]  # fmt: skip


def candidate_rules() -> list[Rule]:
    """Rules over single candidates; `image_state` tells what became of the picture."""

    def state(name: str, says: str, remedy: str, refused: str) -> Rule:
        kwargs = {"column": "image_state", "value_set": [refused]}
        return Rule(name, says, remedy, "ExpectColumnValuesToNotBeInSet", kwargs, "shown")

    return [
        Rule(
            "image_id_present", "every candidate names a picture", "write the picture's id, or leave the candidate out",
            "ExpectColumnValuesToNotBeNull", {"column": "image_id"}, "shown",
        ),
        Rule(
            "image_once", "a picture occurs once in a group", "leave out the repetition, with its pick",
            "ExpectCompoundColumnsToBeUnique",
            {"column_list": ["group", "image_id"], "ignore_row_if": "any_value_is_missing"}, "shown",
        ),
        state("image_stored", "every picture of the group is stored in images/", "add it to a part file", "absent"),
        state("image_readable", "every picture of the group can be decoded", "store the picture again", "unreadable"),
        state(
            "image_unambiguous", "no picture id of the group stands for two different pictures",
            "give each picture its own id", "ambiguous",
        ),
    ]  # fmt: skip


def picture_rules(config: DataConfig) -> list[Rule]:
    """Rules over stored pictures."""
    return [
        *_id_rules("image_id", "images/part-*"),
        Rule(
            "image_id_safe", "a picture's id can be a file name: letters, digits, '_', '-', '.', no '..'",
            "rename the picture, in its groups too",
            "ExpectColumnValuesToMatchRegex", {"column": "image_id", "regex": SAFE_ID}, "image_id",
        ),
        *_copy_rules("image_id", "image"),
        Rule(
            "image_bytes", "a stored picture has bytes", "store the picture again",
            "ExpectColumnValuesToBeBetween", {"column": "size", "min_value": 1}, "size",
        ),
        Rule(
            "image_decodes", f"a picture decodes and has at most {config.max_image_pixels} pixels",
            "store the picture again as PNG, JPEG or WebP; for larger ones raise data.max_image_pixels",
            "ExpectColumnValuesToBeNull", {"column": "fault"}, "fault",
        ),
    ]  # fmt: skip


def judge(frame: pd.DataFrame, rules: Sequence[Rule]) -> list[Failures]:
    """Run the rules over the frame as one Great Expectations suite.

    Args:
        frame: a column for each the rules look at; a cell that is None is judged by presence rules only. Its index
            labels the rows.
        rules: with distinct (name, column).

    Raises:
        RuntimeError: Great Expectations could not evaluate a rule: a defect of this program, not of the data.
    """
    gx = _great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("perfusion").add_dataframe_asset("table")
    expectations = [
        getattr(gx.expectations, rule.expectation)(**rule.kwargs, meta={"rule": number})
        for number, rule in enumerate(rules)
    ]
    batch = source.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame.reset_index(drop=True)})
    outcome = batch.validate(
        gx.ExpectationSuite(name="layout", expectations=expectations),
        result_format={"result_format": "COMPLETE", "include_unexpected_rows": False},
    )
    results = {result.expectation_config.meta["rule"]: result for result in outcome.results}
    found: list[Failures] = []
    for number, rule in enumerate(rules):
        found.append(_failures(frame, rule, results[number], found))
    return found


def _failures(frame: pd.DataFrame, rule: Rule, result: Any, before: Sequence[Failures]) -> Failures:
    detail = result.result
    if "unexpected_index_list" not in detail:
        raise RuntimeError(f"rule {rule.name}: Great Expectations could not evaluate it: {result.exception_info}")
    settled = {label for other in before if other.rule.name in rule.after for label in other.failed}
    labels = [frame.index[position] for position in detail["unexpected_index_list"]]
    failed = {label: _shown(frame, rule, label) for label in labels if label not in settled}
    checked = detail["element_count"] - detail.get("missing_count", 0)
    return Failures(rule, checked, failed)


def _shown(frame: pd.DataFrame, rule: Rule, label: Any) -> str:
    about = f"{frame.at[label, rule.about]}: " if rule.about else ""
    return about + as_text(frame.at[label, rule.shown])


def _great_expectations() -> Any:
    """The library, imported on first use (3 s); its import warns of a deprecated module of Python's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations
    return great_expectations


def _present(column: str, after: tuple[str, ...] = ()) -> Rule:
    return Rule(
        f"{column}_present", f"{column} is not empty", "fill it in, or leave the row out",
        "ExpectColumnValuesToNotBeNull", {"column": column}, column, after,
    )  # fmt: skip


def _readable(column: str, needs: str) -> Rule:
    """The reader set aside the cells it could not read, in a column of their own."""
    return Rule(
        f"{column}_readable", f"{column} reads as {needs}", f"write {needs}",
        "ExpectColumnValuesToBeNull", {"column": f"{column} unread"}, f"{column} unread",
    )  # fmt: skip


def _id_rules(column: str, where: str) -> list[Rule]:
    return [
        _readable(column, "text in UTF-8"),
        _present(column, (f"{column}_readable",)),
        Rule(
            f"{column}_length", f"{column} has at most {ID_CHARS} characters", f"shorten the ids in {where}.parquet",
            "ExpectColumnValueLengthsToBeBetween", {"column": column, "max_value": ID_CHARS}, column,
        ),
        Rule(
            f"{column}_characters", f"{column} has no control characters", f"correct the ids in {where}.parquet",
            "ExpectColumnValuesToMatchRegex", {"column": column, "regex": r"^[^\x00-\x1f\x7f]*\Z"}, column,
        ),
    ]  # fmt: skip


def _copy_rules(column: str, what: str) -> list[Rule]:
    """A row delivered twice is set aside once; rows that share an id and differ are all set aside."""
    return [
        Rule(
            f"{what}_repeated", "no row repeats an earlier one", "leave out the repetition; the first one is kept",
            "ExpectColumnValuesToBeInSet", {"column": "repeats an earlier row", "value_set": [False]}, column,
        ),
        Rule(
            f"{column}_unique", f"no two different rows share a {column}", "give each its own id, or keep one of them",
            "ExpectColumnValuesToBeUnique", {"column": f"{column} once"}, column,
        ),
    ]  # fmt: skip
