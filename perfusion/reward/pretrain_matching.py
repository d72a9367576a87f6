"""Pretraining of the SigLIP and ViLT twins on captioned pictures, each by its own objective, blind to anybody's picks.

What a picture shows is known, phrase by phrase, so it is known of every caption and every picture whether they belong
together, and of which pairs it is not known: those count nowhere.

Legend: n pictures, m texts, K phrases in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from perfusion.config import ClipConfig
from perfusion.data.corpus import Corpus
from perfusion.loop import TrainingRun, train
from perfusion.reward.backbones import Backbone
from perfusion.reward.pretrain import augment, pretrain_clip
from perfusion.reward.siglip import SiglipBackbone
from perfusion.reward.weights import twin
from perfusion.seeding import generator_for, seed_step

__all__ = [
    "belongs",
    "matching_accuracy",
    "other_caption",
    "pretrain_siglip",
    "pretrain_twin",
    "pretrain_vilt",
    "sigmoid_loss",
]

_HELD_OUT = 1024
Objective = Callable[[int], tuple[Tensor, dict[str, float]]]


def pretrain_twin(corpus: Corpus, config: ClipConfig, out: Path, run: TrainingRun) -> dict[str, float]:
    """Train the tiny twin of `config.kind` by the objective of its class, and save it to `out`."""
    kinds = {"clip": pretrain_clip, "siglip": pretrain_siglip, "vilt": pretrain_vilt}
    return kinds[config.kind](corpus, config, out, run)


def pretrain_siglip(corpus: Corpus, config: ClipConfig, out: Path, run: TrainingRun) -> dict[str, float]:
    """Train the tiny SigLIP on `corpus` with SigLIP's sigmoid loss, save it to `out` in transformers' format.

    A step's texts are captions of its first pictures and every single phrase.

    Returns:
        Training metrics of the last step and held-out "zero_shot/{family}" and "zero_shot" accuracy.
    """

    def objective_of(backbone: Backbone, count: int) -> Objective:
        assert isinstance(backbone, SiglipBackbone)

        def objective(step: int) -> tuple[Tensor, dict[str, float]]:
            generator = generator_for(run.seed, run.name, step)
            rows = torch.randint(count, (config.batch_images,), generator=generator)
            captioned = [row for row in rows[: config.batch_captions].tolist() if corpus.phrases(row)]
            captions = [corpus.caption(row, generator, config.keep_phrases) for row in captioned]
            texts = [*captions, *_phrases(corpus)]
            image = backbone.picture_embeds(
                backbone.picture_start(backbone.prepare(augment(corpus.pixels[rows], config, generator)))
            )
            text = backbone.prompt_embeds(**backbone.tokens(texts))
            cosine = functional.normalize(image, dim=-1) @ functional.normalize(text, dim=-1).T
            logits = backbone.log_scale.exp() * cosine + backbone.model.logit_bias
            loss = sigmoid_loss(logits, *belongs(corpus, rows, texts))
            return loss, {"scale": backbone.log_scale.exp().item(), "bias": backbone.model.logit_bias.item()}

        return objective

    return _pretrain(corpus, config, out, run, objective_of)


def pretrain_vilt(corpus: Corpus, config: ClipConfig, out: Path, run: TrainingRun) -> dict[str, float]:
    """Train the tiny ViLT on `corpus` with image-text matching, save it to `out` in transformers' format.

    Half of a step's pictures come with a caption of theirs, the same pictures again with one that is not: theirs with
    one phrase exchanged, or another picture's. The loss is the binary cross-entropy of the rank output.

    Returns:
        Training metrics of the last step and held-out "zero_shot/{family}" and "zero_shot" accuracy.
    """

    def objective_of(backbone: Backbone, count: int) -> Objective:
        def objective(step: int) -> tuple[Tensor, dict[str, float]]:
            generator = generator_for(run.seed, run.name, step)
            rows = torch.randint(count, (max(1, config.batch_images // 2),), generator=generator)
            rows = torch.tensor([row for row in rows.tolist() if corpus.phrases(row)], dtype=torch.long)
            true = [corpus.caption(row, generator, config.keep_phrases) for row in rows.tolist()]
            false = [
                other_caption(corpus, row, caption, generator) for row, caption in zip(rows.tolist(), true, strict=True)
            ]
            pixels = backbone.prepare(augment(corpus.pixels[rows], config, generator))
            twice = torch.arange(len(rows)).repeat(2)
            start = backbone.picture_start(pixels)[twice]
            rank = backbone.scores(backbone.tokens([*true, *false]), start, torch.arange(2 * len(rows)))
            shown, known = belongs(corpus, rows, [*true, *false])
            own = twice, torch.arange(2 * len(rows))
            loss = functional.binary_cross_entropy_with_logits(rank, shown[own].float(), known[own].float())
            return loss, {"accuracy": ((rank > 0) == shown[own]).double().mean().item()}

        return objective

    return _pretrain(corpus, config, out, run, objective_of)


def sigmoid_loss(logits: Tensor, shown: Tensor, known: Tensor) -> Tensor:
    """SigLIP's loss: -sum over texts of log sigmoid(z * logit), z = 1 for pairs that belong together and -1 otherwise.

    The mean over pictures, in nats. SigLIP takes a picture's own caption for the only one that belongs to it; here
    others may.

    Args:
        logits: (n, m).
        shown: (n, m) bool, whether the pair belongs together.
        known: (n, m) bool; the others count as nothing.
    """
    sign = shown.to(logits) * 2 - 1
    return -(functional.logsigmoid(sign * logits) * known).sum(-1).mean()


def belongs(corpus: Corpus, rows: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Whether each picture of `rows` (n,) shows all that each text says, and whether that is known: (n, m) bool twice.

    It is known to be false as soon as one phrase is, and true when all are.
    """
    families = list(corpus.families.values())
    place = {phrase: row for row, phrase in enumerate(_phrases(corpus))}
    asked = torch.zeros(len(texts), len(place))
    for row, text in enumerate(texts):
        asked[row, [place[phrase] for phrase in text.split(", ")]] = 1.0
    labels = corpus.labels[rows]
    one_hot = [
        functional.one_hot(labels[:, family].clamp(min=0), len(phrases)).bool() & (labels[:, family, None] >= 0)
        for family, phrases in enumerate(families)
    ]
    given = [(labels[:, family, None] >= 0).expand(-1, len(phrases)) for family, phrases in enumerate(families)]
    shows, told = torch.cat(one_hot, 1), torch.cat(given, 1)  # (n, K)
    wrong = (told & ~shows).float() @ asked.T > 0
    open_ = (~told).float() @ asked.T > 0
    return ~wrong & ~open_, wrong | ~open_


