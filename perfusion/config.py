"""Parameter files: frozen sections, one per stage; an unknown key is an error. Every field says unit, range, source."""

from __future__ import annotations

import difflib
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from perfusion.errors import ConfigError

__all__ = ["PLAIN", "ComputeConfig", "OptimiserConfig", "Params", "Section", "load_params"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
ScorerName = Literal[
    "aesthetic", "clip_score", "clip_h", "imagereward", "hpsv1", "hpsv2", "hpsv2.1", "pickscore_frozen", "pickscore",
    "perfusion_rm",
]  # fmt: skip
WeightsName = Literal["clip_h", "imagereward", "hpsv1", "hpsv2", "hpsv2.1", "pickscore_frozen"]


class Section(BaseModel):
    """Base of every parameter section: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class OptimiserConfig(Section):
    """Optimiser and schedule (App. B.3 names AdamW, warm-up and weight decay)."""

    method: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for matrices and convolutions, AdamW for the rest"
    )
    steps: Count = Field(description="optimiser steps")
    lr: Positive = Field(description="peak learning rate")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up, from lr/warmup")
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    final_factor: Share = Field(0.0, description="learning rate at the end, as a share of lr")
    weight_decay: float = Field(0.01, ge=0.0)
    beta2: Share = Field(0.999, description="AdamW's second moment decay")
    grad_clip: Positive = Field(1.0, description="largest global gradient norm")
    accumulate: Count = Field(1, description="micro-batches per step")
    ema_decay: Share = Field(0.999, description="decay of averaged weights, where a stage keeps them")
    checkpoint_seconds: Positive = Field(30.0, description="seconds between resumable states")
    log_every: Count = Field(10, description="steps between logged metrics")


class ComputeConfig(Section):
    """How trainings compute; the defaults change no number on a CPU, and every switch is tested against them."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is CUDA where there is one")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="of products and convolutions, by autocast; weights stay float32. fp16: CUDA only",
    )
    gradient_checkpointing: bool = Field(False, description="keep block inputs only, compute the rest twice")
    channels_last: bool = Field(False, description="memory format of the networks' weights and pictures")
    compile: bool = Field(False, description="torch.compile of each block; a minute or more before the first step")
    attention: Literal["auto", "sdpa", "xformers", "math"] = Field(
        "auto", description="kernels of the U-Net's attention; auto is xformers where installed with CUDA, else sdpa"
    )


PLAIN = ComputeConfig()


class DataConfig(Section):
    """Validation limits, the record filter and the split (Sec. 5.1.1)."""

    min_records: Count = Field(10, description="usable group records a user needs (Sec. 5.1.1)")
    ratios: tuple[int, int, int] = Field((8, 1, 1), description="train : valid : test per user, by record")
    split_by: Literal["record", "prompt", "user"] = Field(
        "record", description="what keeps records together: nothing (Sec. 5.1.1), their prompt, or their user"
    )
    cold_users: Share = Field(0.08, description="share of kept users held out entirely, for cold start")
    max_group_size: Count = Field(16, description="candidates a group may have")
    max_prompt_chars: Count = Field(2000, description="characters a prompt may have; longer ones are quarantined")
    max_image_pixels: Count = Field(25_000_000, le=50_000_000, description="width x height a stored picture may have")
    max_future_days: Count = Field(366, description="days a record's date may lie ahead of the clock")
    min_groups: Count = Field(100, description="data gate: least number of valid group records")
    max_bad_share: Share = Field(0.1, description="data gate: largest share of quarantined group records")
    min_coverage: Share = Field(0.5, description="data gate: least share of users with a value, per feature")
    max_drift: Positive = Field(0.25, description="data gate: largest population stability index per feature")
    image_size: Count = Field(48, description="pixels; pictures are resized to this square")


