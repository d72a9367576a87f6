"""The layout's rules for group records that columns alone can tell, counted for any number of records.

The same rules, by name and outcome, as validation judges row by row: a test holds them equal. Validation also looks
into pictures, reads columns of other types, and says which rows; this says how many, in bounded memory, before that is
begun.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from perfusion.config import DataConfig
from perfusion.data.layout import check_groups, read_users
from perfusion.data.query import database

__all__ = ["count_faults"]

_ID_CHARS = 200
_EARLIEST = datetime(2000, 1, 1)
# What Python strips: a text of nothing else is empty.
_MACROS = r"""
    CREATE MACRO blank(x) AS x IS NULL OR NOT regexp_matches(x, '[^\t-\r\x1c-\x20\x85\p{Z}]');
    CREATE MACRO control(x) AS regexp_matches(x, '[\x00-\x1f\x7f]');
"""
# Most records have no blank picture id; only those that may have are looked at one id at a time.
_FACTS = r"""
    SELECT file_row_number AS row, CASE WHEN NOT blank(record_id) THEN record_id END AS record_id,
           CASE WHEN NOT blank(user_id) THEN user_id END AS user_id, created_at, prompt, picked, image_ids,
           CASE WHEN regexp_matches(array_to_string(image_ids, '/'), '(^|/)[\t-\r\x1c-\x20\x85\p{Z}]*(/|$)')
                THEN list_filter(image_ids, lambda image_id: NOT blank(image_id)) ELSE image_ids END AS named
    FROM read_parquet('{path}', file_row_number = true)
"""
# Rows that repeat an earlier one, and rows that differ and share its name.
_COPIES = """
    CREATE TABLE copies AS
    WITH shared AS (
        SELECT * FROM facts SEMI JOIN (SELECT record_id FROM facts GROUP BY ALL HAVING count(*) > 1) USING (record_id)
    ), numbered AS (
        SELECT row, record_id, row_number() OVER (
            PARTITION BY record_id, user_id, epoch_ms(created_at), prompt, picked, image_ids ORDER BY row
        ) > 1 AS repeats FROM shared
    )
    SELECT row, CASE WHEN repeats THEN 'record_repeated' ELSE 'record_id_unique' END AS rule FROM numbered
    WHERE repeats OR record_id IN (SELECT record_id FROM numbered WHERE NOT repeats GROUP BY ALL HAVING count(*) > 1)
"""


def count_faults(root: Path, config: DataConfig, now: datetime | None = None) -> dict[str, Any]:
    """How many group records break each rule.

    Args:
        root: a dataset whose columns have the layout's own types; images/ is not opened.
        config: the limits.
        now: the clock, naive UTC, for dates that lie in the future.

    Returns:
        {"groups_in", "faulty": records that break any of the rules, "rules": {name: records that break it}}.

    Raises:
        DataError: a file, a column or a type is not the layout's.
    """
    groups = root / "groups.parquet"
    check_groups(groups)
    now = now or datetime.now(UTC).replace(tzinfo=None)
    rules = _rules(config, now + timedelta(days=config.max_future_days))
    counts = ", ".join(f"count(*) FILTER ({broken})" for broken in rules.values())
    anything = " OR ".join(f"coalesce({broken}, false)" for broken in rules.values())
    users = read_users(root / "users.parquet")[["user_id"]]  # looked up by the queries below
    with database() as query:
        query.register("users", users)
        query.execute(_MACROS)
        query.execute("CREATE VIEW facts AS " + _FACTS.replace("{path}", str(groups).replace("'", "''")))
        query.execute(_COPIES)
        [(records, faulty, *failed)] = query.sql(
            f"SELECT count(*), count(*) FILTER ({anything} OR row IN (SELECT row FROM copies)), {counts} FROM facts"
        ).fetchall()
        copies = dict(query.sql("SELECT rule, count(*) FROM copies GROUP BY rule").fetchall())
    found = {name: copies.get(name, 0) for name in ("record_repeated", "record_id_unique")}
    return {"groups_in": records, "faulty": faulty, "rules": dict(zip(rules, failed, strict=True)) | found}


def _rules(config: DataConfig, latest: datetime) -> dict[str, str]:
    """Name -> condition in SQL that a broken record meets (null: it has nothing that could break the rule)."""
    ids = {
        f"{column}_{fault}": condition
        for column in ("record_id", "user_id")
        for fault, condition in (
            ("present", f"{column} IS NULL"),
            ("length", f"length({column}) > {_ID_CHARS}"),
            ("characters", f"control({column})"),
        )
    }
    return ids | {
        "user_known": "user_id IS NOT NULL AND user_id NOT IN (SELECT user_id FROM users WHERE user_id IS NOT NULL)",
        "created_at_present": "created_at IS NULL",
        "created_at_range": f"created_at NOT BETWEEN TIMESTAMP '{_EARLIEST}' AND TIMESTAMP '{latest}'",
        "prompt_present": "prompt IS NULL",
        "prompt_words": r"NOT regexp_matches(prompt, '[\pL\pN]')",
        "prompt_length": f"length(prompt) > {config.max_prompt_chars}",
        "image_ids_present": "image_ids IS NULL",
        "candidates": f"len(image_ids) NOT BETWEEN 1 AND {config.max_group_size}",
        "picked_present": "picked IS NULL",
        "picked_complete": "list_count(picked) < len(picked)",
        "picked_length": "len(picked) <> len(image_ids)",
        "image_id_present": "list_count(named) < len(image_ids)",
        "image_once": "list_unique(named) < list_count(named)",
    }
