"""The paper's numbers, as printed (Lin et al., KDD 2026, Sec. 5), by table, system and metric.

Each is (PickaPic, Industrial), None where the paper has none. Figures 5 and 6 print no numbers, only bars; the relative
order of the bars is in the text (Sec. 5.4): the complete model is best.
"""

from __future__ import annotations

__all__ = ["PAPER", "paper_value"]

Pair = tuple[float | None, float | None]

PAPER: dict[str, dict[str, dict[str, Pair]]] = {
    "table1": {
        "dataset": {
            "users": (3_094, 54_995),
            "prompts": (33_164, 60_616),
            "samples": (529_219, 607_328),
            "group_size": (2, 5),
        },
    },
    "table2": {
        "aesthetic": {"ap": (0.7569, 0.4571), "auc": (0.5138, 0.5000)},
        "clip_h": {"ap": (0.8148, 0.6352), "auc": (0.6295, 0.7060)},
        "imagereward": {"ap": (0.8216, 0.5538), "auc": (0.6431, 0.6115)},
        "hpsv1": {"ap": (0.8293, 0.4565), "auc": (0.6585, 0.5030)},
        "hpsv2": {"ap": (0.8177, 0.5783), "auc": (0.6353, 0.6420)},
        "pickscore": {"ap": (0.8711, 0.5241), "auc": (0.7422, 0.5820)},
        "full": {"ap": (0.8822, 0.9220), "auc": (0.7644, 0.9564)},
    },
    "table3": {
        "base": {
            "aesthetic": (5.39, 5.36), "clip_score": (32.82, 17.73), "pickscore": (20.29, 17.01),
            "perfusion_rm": (21.23, 13.44),
        },
        "sft": {
            "aesthetic": (5.71, 5.44), "clip_score": (34.58, 24.39), "pickscore": (20.89, 18.07),
            "perfusion_rm": (21.80, 24.33),
        },
        "spo": {
            "aesthetic": (5.60, 5.25), "clip_score": (31.51, 19.27), "pickscore": (20.72, 14.63),
            "perfusion_rm": (21.57, 17.72),
        },
        "dpo": {
            "aesthetic": (5.67, 5.19), "clip_score": (34.67, 25.68), "pickscore": (21.13, 18.19),
            "perfusion_rm": (22.62, 25.03),
        },
        "pmg": {
            "aesthetic": (5.70, 5.25), "clip_score": (35.21, 25.49), "pickscore": (21.32, 18.27),
            "perfusion_rm": (22.51, 25.33),
        },
        "perfusion": {
            "aesthetic": (5.80, 5.41), "clip_score": (35.93, 25.74), "pickscore": (21.65, 18.54),
            "perfusion_rm": (23.03, 26.44),
        },
    },
    "table4": {
        "diffusion": {"train": (1.45, 1.48), "draw": (1.49, 1.49)},
        "dpo": {"train": (3.05, 3.16), "draw": (1.48, 1.50)},
        "perfusion": {"train": (6.29, 6.95), "draw": (3.03, 3.05)},
    },
    "table5": {
        "full": {"ap": (0.8822, None), "auc": (0.7644, None)},
        "siglip": {"ap": (0.8798, None), "auc": (0.7601, None)},
        "vilt": {"ap": (0.8776, None), "auc": (0.7577, None)},
    },
}  # fmt: skip


def paper_value(table: str, system: str, metric: str) -> Pair:
    """What the paper prints; (None, None) where it prints nothing."""
    return PAPER.get(table, {}).get(system, {}).get(metric, (None, None))