class ClipConfig(Section):
    """The reward backbone: real weights by path or hub id, else a tiny twin trained in the `backbones` stage.

    It is CLIP but for Table 5. SigLIP and ViLT run through pickscore, reward and evaluate-reward; what judges drawn
    pictures (evaluate-generator) needs CLIP's embeddings and refuses them.
    """

    kind: Literal["clip", "siglip", "vilt"] = Field(
        "clip", description="its class (Table 5): CLIPModel, SiglipModel, ViltForImageAndTextRetrieval (full only)"
    )
    path: str | None = Field(None, description="directory or hub id of a model of that class; None trains the twin")
    processor: str | None = Field(None, description="where its tokenizer and image processor are, if apart")
    sha256: str | None = Field(None, description="expected hash of the weights file; None skips the check")
    optimiser: OptimiserConfig = OptimiserConfig(steps=1200, lr=3e-3, warmup=50)
    pictures: Count = Field(20000, description="twin: pictures of the pretraining corpus, where it is rendered")
    width: Count = Field(96, description="twin: hidden width of both towers")
    layers: Count = Field(3, description="twin: Transformer layers of each tower")
    heads: Count = Field(4, description="twin: attention heads of each layer")
    patch: Count = Field(16, description="twin: side of a picture patch in pixels")
    projection: Count = Field(64, description="twin: width of the joint embedding, at least the number of phrases")
    batch_images: Count = Field(128, description="twin: pictures a step")
    batch_captions: Count = Field(48, description="twin: captions a step")
    keep_phrases: Share = Field(0.5, description="twin: share of a picture's phrases that a caption keeps")
    geometry_weight: float = Field(100.0, ge=0.0, description="twin: weight of the squared error of phrase responses")
    phrase_weight: float = Field(0.33, ge=0.0, description="twin: weight of the cross-entropy inside each family")
    text_weight: float = Field(3.0, ge=0.0, description="twin: weight of half the squared error of captions")
    contrastive_weight: float = Field(0.3, ge=0.0, description="twin: weight of CLIP's own contrastive loss")
    flip: bool = Field(False, description="twin: mirror half of the pictures; for photographs")
    crop: Share = Field(1.0, description="twin: least side of a random square crop, as a share; 1 never crops")


class PickScoreConfig(Section):
    """The user-blind baseline: CLIP tuned on the same picks (Table 2, 'PickScore ... tuned on both datasets')."""

    optimiser: OptimiserConfig = OptimiserConfig(steps=200, lr=1e-4, warmup=20)
    batch_groups: Count = Field(64, description="groups a step")
    evaluate_every: Count = Field(25, description="steps between measurements of valid GAUC; the best weights are kept")
    evaluate_groups: Count = Field(512, description="valid groups measured, at most")


class RewardConfig(Section):
    """PerFusionRM (Eq. 2-9)."""

    optimiser: OptimiserConfig = OptimiserConfig(steps=450, lr=3e-3, warmup=30, weight_decay=0.5)
    batch_groups: Count = Field(64, description="groups a step; 128 in App. B.3")
    backbone: Literal["pickscore", "clip"] = Field("pickscore", description="frozen towers; PickScore in App. B.3")
    variant: Literal["full", "shared", "vision_only", "text_only"] = Field(
        "full", description="Fig. 5; full is a plug-in for each encoder, and all there is for ViLT, which has one"
    )
    embedding_dim: Count = Field(16, description="width of each feature embedding")
    embedding_std: Positive = Field(0.3, description="standard deviation of the initial embeddings")
    cross_layers: Count = Field(3, description="layers of the cross network (Eq. 2)")
    cross_norm: bool = Field(True, description="LayerNorm on the cross network's output; off in the paper")
    adaptive_hidden: Count = Field(128, description="hidden width of AdaNet (Eq. 4)")
    vision_lr_factor: Positive = Field(0.15, description="learning rate of vision AdaNets, relative; 1 in the paper")
    unknown_dropout: Share = Field(0.5, description="share of training records whose user id is masked; 0 in the paper")
    feature_dropout: Share = Field(0.0, description="share of the other feature values masked; 0 in the paper")
    scale: Literal["frozen", "learned", "one"] = Field(
        "frozen", description="temperature in Eq. 8: the backbone's, a trained one, or none, the literal form"
    )
    shuffle_phrases: bool = Field(True, description="shuffle the phrases of prompts in training (Sec. 6.4)")
    shuffle_users: bool = Field(False, description="control: permute users' features; must gain nothing")
    cache: bool = Field(True, description="keep what frozen towers compute before users are heard, where it pays")
    evaluate_every: Count = Field(50, description="steps between measurements of valid loss and GAUC")
    evaluate_groups: Count = Field(512, description="valid groups measured, at most")
    keep: Literal["best", "last"] = Field("best", description="weights kept: of the best valid loss, or the last")


