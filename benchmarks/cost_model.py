"""What a retraining costs on paper, at any number of records and GPUs: `python -m benchmarks.cost_model`.

Nothing is run. Operations come from the networks' shapes and from the counts of docs/performance.md, which
tests/perfusion/test_flops.py holds; rates of the data plane are those measured there; what the accelerators and their
network can do is assumed, and every assumption is a field of `Cluster`. docs/scaling.md shows the arithmetic.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Cluster", "Load", "Phase", "attention_stack", "main", "phases", "storage"]

TERA, GIGA = 1e12, 1e9
# Stable Diffusion v1.5 at 512 pixels, operations a picture (docs/performance.md; test_flops.py counts them)
PERFUSION_STEP, DPO_STEP, UNET_FORWARD = 2763e9, 3210e9, 803.3e9
ENCODER_FORWARD = 1.1167e12  # of its VAE, counted by tests/perfusion/test_cost_model.py
PAN_WEIGHTS, UNET_WEIGHTS = 362e6, 860e6
CLIP_WEIGHTS, PLUGIN_WEIGHTS = 986e6, 30e6  # of CLIP-H; of PerFusionRM's plug-ins, an estimate
SAMPLING = 1.163 * 2  # forward passes of the U-Net a step that is guided by prompt and user, exact sampler
# measured here on two cores, 10^7 records (docs/performance.md)
SPLIT_SECONDS, RULES_SECONDS = 30.4 / 1e7, 12.6 / 1e7  # a record
RECORD_BYTES, USER_BYTES, PICTURE_HASH_BYTES = 190, 200, 8  # a record on disk; a user and a picture in memory
IMPORT_RATE = 460e6  # bytes of picture shards a second


def attention_stack(layers: int, width: int, tokens: int) -> float:
    """Operations of one forward pass of a Transformer with a fourfold feed-forward network, a multiply-add being two.

    12 width^2 weights a layer, each used by every token; and queries by keys, weights by values.
    """
    return layers * (2 * 12 * width**2 * tokens + 4 * tokens**2 * width)


#: CLIP-H of PickScore at 224 pixels: 257 tokens of a picture, 77 of a prompt.
VISION, TEXT = attention_stack(32, 1280, 257), attention_stack(24, 1024, 77)


@dataclass(frozen=True)
class Load:
    """What is retrained.

    Attributes:
        records: groups.
        candidates: pictures of a group, all of them different.
        records_per_user: on average.
        epochs: how often training sees every group; below 1, a part of them.
        batch_groups: groups of an optimiser step of dpo and generator, all processes together (512 in App. B.3).
        reward_groups: the same of pickscore and reward (128 in App. B.3).
        items: held-out (user, prompt) pairs that are drawn with every arm.
        arms: drawn and judged.
        steps: of the sampler.
        picture_bytes: of a stored picture.
        latent_bytes: of its latent and spread, float16.
    """

    records: float
    candidates: float = 5
    records_per_user: float = 11
    epochs: float = 1
    batch_groups: int = 512
    reward_groups: int = 128
    items: int = 1000
    arms: int = 5
    steps: int = 50
    picture_bytes: float = 60e3
    latent_bytes: float = 64 * 1024

    @property
    def pictures(self) -> float:
        return self.records * self.candidates


@dataclass(frozen=True)
class Cluster:
    """What it is retrained on. None of this was measured here.

    Attributes:
        gpus: of all machines.
        peak: operations a second of one, bfloat16, dense (H100 SXM: 989e12).
        share: of the peak that training and drawing reach.
        network: bytes a second that each GPU sends to the others (400 Gb/s: 50e9).
        gradient_bytes: of a weight in the sum over processes, float32 here.
        data_workers: processes of the data plane, each as fast as the two cores measured here; today it is 1.
        gpu_hour: price of a GPU for an hour, in any currency; 0 tells none.
    """

    gpus: int
    peak: float = 989 * TERA
    share: float = 0.35
    network: float = 50 * GIGA
    gradient_bytes: int = 4
    data_workers: int = 1
    gpu_hour: float = 0.0

    @property
    def speed(self) -> float:
        """Operations a second of all GPUs."""
        return self.gpus * self.peak * self.share

    def sum_seconds(self, weights: float) -> float:
        """Seconds of summing the gradients of so many weights in a ring: each sends 2 (n - 1) / n of them."""
        return 2 * (self.gpus - 1) / self.gpus * weights * self.gradient_bytes / self.network


@dataclass(frozen=True)
class Phase:
    """A stage's bill.

    Attributes:
        stage: its name.
        operations: in all; 0 for the data plane.
        seconds: of the clock.
        waiting: the share of those seconds in which GPUs wait for the sum of gradients, which nothing overlaps here.
        gpus: that it holds.
    """

    stage: str
    operations: float
    seconds: float
    waiting: float
    gpus: int

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600


def phases(load: Load, cluster: Cluster) -> list[Phase]:
    """The bill of a retraining, stage by stage."""
    groups = load.records * load.epochs
    reward = 2 * (load.candidates * VISION + TEXT)  # forward, and back through frozen layers to the plug-ins
    pickscore = 3 * (load.candidates * VISION + TEXT)  # every weight
    drawn = load.items * load.arms
    return [
        Phase("validate (rules by column)", 0, load.records * RULES_SECONDS / cluster.data_workers, 0, 0),
        Phase("split (filter, split, Table 1)", 0, load.records * SPLIT_SECONDS / cluster.data_workers, 0, 0),
        _training("pickscore", groups, pickscore, CLIP_WEIGHTS, load.reward_groups, cluster),
        _training("reward", groups, reward, PLUGIN_WEIGHTS, load.reward_groups, cluster),
        _spread("encode", load.pictures * ENCODER_FORWARD, cluster),
        _training("dpo", groups, 2 * DPO_STEP, UNET_WEIGHTS, load.batch_groups, cluster),
        _training("generator", groups, load.candidates * PERFUSION_STEP, PAN_WEIGHTS, load.batch_groups, cluster),
        _spread("evaluate-generator", drawn * (load.steps * SAMPLING * UNET_FORWARD + 4 * VISION), cluster),
    ]


def _training(stage: str, groups: float, operations: float, weights: float, batch: int, cluster: Cluster) -> Phase:
    """`operations` a group; after every step the gradients of `weights` are summed, and nothing overlaps that."""
    computing = groups * operations / cluster.speed
    waiting = groups / batch * cluster.sum_seconds(weights)
    seconds = computing + waiting
    return Phase(stage, groups * operations, seconds, waiting / seconds, cluster.gpus)


def _spread(stage: str, operations: float, cluster: Cluster) -> Phase:
    return Phase(stage, operations, operations / cluster.speed, 0.0, cluster.gpus)


def storage(load: Load) -> dict[str, float]:
    """Bytes that have to be kept on disk, and those that the data plane needs in one process's memory."""
    users = load.records / load.records_per_user
    return {
        "pictures on disk": load.pictures * load.picture_bytes,
        "groups.parquet on disk": load.records * RECORD_BYTES,
        "latents on disk": load.pictures * load.latent_bytes,
        "users in memory (filter)": users * USER_BYTES,
        "hashes of pictures in memory (Table 1)": load.pictures * PICTURE_HASH_BYTES,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=float, default=1e9)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--share", type=float, default=0.35, help="of the GPUs' peak that is reached")
    parser.add_argument("--data-workers", type=int, default=1)
    parser.add_argument("--gpu-hour", type=float, default=0.0, help="price; 0 tells none")
    given = parser.parse_args(arguments)
    load = Load(given.records, epochs=given.epochs)
    cluster = Cluster(given.gpus, share=given.share, data_workers=given.data_workers, gpu_hour=given.gpu_hour)
    print(f"{load.records:.3g} records, {load.pictures:.3g} pictures, {cluster.gpus} GPUs, {load.epochs:g} epochs\n")
    print("| stage | operations | hours | GPUs wait | GPU hours |\n|---|---|---|---|---|")
    bill = phases(load, cluster)
    for phase in bill:
        wait = f"{100 * phase.waiting:.0f} %" if phase.waiting else "-"
        print(
            f"| {phase.stage} | {phase.operations:.2e} | {phase.seconds / 3600:.1f} | {wait} | {phase.gpu_hours:.0f} |"
        )
    bought = sum(phase.gpu_hours for phase in bill)
    print(f"| together | | {sum(phase.seconds for phase in bill) / 3600:.1f} | | {bought:.0f} |")
    if cluster.gpu_hour:
        print(f"\nprice: {bought * cluster.gpu_hour:,.0f}")
    print("\n| what has to be kept | |\n|---|---|")
    for name, size in storage(load).items():
        print(f"| {name} | {size / TERA:.3g} TB |" if size >= TERA else f"| {name} | {size / GIGA:.3g} GB |")


if __name__ == "__main__":
    main()
