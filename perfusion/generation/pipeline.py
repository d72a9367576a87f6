"""The personalised generator as a diffusers pipeline: `pipe("dress, v-neck", user=features).images`.

Guidance with a user: e0 + g (text - e0) + w (user - text), where e0 sees neither prompt nor user, text the prompt
alone, user both. A prediction that cancels is not computed: w = g needs no text term (one decoder pass less), no user
needs no adaptive network. The frozen encoder runs once for text and user, the user's map once a request. Each decoder
pass has the same shape, so that a network that says nothing leaves every picture as it was, bit for bit.
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
from perfusion.generation.codec import PatchCodec  # diffusers loads only classes that are imported
from perfusion.generation.pan import PersonalAdaptiveNetwork
from perfusion.generation.split import decode, encode
from perfusion.generation.text import embed_prompts

__all__ = ["PerFusionPipeline", "PerFusionPipelineOutput", "guide"]

Generator = torch.Generator | list[torch.Generator]
FEATURES_FILE = "features.json"


@dataclass
class PerFusionPipelineOutput(BaseOutput):
    """images: PIL pictures, or float32 (n, 3, S, S) in [0, 1] with `output_type="pt"`; grouped by prompt."""

    images: list[Image.Image] | Tensor


def guide(none: Tensor | None, text: Tensor | None, user: Tensor | None, g: float, w: float) -> Tensor:
    """e0 + g (text - e0) + w (user - text).

    Args:
        none: e0, may be None where g = 1.
        text: may be None where w = g and there is a user.
        user: None where there is no user, or w = 0.
    """
    prompted = user if text is None else text
    assert prompted is not None
    guided = prompted if none is None else none + g * (prompted - none)
    return guided if text is None or user is None else guided + w * (user - text)


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
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.features is not None:
            self.features.save(Path(save_directory) / FEATURES_FILE)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> PerFusionPipeline:
        """Read what `save_pretrained` wrote; keyword arguments as in diffusers."""
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
    ) -> PerFusionPipelineOutput:
        """Draw pictures.

        Args:
            prompt: one prompt or several.
            user: encoded features, (F,) for all prompts or (P, F) one row a prompt; or one user's feature columns as a
                mapping, encoded by the pipeline's own encoder; None is served user-blind.
            num_images_per_prompt: pictures a prompt, from different noise.
            generator: one for all, or one for each picture (P * num_images_per_prompt, by prompt): then a picture does
                not depend on what it is batched with.
            output_type: "pil" or "pt".
            num_inference_steps, guidance_scale, user_scale, eta: None takes the pipeline's default.

        Raises:
            DataError: a user is given as columns and the pipeline has no feature encoder, or to a pipeline without an
                adaptive network, or the number of rows is neither 1 nor that of the prompts.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        personal = self.config.user_scale if user_scale is None else user_scale
        user_map = self._user_map(user, len(prompts), num_images_per_prompt)
        context = self._context(prompts, num_images_per_prompt)
        latents = self._initial_noise(len(prompts) * num_images_per_prompt, generator)
        self.scheduler.set_timesteps(steps, device=latents.device)
        options = self._step_options(self.config.eta if eta is None else eta, generator)
        for t in self.progress_bar(self.scheduler.timesteps):
            speaks = user_map is not None and int(t) >= self.pan.config.min_timestep
            prediction = self._guided(latents, t, context, user_map if speaks else None, scale, personal)
            latents = self.scheduler.step(prediction, t, latents, **options).prev_sample
        pictures = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        pictures = (pictures.float() / 2 + 0.5).clamp(0, 1)
        return PerFusionPipelineOutput(images=pictures if output_type == "pt" else _to_pil(pictures))

    def _guided(
        self, z: Tensor, t: Tensor, context: Mapping[str, Tensor], user_map: Tensor | None, g: float, w: float
    ) -> Tensor:
        """The guided prediction, (B, C, H, W); the user's shares the prompt's encoder pass."""
        halves = ["text"] if g == 1.0 else ["none", "text"]
        encoded = encode(self.unet, z.repeat(len(halves), 1, 1, 1), t, torch.cat([context[name] for name in halves]))
        rows = {name: encoded.rows(slice(i * len(z), (i + 1) * len(z))) for i, name in enumerate(halves)}
        none = decode(self.unet, rows["none"]) if "none" in rows else None
        text = decode(self.unet, rows["text"]) if user_map is None or w != g else None
        user: Tensor | None = None
        if user_map is not None and w != 0.0:
            user = decode(self.unet, rows["text"], self.pan(z, t, context["text"], user_map))
        return guide(none, text, user, g, w)

    def _user_map(self, user: Tensor | Mapping[str, Any] | None, prompts: int, pictures: int) -> Tensor | None:
        """Users' maps, (P * pictures, C, H, W); None without a user."""
        if user is None:
            return None
        if self.pan is None:
            raise DataError("user given to a pipeline without an adaptive network (pan): leave user=None")
        if not isinstance(user, Tensor):
            user = self._encode_user(user)
        rows = torch.atleast_2d(user).to(self.pan.device)
        if len(rows) not in (1, prompts):
            raise DataError(f"user has {len(rows)} rows for {prompts} prompts: give one row, or one a prompt")
        return self.pan.user_map(rows.expand(prompts, -1)).repeat_interleave(pictures, 0)

    def _encode_user(self, user: Mapping[str, Any]) -> Tensor:
        import pandas as pd

        if self.features is None:
            raise DataError(
                "user given by columns, but the pipeline holds no features.json: pass encoded features (F,)"
            )
        return self.features.transform(pd.DataFrame([dict(user)]))[0]

    def _context(self, prompts: list[str], pictures: int) -> dict[str, Tensor]:
        """Conditions of the empty prompt and of the prompts, (P * pictures, T, D) each."""
        empty, *known = embed_prompts(self.tokenizer, self.text_encoder, ["", *prompts]).split(1)
        text = torch.cat(known).repeat_interleave(pictures, 0)
        return {"none": empty.expand_as(text), "text": text}

    def _initial_noise(self, count: int, generator: Generator | None) -> Tensor:
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (count, self.unet.config.in_channels, height, width)
        noise = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        return noise * self.scheduler.init_noise_sigma

    def _step_options(self, eta: float, generator: Generator | None) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in accepted}


def _to_pil(pictures: Tensor) -> list[Image.Image]:
    array = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]