class CodecConfig(Section):
    """The tiny twin's picture codec: principal components of patches, and a residual decoder."""

    optimiser: OptimiserConfig = OptimiserConfig(steps=400, lr=2e-3, warmup=20, weight_decay=0.0)
    batch_images: Count = 16
    patch: Count = Field(4, description="pixels along a patch; the latent is image_size / patch wide")
    latent_channels: Count = Field(20, description="components kept of a patch")
    width: Count = Field(64, description="channels of the decoder's residual network")
    layers: Count = Field(2, description="residual blocks of the decoder")
    evenness: Share = Field(0.5, description="0 keeps the components' own sizes, 1 gives each the same")
    noise: Share = Field(0.2, description="largest standard deviation of noise on the latents the decoder learns from")


class TextConfig(Section):
    """The tiny twin's text encoder: a CLIP text tower trained jointly with the base U-Net, then frozen."""

    width: Count = 64
    layers: Count = 2
    heads: Count = 4
    length: Count = Field(24, description="tokens of an encoded prompt, start and end included")


class UNetConfig(Section):
    """Shape of the tiny twin's UNet2DConditionModel."""

    channels: tuple[int, ...] = Field((64, 96), description="channels per resolution, from the finest")
    layers_per_block: Count = 1
    heads: Count = Field(4, description="heads of the cross-attention, which runs at all but the finest resolution")
    groups: Count = Field(16, description="groups of the group norms")


class SamplingConfig(Section):
    """Defaults of drawing pictures, saved with the weights."""

    steps: Count = Field(20, description="denoising steps; best a divisor of 1000")
    guidance_scale: float = Field(2.0, ge=0.0, description="weight g of the prompt; 1 samples without guidance")
    eta: Share = Field(
        0.98, description="fresh noise per step: 0 = DDIM, 1 = DDPM (1 is undefined at zero terminal SNR)"
    )


class DiffusionConfig(Section):
    """The Stable Diffusion backbone: real weights by path or hub id, else a tiny twin; and how pictures are sampled."""

    path: str | None = Field(None, description="directory or hub id of a StableDiffusionPipeline; None trains the twin")
    optimiser: OptimiserConfig = OptimiserConfig(
        method="muon", steps=2400, lr=4e-3, warmup=50, weight_decay=0.1, ema_decay=0.995
    )
    batch_images: Count = 32
    pictures: Count = Field(12000, description="captioned pictures the twin is pretrained on")
    flip: bool = Field(False, description="twin: learn from mirrored pictures too; for photographs")
    caption_keep: Share = Field(0.5, description="share of a picture's phrases that a training caption states")
    caption_dropout: Share = Field(0.1, description="share of empty training captions, for guidance")
    codec: CodecConfig = CodecConfig()
    text: TextConfig = TextConfig()
    unet: UNetConfig = UNetConfig()
    prediction: Literal["sample", "epsilon", "v_prediction"] = Field("sample", description="what the twin predicts")
    weight_floor: Positive = Field(0.1, description="Eq. 1 is weighted by 1 / max(1 - abar, this) for 'sample'")
    sampling: SamplingConfig = SamplingConfig()


class EncodeConfig(Section):
    """Cached latents and text embeddings."""

    batch_images: Count = 256
    orders: Count = Field(4, description="shuffled orders of its phrases in which a prompt is encoded (Sec. 6.4)")
    flip: bool = Field(False, description="encode mirrored pictures too; training then draws one or the other")
    dtype: Literal["float32", "float16"] = Field("float32", description="on disk; float16 is half as large")


class PreferenceConfig(Section):
    """What the arms trained on picks share: SFT (Eq. 1), DPO (Eq. 19), PerFusion (Eq. 13). Defaults are the paper's."""

    optimiser: OptimiserConfig
    batch_groups: Count = Field(14, description="group records per micro-batch")
    scale_lr: bool = Field(True, description="multiply lr by accumulate * batch_groups, as the public launchers do")
    beta: Positive = Field(2000.0, description="strength of the tie to the reference; for means over (C, H, W) (B.3)")
    beta_pivot: Positive | None = Field(
        None, description="beta_t = beta clip(snr_t / pivot, floor, 1); None keeps beta constant, as the paper"
    )
    beta_floor: Share = Field(0.15, description="least share of beta, near pure noise, where a pivot is given")
    loss_balance: Share = Field(0.0, description="the loss is multiplied by (beta_t / beta)^-this; 0 in the paper")
    loser_clamp: Positive | None = Field(
        None,
        description="largest beta * gap of an unpicked picture that still earns anything; None, the paper, no limit",
    )
    timestep_ranges: tuple[tuple[int, int], ...] = Field(
        ((0, 1000),), description="noise levels: one half-open range at random, then uniform in it; whole in the paper"
    )
    terminal_groups: int = Field(
        0, ge=0, description="more groups, at the last noise level (where that is pure noise: one forward pass each)"
    )
    trainable: Literal["full", "decoder"] = Field("full", description="the U-Net's trained part, for SFT and DPO")
    weight_floor: Positive = Field(0.1, description="SFT: as in diffusion.weight_floor")
    max_error_ratio: Positive = Field(1.5, description="stop when err_theta / err_ref exceeds this over 20 steps")


