"""What scoring groups of pictures costs, and training the scorer: text once a group, short last layers, things kept.

    python -m benchmarks.scoring --size twin --rounds 7
    python -m benchmarks.scoring --size clip_h --rounds 2

Weights are random: the work does not depend on them. `clip_h` is CLIP ViT-H-14, the size of PickScore; on a CPU
it takes some 8 GiB and minutes a round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Timing, measure, record, show
from perfusion.config import ClipConfig, RewardConfig
from perfusion.data import FeatureEncoder, GroupTable
from perfusion.reward import PerFusionRM, PerFusionRMConfig, cosine_similarity, group_loss
from perfusion.reward.backbones import TwoTowers
from perfusion.reward.batches import NOTHING, Candidates, gather, spread
from perfusion.reward.frozen import Frozen, start_fits
from perfusion.reward.words import build_tokenizer
from perfusion.scorers import PersonalScore, PickScore
from perfusion.scorers.tables import row_scorer

SIZES = (5, 5, 4, 5, 6, 5, 3, 5)  # candidates of the groups in turn, as in the sample dataset
WORDS = [f"word{number}" for number in range(200)]
Work = Callable[[], object]


def main() -> None:
    """Measure, show and record the three tables of one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("twin", "clip_h"), default="twin")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--groups", type=int, help="groups a round; 64 for the twin, 1 for clip_h")
    parser.add_argument("--candidates", type=int, help="pictures of every group; else 3 to 6, as in the sample dataset")
    parser.add_argument("--one-by-one", action="store_true", help="also score every candidate in a pass of its own")
    options = parser.parse_args()
    groups = options.groups or {"twin": 64, "clip_h": 1}[options.size]
    model = build_model(options.size)
    side = model.config.backbone_config.vision_config.image_size
    table = build_table(groups, side, SIZES if options.candidates is None else (options.candidates,))
    count = int(table.valid.sum())
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.size}: {groups} groups of {count} pictures, {weights:,} weights")
    tables = {
        "scoring": personal_arms(model, table, options.one_by_one),
        "user_blind": blind_arms(model, table),
        "training": training_arms(model, table),
    }
    timings: list[Timing] = []
    figures: dict[str, float] = {}
    work: dict[str, dict[str, int]] = {}
    suffix = "" if options.size == "twin" else f"_{options.size}"
    for name, arms in tables.items():
        work[name] = {arm: flops(one) for arm, one in arms.items()}  # which warms up, too
        part = measure(arms, "naive", groups, options.rounds, warmup=0)
        show(f"{name.replace('_', '-')}, {options.size}", part, "group")
        print("\ngroups a second: " + ", ".join(f"{t.arm} {1 / t.per_item:.4g}" for t in part))
        print("FLOPs over naive: " + ", ".join(f"{arm} {n / work[name]['naive']:.3f}" for arm, n in work[name].items()))
        timings += [Timing(f"{name}: {t.arm}", t.seconds, t.items, t.ratio, t.low, t.high) for t in part]
        figures |= {f"{name}_{t.arm.replace(' ', '_')}_over_naive{suffix}": t.ratio for t in part if "ours" in t.arm}
        figures |= {f"{name}_groups_per_second{suffix}": 1 / t.per_item for t in part if t.arm == "ours"}
    record(f"scoring-{options.size}", timings, {"scoring": figures}, groups=groups, pictures=count, flops=work)


def build_model(size: str) -> PerFusionRM:
    """A PerFusionRM of random weights with a word-level tokenizer, its plug-ins awake."""
    from transformers import CLIPConfig, CLIPImageProcessor  # after perfusion.reward, which guards it from torchvision

    torch.manual_seed(0)
    tokenizer = build_tokenizer(WORDS)
    text = {
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "hidden_act": "gelu",
    }  # fmt: skip
    if size == "twin":
        twin = ClipConfig()
        tower = _tower(twin.width, twin.layers, twin.heads)
        vision: dict[str, Any] = {**tower, "image_size": 48, "patch_size": twin.patch, "hidden_act": "gelu"}
        clip = CLIPConfig(text_config={**tower, **text}, vision_config=vision, projection_dim=twin.projection)
    else:
        vision = {**_tower(1280, 32, 16), "image_size": 224, "patch_size": 14, "hidden_act": "gelu"}
        clip = CLIPConfig(
            text_config={**_tower(1024, 24, 16), **text}, vision_config=vision, projection_dim=1024
        )  # fmt: skip
    config = RewardConfig()
    model = PerFusionRM(
        PerFusionRMConfig(
            backbone_config=clip, cardinalities=_encoder().cardinalities, embedding_dim=config.embedding_dim,
            cross_layers=config.cross_layers, cross_norm=config.cross_norm, adaptive_hidden=config.adaptive_hidden,
        )
    ).eval()  # fmt: skip
    for name, weight in model.plugins.named_parameters():
        if ".last." in name:
            torch.nn.init.normal_(weight, std=0.1)
    side = vision["image_size"]
    model.tokenizer = tokenizer
    model.processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return model


