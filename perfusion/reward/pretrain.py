"""Pretraining of the tiny CLIP twin on captioned pictures. It never looks at anybody's picks.

What the frozen embedding can carry bounds what a plug-in can learn: a linear shift of the text embedding is a linear
taste only if attributes lie in the embedding linearly. So the twin is taught a geometry: every phrase has a fixed code,
codes of one family form a simplex, families are orthogonal, and a picture is the sum of the codes of what it shows.

Legend: n pictures of a batch, A families, K phrases in all, P width of the joint embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from perfusion.config import ClipConfig
from perfusion.data.corpus import Corpus
from perfusion.errors import ConfigError
from perfusion.loop import TrainingRun, train
from perfusion.reward.clip import ClipBackbone, clip_twin
from perfusion.seeding import generator_for, seed_step

__all__ = ["augment", "caption_targets", "phrase_codes", "picture_targets", "pretrain_clip", "zero_shot_accuracy"]

_HELD_OUT = 1024


def phrase_codes(sizes: list[int], width: int, seed: int) -> Tensor:
    """Fixed unit codes of all phrases, (K, P): a simplex for each family, families orthogonal, turned at random.

    Raises:
        ConfigError: the families need more than `width` dimensions.
    """
    needed = sum(sizes)
    if needed > width:
        raise ConfigError(f"clip.projection = {width}: {needed} phrases need at least {needed}")
    blocks = [functional.normalize(torch.eye(size) - 1.0 / size, dim=-1) for size in sizes]
    codes = torch.block_diag(*blocks)
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator_for(seed, "clip", "codes")))
    return codes @ turn[:needed]


def picture_targets(labels: Tensor, sizes: list[int], codes: Tensor) -> tuple[Tensor, Tensor]:
    """Where pictures should lie, and which responses are known.

    Args:
        labels: (n, A) phrase of each family, -1 = not known.
        sizes: phrases of each family.
        codes: (K, P).

    Returns:
        (n, P) sums of the codes of the known phrases, divided by the root of A so that a picture of which all is known
        has norm 1 and a phrase weighs the same in every picture; and (n, K) bool, the phrases of known families.
    """
    offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    known = labels >= 0
    rows = (labels.clamp(min=0) + offsets).flatten()
    summed = (codes[rows].view(*labels.shape, -1) * known[..., None]).sum(1)
    return summed / len(sizes) ** 0.5, known.repeat_interleave(torch.tensor(sizes), dim=1)


def caption_targets(captions: list[str], codes: Mapping[str, Tensor]) -> Tensor:
    """(n, P): the sum of the codes of each caption's phrases.

    The sum is not normalised, although CLIP's cosine would not see it: a taste is added to this embedding, and only
    where its length grows with the number of phrases does the taste weigh the same against each of them.
    """
    return torch.stack([torch.stack([codes[phrase] for phrase in caption.split(", ")]).sum(0) for caption in captions])


def augment(pixels: Tensor, config: ClipConfig, generator: torch.Generator) -> Tensor:
    """Mirror half of the pictures and crop one random square of the batch, as `config` says; colours stay."""
    if config.flip:
        mirrored = torch.rand(len(pixels), generator=generator) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    if config.crop < 1.0:
        side = pixels.shape[-1]
        share = config.crop + (1.0 - config.crop) * torch.rand((), generator=generator).item()
        kept = max(1, round(share * side))
        top, left = torch.randint(side - kept + 1, (2,), generator=generator).tolist()
        cropped = pixels[:, :, top : top + kept, left : left + kept].float()
        pixels = functional.interpolate(cropped, size=(side, side), mode="bilinear", align_corners=False)
    return pixels


def pretrain_clip(corpus: Corpus, config: ClipConfig, out: Path, run: TrainingRun) -> dict[str, float]:
    """Train the tiny twin on `corpus` and save it to `out` in transformers' format.

    The last pictures of the corpus (a tenth, at most 1,024) are held out.

    Returns:
        Training metrics of the last step and held-out zero-shot accuracy: "zero_shot/{family}" and "zero_shot".
    """
    families = {name: list(phrases) for name, phrases in corpus.families.items()}
    sizes = [len(phrases) for phrases in families.values()]
    codes = phrase_codes(sizes, config.projection, run.seed)
    named = dict(zip([phrase for phrases in families.values() for phrase in phrases], codes, strict=True))
    seed_step(run.seed, run.name, "weights")
    backbone = clip_twin(named, corpus.pixels.shape[-1], config)
    held_out = min(_HELD_OUT, len(corpus) // 10)
    count = len(corpus) - held_out

    def objective(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = generator_for(run.seed, run.name, step)
        rows = torch.randint(count, (config.batch_images,), generator=generator)
        captioned = [row for row in rows[: config.batch_captions].tolist() if corpus.phrases(row)]
        captions = [corpus.caption(row, generator, config.keep_phrases) for row in captioned]
        pixels = augment(corpus.pixels[rows], config, generator)
        paired = torch.isin(rows[: config.batch_captions], torch.tensor(captioned))
        return _loss(backbone, pixels, corpus.labels[rows], captions, paired, sizes, named, codes, config)

    metrics = train(run, {"clip": backbone.model.train()}, objective, config.optimiser)
    backbone.model.eval()
    backbone.save(out)
    return {**metrics, **zero_shot_accuracy(backbone, corpus, slice(count, None))}


def _loss(
    backbone: ClipBackbone, pixels: Tensor, labels: Tensor, captions: list[str], paired: Tensor, sizes: list[int],
    named: Mapping[str, Tensor], codes: Tensor, config: ClipConfig,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """The pretraining loss of one batch; `captions` belong to the first pictures that are `paired`."""
    clip = backbone.model
    image = functional.normalize(clip.get_image_features(backbone.prepare(pixels)).pooler_output, dim=-1)
    text = clip.get_text_features(**backbone.tokens([*captions, *named])).pooler_output
    scale = clip.logit_scale.exp()

    target, known = picture_targets(labels, sizes, codes)
    response = image @ codes.T  # (n, K)
    geometry = ((response - target @ codes.T).square() * known).sum() / known.sum()
    inside = [
        functional.cross_entropy(scale * part, label, ignore_index=-1, reduction="sum")
        for part, label in zip(response.split(sizes, dim=1), labels.T, strict=True)
    ]
    phrase = torch.stack(inside).sum() / (labels >= 0).sum()
    text_error = (text - torch.cat([caption_targets(captions, named), codes])).square().sum(-1).mean() / 2
    logits = scale * functional.normalize(text[: len(captions)], dim=-1) @ image[: len(paired)][paired].T
    same = torch.arange(len(captions))
    contrastive = (functional.cross_entropy(logits, same) + functional.cross_entropy(logits.T, same)) / 2
    loss = (
        config.geometry_weight * geometry + config.phrase_weight * phrase
        + config.text_weight * text_error + config.contrastive_weight * contrastive
    )  # fmt: skip
    return loss, {
        "geometry": geometry.item(), "phrase": phrase.item(), "text": text_error.item(),
        "contrastive": contrastive.item(), "scale": scale.item(),
    }  # fmt: skip


@torch.no_grad()
def zero_shot_accuracy(backbone: ClipBackbone, corpus: Corpus, rows: slice) -> dict[str, float]:
    """Share of held-out pictures whose own phrase is the nearest of its family by both towers, per family and mean."""
    image = functional.normalize(
        torch.cat([
            backbone.model.get_image_features(backbone.prepare(part)).pooler_output
            for part in corpus.pixels[rows].split(256)
        ]),
        dim=-1,
    )  # fmt: skip
    accuracy = {}
    for (family, phrases), labels in zip(corpus.families.items(), corpus.labels[rows].T, strict=True):
        text = functional.normalize(backbone.model.get_text_features(**backbone.tokens(phrases)).pooler_output, dim=-1)
        known = labels >= 0
        right = (image @ text.T).argmax(-1)[known] == labels[known]
        accuracy[f"zero_shot/{family}"] = right.double().mean().item()
    return {**accuracy, "zero_shot": sum(accuracy.values()) / len(accuracy)}