class GeneratorConfig(PreferenceConfig):
    """PerFusion (Sec. 4.3): PAN on the frozen, DPO-aligned backbone, trained with the group objective."""

    pan: bool = Field(True, description="ablation: without PAN the U-Net itself is trained, blind to the user")
    group: bool = Field(True, description="ablation: without the group objective, Eq. 1 on picked pictures (Sec. 5.4)")
    objective: Literal["paper", "pl_topk", "pair"] = Field(
        "paper", description="Eq. 13, the exact top-set likelihood, or one pair of each group (Eq. 19)"
    )
    reduction: Literal["sum", "mean_pos"] = Field("sum", description="over a group's picked pictures")
    embedding_dim: Count = Field(16, description="width of each feature embedding")
    embedding_std: Positive = Field(0.3, description="standard deviation of the initial embeddings")
    cross_layers: Count = Field(3, description="layers of the cross network (Eq. 2)")
    cross_norm: bool = Field(False, description="LayerNorm on the cross network's output; off in the paper")
    enter_gain: float = Field(
        0.0, ge=0.0, description="the user's map enters through the identity times this at first; 0 in the paper"
    )
    user_lr_factor: Positive = Field(1.0, description="learning rate of the user path, relative; 1 in the paper")
    unet_lr_factor: Positive = Field(
        1.0,
        description="without PAN: learning rate of the U-Net, relative; 1 in the paper, whose DPO has the same rate",
    )
    unknown_dropout: Share = Field(0.0, description="share of training groups whose user id is masked")
    min_timestep: int = Field(0, ge=0, description="below this noise level PAN is not run; 0 in the paper")
    user_scale: float = Field(2.0, ge=0.0, description="default weight w of the user in guidance")


class SpoConfig(Section):
    """SPO, step-aware preference optimisation (Liang et al. 2024); defaults are the public code's for SD1.5."""

    optimiser: OptimiserConfig = OptimiserConfig(steps=400, lr=6e-5, weight_decay=1e-4, schedule="constant")
    batch_prompts: Count = Field(10, description="prompts whose trajectories make one optimiser step")
    denoising_steps: Annotated[int, Field(ge=2)] = Field(20, description="steps of a trajectory")
    first_compared: int = Field(4, ge=0, description="denoising steps before the first comparison; these only sample")
    guidance_scale: float = Field(5.0, ge=0.0, description="weight of the prompt in trajectories and their likelihood")
    eta: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="fresh noise per step: 0 leaves no choice")
    candidates: Annotated[int, Field(ge=2)] = Field(4, description="x_{t-1} drawn from each x_t")
    threshold: Share = Field(0.3, description="least difference of the best's and the worst's softmax shares")
    beta: Positive = Field(
        10.0, description="strength of the tie to the reference; log-ratios are means over (C, H, W)"
    )
    clip: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.1, description="ratios beyond 1 -+ this earn nothing")
    rank: Count = Field(4, description="of the low-rank adapters on attention")


class PmgConfig(Section):
    """PMG (Shen et al. 2024): the user's history as words in the prompt; nothing is trained."""

    language_model: str | None = Field(
        None, description="directory or hub id of a causal LM that names keywords; None takes TF-IDF"
    )
    keywords: Count = Field(8, description="style words of a user, at most; 8 in the public code")
    history: Count = Field(10, description="latest training records of a user that are read")
    vocabulary: tuple[str, ...] = Field(
        (), description="phrases among which CLIP finds what picked pictures show; none: history is the prompts alone"
    )
    phrases_per_picture: Count = Field(4, description="phrases of the vocabulary that describe a picture")
    repeats: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (1, 2), min_length=1, description="how often the style words follow the prompt; a picture is drawn with each"
    )
    alpha: Share = Field(2 / 3, description="weight of the style words in choosing the picture; 2/3 in the public code")