def other_caption(corpus: Corpus, row: int, caption: str, generator: torch.Generator) -> str:
    """`caption` of picture `row` with one phrase exchanged for another of its family, or another picture's caption."""
    if torch.rand((), generator=generator) < 0.5:
        other = int(torch.randint(len(corpus), (), generator=generator))
        if corpus.phrases(other):
            return corpus.caption(other, generator, 0.5)
    phrases = caption.split(", ")
    at = int(torch.randint(len(phrases), (), generator=generator))
    (family,) = [family for family in corpus.families.values() if phrases[at] in family]
    choice = [phrase for phrase in family if phrase != phrases[at]] or [phrases[at]]
    phrases[at] = choice[int(torch.randint(len(choice), (), generator=generator))]
    return ", ".join(phrases)


def _pretrain(
    corpus: Corpus, config: ClipConfig, out: Path, run: TrainingRun, objective_of: Callable[[Backbone, int], Objective]
) -> dict[str, float]:
    """A twin of `config.kind`, trained and saved; the last pictures (a tenth, at most 1,024) are held out."""
    seed_step(run.seed, run.name, "weights")
    backbone = twin(_phrases(corpus), corpus.pixels.shape[-1], config)
    count = len(corpus) - min(_HELD_OUT, len(corpus) // 10)
    metrics = train(run, {config.kind: backbone.model.train()}, objective_of(backbone, count), config.optimiser)
    backbone.model.eval()
    backbone.save(out)
    return {**metrics, **matching_accuracy(backbone, corpus, torch.arange(count, len(corpus)))}


@torch.no_grad()
def matching_accuracy(backbone: Backbone, corpus: Corpus, rows: Tensor, batch: int = 64) -> dict[str, float]:
    """Share of pictures `rows` (n,) whose own phrase matches best of its family, per family and their mean."""
    accuracy = {}
    for index, (family, phrases) in enumerate(corpus.families.items()):
        labels, right = corpus.labels[rows, index], []
        tokens = backbone.tokens(phrases)
        for part in rows[labels >= 0].split(batch):
            start = backbone.picture_start(backbone.prepare(corpus.pixels[part]))
            start = start.repeat_interleave(len(phrases), 0)
            group = torch.arange(len(phrases)).repeat(len(part))
            found = backbone.scores(tokens, start, group).view(len(part), -1).argmax(-1)
            right.append(found == corpus.labels[part, index])
        accuracy[f"zero_shot/{family}"] = torch.cat(right).double().mean().item()
    return {**accuracy, "zero_shot": sum(accuracy.values()) / len(accuracy)}


def _phrases(corpus: Corpus) -> list[str]:
    return [phrase for phrases in corpus.families.values() for phrase in phrases]
