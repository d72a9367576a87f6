"""What the paper compares, as data: systems by name, and studies that say which systems a table needs.

Adding a system is adding a line here. A system whose parameters or scorer this version does not know is not run, and
its row says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["DRAWN", "RANKED", "STUDIES", "VIEWS", "Drawn", "Ranked", "Study", "View", "ablated"]

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """A view of the split (see `perfusion.studies.views.write_view`).

    Attributes:
        kinds: what is done, in this order.
        features: columns of the users' table that "without" or "keep" speak of.
        minimum: take the features that the coverage study found to be enough.
    """

    kinds: tuple[str, ...]
    features: tuple[str, ...] = ()
    minimum: bool = False


@dataclass(frozen=True)
class Ranked:
    """A system that ranks groups.

    Attributes:
        title: as the table calls it.
        family: of `perfusion.scorers.registry.SCORERS`, or "random".
        trains: section of params.yaml that it is trained with; None scores it as it is.
        changes: of that section.
        learns: view of the split that it is trained on; "" is the split itself.
        kind: class of the frozen backbone (`clip.kind`); another than the retraining's is pretrained and tuned first.
        once: trained from a single seed, however many are asked for.
    """

    title: str
    family: str
    trains: Literal["pickscore", "reward"] | None = None
    changes: Changes = field(default_factory=dict)
    learns: str = ""
    kind: str = ""
    once: bool = False


@dataclass(frozen=True)
class Drawn:
    """A system that draws.

    Attributes:
        title: as the table calls it.
        trains: stage that trains it; None is drawn as it is.
        changes: of the section of that name.
        arm: its name in the retraining's own evaluation, where the unchanged system of the first seed is found.
        once: trained from a single seed.
    """

    title: str
    trains: str | None = None
    changes: Changes = field(default_factory=dict)
    arm: str | None = None
    once: bool = False


@dataclass(frozen=True)
class Study:
    """What a table needs.

    Attributes:
        title: of the table.
        ranked: system -> views of the split whose test groups it ranks; "" is the split itself.
        drawn: systems that draw.
        stages: further stages of the pipeline.
        base: last stage of the retraining that it needs, with all before it.
    """

    title: str
    ranked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drawn: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    base: str = "evaluate-reward"


def ablated(feature: str) -> str:
    """The name of the system, and of the view, that never sees a feature."""
    return f"without_{feature}"


PLAIN_RANKERS = ("random", "aesthetic", "clip_h", "imagereward", "hpsv1", "hpsv2", "clip_score", "pickscore_frozen")
OWN: tuple[str, ...] = ("",)

VIEWS: dict[str, View] = {
    "pairs": View(("pairs",)),
    "thinned": View(("thinned",)),
    "thinned_id": View(("thinned", "keep")),
    "minimum": View(("keep",), minimum=True),
}

RANKED: dict[str, Ranked] = {
    "random": Ranked("Random order", "random"),
    "aesthetic": Ranked("Aesthetics", "aesthetic"),
    "clip_h": Ranked("CLIP-H", "clip_h"),
    "clip_score": Ranked("CLIP, untuned backbone", "clip_score"),
    "imagereward": Ranked("ImageReward", "imagereward"),
    "hpsv1": Ranked("HPSv1", "hpsv1"),
    "hpsv2": Ranked("HPSv2", "hpsv2"),
    "pickscore_frozen": Ranked("PickScore, frozen", "pickscore_frozen"),
    "pickscore": Ranked("PickScore, tuned", "pickscore", "pickscore"),
    "full": Ranked("PerFusionRM", "perfusion_rm", "reward"),
    "shared": Ranked("PRM Shared", "perfusion_rm", "reward", {"variant": "shared"}),
    "vision_only": Ranked("PRM Vision-Only", "perfusion_rm", "reward", {"variant": "vision_only"}),
    "text_only": Ranked("PRM Text-Only", "perfusion_rm", "reward", {"variant": "text_only"}),
    "shuffled": Ranked(
        "PerFusionRM, users shuffled (control)", "perfusion_rm", "reward", {"shuffle_users": True}, once=True
    ),
    "siglip": Ranked("SigLIP", "perfusion_rm", "reward", kind="siglip"),
    "vilt": Ranked("ViLT", "perfusion_rm", "reward", kind="vilt"),
    "pairs": Ranked("N = 2", "perfusion_rm", "reward", learns="pairs"),
    "thinned": Ranked("PerFusionRM, thinned records", "perfusion_rm", "reward", learns="thinned"),
    "thinned_id": Ranked(
        "the user id alone, thinned records", "perfusion_rm", "reward", learns="thinned_id", once=True
    ),
    "minimum": Ranked("the minimum set, retrained", "perfusion_rm", "reward", learns="minimum", once=True),
}

DRAWN: dict[str, Drawn] = {
    "base": Drawn("SD1.5", arm="base"),
    "sft": Drawn("SFT", "sft", arm="sft"),
    "spo": Drawn("SPO", "spo"),
    "dpo": Drawn("DPO", "dpo", arm="dpo"),
    "pmg": Drawn("PMG", "pmg", once=True),
    "perfusion": Drawn("PerFusion", "generator", arm="perfusion"),
    "wo_pan": Drawn("PF w/o PAN", "generator", {"pan": False}),
    "wo_gobj": Drawn("PF w/o GOBJ", "generator", {"group": False}),
    "wo_both": Drawn("PF w/o Both", "generator", {"pan": False, "group": False}),
}

STUDIES: dict[str, Study] = {
    "table1": Study("Table 1: dataset statistics", base="split"),
    "table2": Study(
        "Table 2: reward models rank held-out groups",
        dict.fromkeys((*PLAIN_RANKERS, "pickscore", "full", "shuffled"), OWN),
    ),
    "table3": Study(
        "Table 3: generators, judged by four scorers",
        drawn=("base", "sft", "spo", "dpo", "pmg", "perfusion"),
        base="evaluate-generator",
    ),
    "table4": Study("Table 4: cost of training and inference", stages=("cost",), base="generator"),
    "table5": Study("Table 5: backbones of PerFusionRM", dict.fromkeys(("full", "siglip", "vilt", "random"), OWN)),
    "fig5": Study(
        "Fig. 5: ablation of PerFusionRM",
        dict.fromkeys(("full", "shared", "vision_only", "text_only", "random"), OWN),
    ),
    "fig6": Study(
        "Fig. 6: ablation of PerFusion",
        drawn=("perfusion", "wo_pan", "wo_gobj", "wo_both"),
        base="evaluate-generator",
    ),
    "coldstart": Study(
        "Cold start: what a short history is worth",
        dict.fromkeys(("full", "pickscore", "thinned", "thinned_id"), OWN),
    ),
    "groupsize": Study(
        "Group size: N = 2 against N = 5 from the same records",
        dict.fromkeys(("full", "pairs"), ("", "pairs")),
    ),
    "coverage": Study(
        "Coverage: which features carry the gain",
        dict.fromkeys(("full", "pickscore", "minimum"), OWN),
        stages=("coverage",),
    ),
}