class DistilConfig(Section):
    """The student: guidance and PAN folded into one pass (the paper's open question 3)."""

    optimiser: OptimiserConfig = OptimiserConfig(steps=400, lr=2e-4, warmup=20, ema_decay=0.99)
    batch_pictures: Count = Field(32, description="pictures a step")
    blind_share: Share = Field(0.1, description="share of pictures without a user, whom the student must serve too")
    weight_floor: Positive = Field(0.1, description="as in diffusion.weight_floor")


class ScorerWeights(Section):
    """Where the weights of one frozen scorer are."""

    path: str = Field(description="file, folder or hub id (owner/name)")
    sha256: str | None = Field(None, description="expected hash of the weights file; None skips the check")
    processor: str | None = Field(None, description="folder or hub id of its tokenizer, if apart; None takes the usual")


class EvaluateConfig(Section):
    """Offline evaluation of the reward model and of generated pictures."""

    pairs: Count = Field(320, description="held-out (user, prompt) pairs")
    pictures: Count = Field(1, description="pictures of each pair and arm, from different noise")
    cold_pairs: Count = Field(
        160, description="(user, prompt) pairs of users nothing was learnt of, drawn when there is a champion"
    )
    steps: Count | None = Field(None, description="sampling steps; None takes the generator's own")
    batch_pictures: Count = Field(32, description="pictures sampled at a time")
    sheet_users: Count = Field(8, description="rows of the contact sheet")
    scorers: tuple[ScorerName, ...] = Field(
        ("aesthetic", "clip_score", "pickscore", "perfusion_rm"), description="families of perfusion.scorers"
    )
    aesthetic_clip: str | None = Field(
        None, description="directory or hub id of openai/clip-vit-large-patch14; None takes the twin"
    )
    aesthetic_head: str | None = Field(
        None, description="path of sac+logos+ava1-l14-linearMSE.pth; None fits the twin's head"
    )
    clip_score_clip: str | None = Field(
        None, description="directory or hub id of the CLIP of CLIP Score; None takes the backbone"
    )
    weights: dict[WeightsName, ScorerWeights] = Field(
        {}, description="real weights of frozen scorers (Table 2); a scorer not named here is its twin"
    )


class GatesConfig(Section):
    """Thresholds of the gates (see docs/operations.md)."""

    confidence: Share = Field(0.95, description="two-sided confidence of every interval")
    resamples: Count = Field(2000, description="bootstrap resamples over users")
    min_users: Count = Field(20, description="fewest users for an interval; below it a check is inconclusive")
    reward_min_relative_map_gain: float = Field(0.02, description="PerFusionRM over tuned PickScore")
    reward_cold_margin: Share = Field(0.01, description="MAP that cold-start users may lose to tuned PickScore")
    reward_promotion_margin: Share = Field(0.02, description="MAP a challenger may lose to the champion")
    general_margin: float = Field(
        0.25, ge=0.0, description="loss allowed on Aesthetic, CLIP Score and PickScore, in standard deviations"
    )
    slice_margin: float = Field(0.5, ge=0.0, description="loss allowed on a slice, in standard deviations")
    slice_min_users: Count = Field(60, description="a slice with fewer users is reported and not judged")
    load_tolerance: float = Field(
        1e-4, ge=0.0, description="load: largest difference of a score, relative to max(1, |score|)"
    )
    load_picture_tolerance: float = Field(
        0.004,
        ge=0.0,
        description="load: largest mean difference of a picture with pixels in [0, 1]; one grey level is 1/255",
    )
    max_seconds_per_picture: Positive | None = Field(None, description="promotion: latency budget in seconds")
    max_memory_mib: Positive | None = Field(None, description="promotion: peak memory budget in MiB")
    max_seconds_ratio: Positive | None = Field(
        1.5, description="promotion: seconds a picture over the champion's, measured side by side"
    )
    max_memory_ratio: Positive | None = Field(1.5, description="promotion: peak memory over the champion's")

    def interval_options(self, seed: int) -> dict[str, Any]:
        """Options of `perfusion.statistics.cluster_bootstrap`, so that figures and gates agree."""
        return {
            "confidence": self.confidence, "resamples": self.resamples, "seed": seed, "min_clusters": self.min_users,
        }  # fmt: skip