def build_table(groups: int, side: int, sizes_in_turn: Sequence[int]) -> GroupTable:
    """`groups` groups of random pictures, prompts of 18 words, each group another user's."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([sizes_in_turn[row % len(sizes_in_turn)] for row in range(groups)])
    valid = torch.arange(int(sizes.max())) < sizes[:, None]
    index = torch.zeros(valid.shape, dtype=torch.long).masked_scatter(valid, torch.arange(int(sizes.sum())))
    pixels = torch.randint(256, (int(sizes.sum()), 3, side, side), generator=generator, dtype=torch.uint8)
    users = _users()
    words = torch.randint(len(WORDS), (groups, 18), generator=generator).tolist()
    return GroupTable(
        pixels, index, valid, (torch.arange(valid.shape[1]) == 0).expand_as(valid) & valid,
        torch.arange(groups) % len(users), _encoder().transform(users),
        [", ".join(WORDS[word] for word in row) for row in words], [f"r{row}" for row in range(groups)],
        users["user_id"].tolist(), _encoder(), [f"i{row}" for row in range(len(pixels))],
    )  # fmt: skip


def personal_arms(model: PerFusionRM, table: GroupTable, one_by_one: bool) -> dict[str, Work]:
    """PerFusionRM on every group."""
    rows, users = torch.arange(len(table)), table.users[table.user_index]
    scorer = PersonalScore(model)
    once = row_scorer(scorer, table)
    arms: dict[str, Work] = {
        "naive": torch.no_grad()(lambda: naive_scores(model, table, rows)),
        "text once": torch.no_grad()(lambda: text_once(model, table, rows)),
        "ours": lambda: once(rows, users),
    }
    if start_fits(model.blind, table.pixels):
        twice = row_scorer(scorer, table, passes=2)
        arms["ours kept"] = lambda: twice(rows, users)
    if one_by_one:
        arms["one by one"] = torch.no_grad()(lambda: [naive_scores(model, table, row[None]) for row in rows])
    return arms


def blind_arms(model: PerFusionRM, table: GroupTable) -> dict[str, Work]:
    """The user-blind PickScore: in transformers' own towers; ours, seen for the first time; ours, all kept."""
    rows = torch.arange(len(table))
    assert isinstance(model.blind, TwoTowers)
    scorer = PickScore(model.blind, twin=False)
    kept = row_scorer(scorer, table)
    kept(rows, None)
    return {
        "naive": torch.no_grad()(lambda: naive_scores(model, table, rows, blind=True)),
        "text once": torch.no_grad()(lambda: text_once(model, table, rows, blind=True)),
        "ours": lambda: row_scorer(scorer, table)(rows, None),
        "ours kept": lambda: kept(rows, None),
    }


def training_arms(model: PerFusionRM, table: GroupTable) -> dict[str, Work]:
    """Forward and backward of one batch: the whole table."""
    rows, users = torch.arange(len(table)), table.users[table.user_index]
    frozen = model.freeze(table.pixels)

    def step(scores: Callable[[], Tensor], valid: Tensor) -> None:
        model.zero_grad(set_to_none=True)
        group_loss(scores().view(valid.shape), table.picked, table.valid).mean().backward()

    def ours(kept: Frozen) -> Tensor:
        batch: Candidates = gather(table, rows, table.prompts, users, model.blind, kept)
        return spread(model.score_candidates(batch), batch.valid)

    arms: dict[str, Work] = {
        "naive": lambda: step(lambda: naive_scores(model, table, rows), table.valid),
        "text once": lambda: step(lambda: spread(text_once(model, table, rows), table.valid), table.valid),
        "ours": lambda: step(lambda: ours(NOTHING), table.valid),
    }
    if frozen.pictures is not None:
        arms["ours kept"] = lambda: step(lambda: ours(frozen), table.valid)
    return arms


def naive_scores(model: PerFusionRM, table: GroupTable, rows: Tensor, blind: bool = False) -> Tensor:
    """Each candidate with a prompt and user of its own, padding included, through transformers' own forward passes."""
    wide = table.valid.shape[1]
    prompts = [table.prompts[row] for row in rows.tolist() for _ in range(wide)]
    users = None if blind else table.users[table.user_index[rows]].repeat_interleave(wide, dim=0)
    knowledge: list[Any] = [model.knowledge(tower, users) for tower in ("text", "vision")]
    tokens = model.blind.tokens(prompts)
    text = model.backbone.get_text_features(**tokens, knowledge=knowledge[0]).pooler_output
    pictures = model.blind.prepare(table.candidates(rows).flatten(0, 1))
    image = model.backbone.get_image_features(pictures, knowledge=knowledge[1]).pooler_output
    return model.scale * cosine_similarity(text, image)


def text_once(model: PerFusionRM, table: GroupTable, rows: Tensor, blind: bool = False) -> Tensor:
    """A prompt and a user a group, no padding, still through transformers' own forward passes."""
    valid = table.valid[rows]
    group = valid.nonzero()[:, 0]
    users = None if blind else table.users[table.user_index[rows]]
    text_knowledge, vision_knowledge = (model.knowledge(tower, users) for tower in ("text", "vision"))
    told: Any = None if vision_knowledge is None else vision_knowledge[group]
    tokens = model.blind.tokens([table.prompts[row] for row in rows.tolist()])
    text = model.backbone.get_text_features(**tokens, knowledge=text_knowledge).pooler_output
    pictures = model.blind.prepare(table.pixels[table.image_index[rows][valid]])
    image = model.backbone.get_image_features(pictures, knowledge=told).pooler_output
    return model.scale * cosine_similarity(text[group], image)


def flops(work: Work) -> int:
    """Floating-point operations of one round."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _tower(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
    }  # fmt: skip


def _users() -> pd.DataFrame:
    styles = ("plain", "bold", "classic")
    return pd.DataFrame({"user_id": [f"u{row}" for row in range(48)], "style": [styles[row % 3] for row in range(48)]})


def _encoder() -> FeatureEncoder:
    return FeatureEncoder.fit(_users())


if __name__ == "__main__":
    main()
