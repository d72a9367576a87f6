"""What each check of the gates asks, and what it means when it does not pass, for somebody who knows no statistics."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEANINGS", "Meaning", "meaning"]


@dataclass(frozen=True)
class Meaning:
    """A check in plain words.

    Attributes:
        asks: what it wants to know.
        otherwise: what it means when it does not pass.
    """

    asks: str
    otherwise: str


#: gate -> words of a check's name -> what it means; the first that fits.
MEANINGS: dict[str, dict[str, Meaning]] = {
    "data": {
        "schema": Meaning(
            "Are all features there that the last accepted data had?",
            "The data lack a feature that the last accepted data had.",
        ),
        "valid group records": Meaning("Is there enough to train on?", "There are too few records to train on."),
        "quarantined share": Meaning("Is most of the delivery in order?", "Too many records are broken."),
        "coverage": Meaning("Do most merchants fill the feature in?", "A feature is empty for too many merchants."),
        "drift": Meaning(
            "Do the data look like those accepted last?", "The data look different from those that were accepted last."
        ),
        "": Meaning("Do records keep this rule?", "Many records break this rule."),
    },
    "reward": {
        "cold-start": Meaning(
            "Are merchants without history served no worse than by a model that knows nobody?",
            "Merchants without history would be served worse than before.",
        ),
        "wrong user": Meaning(
            "Do a merchant's own features predict the picks better than another's?",
            "Another merchant's features predict the picks as well: whose taste is whose was not learned.",
        ),
        "relative MAP gain": Meaning(
            "Does knowing the merchant help enough to be worth it?",
            "Knowing the merchant does not help enough to predict what is picked.",
        ),
        "MAP gain": Meaning(
            "Is it more than luck that knowing the merchant helps?",
            "Knowing the merchant does not help enough to predict what is picked.",
        ),
    },
    "load": {
        "": Meaning(
            "Does the saved model load in a clean process and answer as the evaluated one?",
            "The saved model is not the one that was evaluated.",
        ),
    },
    "promotion": {
        "minus a wrong user": Meaning(
            "Is a picture drawn for the merchant better than one drawn for another?",
            "Drawing for somebody else costs nothing: the pictures are not personal.",
        ),
        "on cold-start users": Meaning(
            "Do merchants without history get pictures no worse than the champion's?",
            "Merchants without history get worse pictures than from the model that serves.",
        ),
        "cold-start users' pictures": Meaning(
            "Were pictures drawn for merchants without history?",
            "Nobody looked at what merchants without history would get.",
        ),
        " on slice_": Meaning(
            "Does this kind of merchant get pictures no worse than the champion's?",
            "One kind of merchant may get worse pictures than from the model that serves.",
        ),
        "in standard deviations": Meaning(
            "Is general quality kept?", "Pictures lost too much by a judge of general quality."
        ),
        "minus base": Meaning(
            "Do the pictures please more than the base model's?",
            "The pictures please no more than those of the base model.",
        ),
        "reward model's MAP of cold-start": Meaning(
            "Does the reward model rank picks of merchants without history no worse than the champion's?",
            "The reward model ranks picks of merchants without history worse than the one that serves.",
        ),
        "reward model's MAP": Meaning(
            "Does the reward model rank picks no worse than the champion's?",
            "The reward model ranks picks worse than the one that serves.",
        ),
        "minus champion": Meaning(
            "Does this judge prefer the challenger's pictures?", "The model does not beat the one that serves."
        ),
        "seconds_per_picture": Meaning("Is it fast enough?", "Drawing takes too long."),
        "memory_mib": Meaning("Does it fit into memory?", "Drawing takes too much memory."),
        " and ": Meaning(
            "Did both draw exactly the same prompts, for the same merchants, from the same noise?",
            "The two were not asked the same, so nothing can be compared.",
        ),
    },
}


def meaning(gate: str, name: str) -> Meaning:
    """What a check means.

    Args:
        gate: its gate.
        name: its name, or its whole sentence where only that was recorded.
    """
    found = (meaning for words, meaning in MEANINGS.get(gate, {}).items() if words in name)
    return next(found, Meaning("", "A check of the gate stayed open."))