class MonitorConfig(Section):
    """What `perfusion monitor` calls a change (see docs/operations.md)."""

    min_users: Count = Field(20, description="fresh merchants, below which nothing is told")
    min_groups: Count = Field(100, description="fresh records, below which nothing is told")
    max_groups: Count = Field(5000, description="fresh records the reward model scores, at most; drawn by their names")
    alpha: Share = Field(0.01, description="chance of any false alarm among all variables, about")
    max_psi: Positive = Field(0.25, description="largest population stability index of a feature or of phrases")
    max_shift: Positive = Field(0.2, description="largest shift of a mean of records, in standard deviations")
    max_unseen: Share = Field(0.05, description="share of merchants with a category the model never saw, at most")
    max_gauc_drop: Share = Field(0.05, description="GAUC the reward model may lose on fresh picks")
    max_calibration_error: Share = Field(0.1, description="mean gap of predicted and true shares of picks, at most")
    max_return_rise: Share = Field(0.1, description="relative rise of the return rate against the control arm, at most")
    on_return_rise: Literal["propose", "rollback"] = Field(
        "propose", description="what a rise beyond that does: ask for `perfusion rollback`, or do it"
    )


class Params(Section):
    """A whole parameter file."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = Field(
        "perfusion", description="prefix of registered models: {name}-reward, {name}-generator"
    )
    seed: int = 0
    threads: Count = Field(1, description="torch threads per process")
    processes: Count = Field(
        1,
        description="of a training on this machine, that share a step's micro-batches: `optimiser.accumulate` at most",
    )
    workers: Count = Field(
        1, description="Dask workers on this machine that share encoding, drawing and judging; 1 starts none"
    )
    compute: ComputeConfig = PLAIN
    data: DataConfig = DataConfig()
    clip: ClipConfig = ClipConfig()
    pickscore: PickScoreConfig = PickScoreConfig()
    reward: RewardConfig = RewardConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    encode: EncodeConfig = EncodeConfig()
    dpo: PreferenceConfig = PreferenceConfig(optimiser=OptimiserConfig(steps=200, lr=1e-4))
    sft: PreferenceConfig = PreferenceConfig(optimiser=OptimiserConfig(steps=200, lr=1e-4))
    generator: GeneratorConfig = GeneratorConfig(optimiser=OptimiserConfig(steps=548, lr=3e-4))
    spo: SpoConfig = SpoConfig()
    pmg: PmgConfig = PmgConfig()
    distil: DistilConfig = DistilConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gates: GatesConfig = GatesConfig()
    monitor: MonitorConfig = MonitorConfig()

    @model_validator(mode="after")
    def _ratios_add_up(self) -> Self:
        if min(self.data.ratios) < 0 or self.data.ratios[0] == 0:
            raise ValueError(f"data.ratios {self.data.ratios}: need a training share above 0 and none below 0")
        return self


class _OnceLoader(yaml.SafeLoader):
    """Safe YAML in which a key stands once: of two, one would be ignored in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_params(path: Path | str) -> Params:
    """Read a parameter file.

    Raises:
        ConfigError: the file is absent or not YAML, or a key is unknown, mistyped or out of range; names file and key.
    """
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(), _OnceLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such parameter file; shipped ones are params.yaml and params/*.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable parameter file: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    try:
        return Params.model_validate(raw or {})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, item) for item in error.errors())) from None


def _explain(path: Path, item: Any) -> str:
    """One line per mistake: file, key, value, rule, and the nearest known key for an unknown one."""
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "value_error":  # a rule over several keys: its message names them
        return f"{path}: {key and key + ': '}{item['ctx']['error']}"
    if item["type"] == "missing":
        return f"{path}: {key}: required key is missing"
    if item["type"] != "extra_forbidden":
        value = textwrap.shorten(repr(item.get("input")), 80, placeholder="...")
        return f"{path}: {key or 'the file'} = {value}: {item['msg']}"
    section: Any = Params
    for part in item["loc"][:-1]:
        section = section.model_fields[part].annotation
    near = difflib.get_close_matches(str(item["loc"][-1]), section.model_fields, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(section.model_fields)}"
    return f"{path}: {key}: unknown key{hint}"
