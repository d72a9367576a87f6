"""The planted world's own judgement: what a merchant truly feels about a picture. Only where there is a truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from perfusion.world import FAMILIES, Truth

__all__ = ["TrueUtility"]


@dataclass(frozen=True)
class TrueUtility:
    """Reads the garment in a picture and asks the merchant's planted taste. No model judges itself here.

    Attributes:
        truth: the world behind the dataset.
        name: "true_utility".
    """

    truth: Truth
    name: str = "true_utility"

    def judge(self, user_ids: Sequence[str], prompts: Sequence[str], pixels: Tensor) -> pd.DataFrame:
        """Judge n pictures, each for its own user and prompt.

        Args:
            user_ids: n merchants of this world.
            prompts: n prompts.
            pixels: (n, 3, S, S) uint8 RGB.

        Returns:
            n rows: `true_utility` (one unit is the spread of personal taste) and its parts `prompt_fit`,
            `everybody`, `personal`; `cleanness_db`, how near the picture is to the garment it shows;
            and the phrase it shows of each attribute, `shows_palette` and so on.

        Raises:
            DataError: a user or a phrase is not of this world.
        """
        reading = self.truth.read(pixels)
        utility = self.truth.utility(user_ids, prompts, reading.codes)
        columns: dict[str, object] = {
            self.name: utility.total,
            "prompt_fit": utility.prompt,
            "everybody": utility.everybody,
            "personal": utility.personal,
            "cleanness_db": reading.cleanness_db,
        }
        for place, (family, phrases) in enumerate(FAMILIES.items()):
            columns[f"shows_{family.replace(' ', '_')}"] = [phrases[code] for code in reading.codes[:, place]]
        return pd.DataFrame(columns)
