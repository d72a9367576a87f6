"""The personalised generator as a diffusers pipeline: `pipe("dress, v-neck", user=features).images`.

What a step computes is in `denoiser`; the pipeline encodes, loops and decodes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from perfusion.data import FeatureEncoder
from perfusion.errors import DataError
from perfusion.generation.backbone import latent_shape
from perfusion.generation.codec import PatchCodec  # diffusers loads only classes that are imported
from perfusion.generation.denoiser import Denoiser, Shortcuts, Unconditional
from perfusion.generation.pan import PersonalAdaptiveNetwork
from perfusion.generation.samplers import build_sampler
from perfusion.generation.text import embed_prompts
from perfusion.model_folder import check_model_folder, forget_calls, reading

__all__ = ["PerFusionPipeline", "PerFusionPipelineOutput"]

Generator = torch.Generator | list[torch.Generator]
FEATURES_FILE = "features.json"


@dataclass
class PerFusionPipelineOutput(BaseOutput):
    """images: PIL pictures; float32 (n, 3, S, S) in [0, 1] with `output_type="pt"`; or latents; grouped by prompt."""

    images: list[Image.Image] | Tensor


class PerFusionPipeline(DiffusionPipeline):
    """Stable Diffusion with a personal adaptive network beside its U-Net (Sec. 4.3).

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the backbone, DPO-aligned in the paper.
        pan: the adaptive network; None gives a plain, user-blind generator.
        features: encoder of user features, kept in `features.json` beside the weights.
        num_inference_steps, guidance_scale, user_scale, eta: defaults of a call, kept in model_index.json.
    """

    model_cpu_offload_seq = "text_encoder->unet->pan->vae"
    _optional_components = ["pan"]  # noqa: RUF012 (diffusers reads this class attribute)

    def __init__(
        self,
        vae: AutoencoderKL | PatchCodec,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        pan: PersonalAdaptiveNetwork | None = None,
        features: FeatureEncoder | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        user_scale: float = 7.5,
        eta: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, pan=pan
        )
        self.register_to_config(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, user_scale=user_scale, eta=eta
        )
        self.features = features
        self.set_progress_bar_config(disable=True)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write every part, the defaults and the feature encoder under `save_directory`."""
        forget_calls(self.tokenizer)
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.features is not None:
            self.features.save(Path(save_directory) / FEATURES_FILE)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> PerFusionPipeline:
        """Read what `save_pretrained` wrote; keyword arguments as in diffusers.

        Raises:
            WeightsError: a part is absent, broken, outside the folder, or asks for code of its own to be run.
        """
        check_model_folder(Path(pretrained_model_name_or_path))
        with reading(f"{pretrained_model_name_or_path}: as a PerFusionPipeline", "Run the generator stage again"):
            pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        file = Path(pretrained_model_name_or_path) / FEATURES_FILE
        pipe.features = FeatureEncoder.load(file) if file.exists() else None
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        return pipe

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        user: Tensor | Mapping[str, Any] | None = None,
        num_images_per_prompt: int = 5,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        user_scale: float | None = None,
        generator: Generator | None = None,
        output_type: str = "pil",
        eta: float | None = None,
        *,
        sampler: str | None = None,
        unconditional: Unconditional = "blind",
        pan_every: int = 1,
        encoder_every: int = 1,
        deep_every: int = 1,
    ) -> PerFusionPipelineOutput:
        """Draw pictures.

        Args:
            prompt: one prompt or several.
            user: encoded features, (F,) for all prompts or (P, F) one row a prompt; or one user's feature columns as a
                mapping, encoded by the pipeline's own encoder; None is served user-blind. One prompt with several rows
                is drawn for each of those users.
            num_images_per_prompt: pictures a prompt, from different noise.
            generator: one for all, or one for each picture (P * num_images_per_prompt, by prompt): then a picture does
                not depend on what it is batched with.
            output_type: "pil", "pt" or "latent" (n, C, H, W), before the codec.
            num_inference_steps, guidance_scale, user_scale, eta: None takes the pipeline's default.
            sampler: a solver for fewer steps, of `samplers.SAMPLERS`; None is the pipeline's own scheduler. `eta` is
                for the pipeline's own.
            unconditional: what the unconditional half of guidance sees, of `Denoiser`.
            pan_every, encoder_every, deep_every: of `Shortcuts`; the defaults are exact.

        Raises:
            DataError: a user is given as columns and the pipeline has no feature encoder, or to a pipeline without an
                adaptive network, or the number of rows is neither 1 nor that of the prompts.
            ConfigError: a shortcut or sampler does not exist or fit.
        """
        shortcuts = Shortcuts(pan_every, encoder_every, deep_every)
        scheduler = self.scheduler if sampler is None else build_sampler(sampler, self.scheduler.config)
        users = self._user_rows(user)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        count = max(len(prompts), 1 if users is None or len(prompts) > 1 else len(users))
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        denoise = Denoiser(
            self.unet, self.pan, *self._contexts(prompts, count, num_images_per_prompt),
            self._user_map(users, count, num_images_per_prompt),
            self.config.guidance_scale if guidance_scale is None else guidance_scale,
            self.config.user_scale if user_scale is None else user_scale, unconditional, shortcuts,
        )  # fmt: skip
        latents = self._initial_noise(count * num_images_per_prompt, generator, scheduler)
        scheduler.set_timesteps(steps, device=latents.device)
        options = _step_options(scheduler, self.config.eta if eta is None else eta, generator)
        with denoise.remembering():
            for t in self.progress_bar(scheduler.timesteps):
                noised = scheduler.scale_model_input(latents, t)
                latents = scheduler.step(denoise(noised, t), t, latents, **options).prev_sample
        if output_type == "latent":
            return PerFusionPipelineOutput(images=latents)
        pictures = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        pictures = (pictures.float() / 2 + 0.5).clamp(0, 1)
        return PerFusionPipelineOutput(images=pictures if output_type == "pt" else _to_pil(pictures))

    def _user_rows(self, user: Tensor | Mapping[str, Any] | None) -> Tensor | None:
        """Encoded features (U, F); None without a user."""
        if user is None:
            return None
        if self.pan is None:
            raise DataError("user given to a pipeline without an adaptive network (pan): leave user=None")
        return torch.atleast_2d(user if isinstance(user, Tensor) else self._encode_user(user))

    def _user_map(self, users: Tensor | None, prompts: int, pictures: int) -> Tensor | None:
        """Users' maps, (P * pictures, C, H, W); None without a user."""
        if users is None:
            return None
        if len(users) not in (1, prompts):
            raise DataError(f"user has {len(users)} rows for {prompts} prompts: give one row, or one a prompt")
        return self.pan.user_map(users.to(self.pan.device).expand(prompts, -1)).repeat_interleave(pictures, 0)

    def _encode_user(self, user: Mapping[str, Any]) -> Tensor:
        import pandas as pd

        if self.features is None:
            raise DataError(
                "user given by columns, but the pipeline holds no features.json: pass encoded features (F,)"
            )
        return self.features.transform(pd.DataFrame([dict(user)]))[0]

    def _contexts(self, prompts: list[str], count: int, pictures: int) -> tuple[Tensor, Tensor]:
        """Conditions of the empty prompt and of the prompts, (count * pictures, T, D) each; each is encoded once."""
        empty, *known = embed_prompts(self.tokenizer, self.text_encoder, ["", *prompts]).split(1)
        text = torch.cat(known).repeat_interleave(pictures * count // len(prompts), 0)
        return empty.expand_as(text), text

    def _initial_noise(self, count: int, generator: Generator | None, scheduler: Any) -> Tensor:
        """In single precision, whatever the networks' own: a picture then starts from the same noise in each."""
        noise = randn_tensor(
            (count, *latent_shape(self.unet)), generator=generator, device=self._execution_device, dtype=torch.float32
        )
        return noise * scheduler.init_noise_sigma


def _step_options(scheduler: Any, eta: float, generator: Generator | None) -> dict[str, Any]:
    """Those of a step's options that the scheduler takes."""
    accepted = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in accepted}


def _to_pil(pictures: Tensor) -> list[Image.Image]:
    array = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]
