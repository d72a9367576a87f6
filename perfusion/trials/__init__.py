"""The gates on trial: simulated models of known worth, from the planted world, put through the real gate functions."""

from perfusion.trials.market import Market
from perfusion.trials.scenarios import Scenario, Trial, promotion_trial, random_reward_trial

__all__ = ["Market", "Scenario", "Trial", "promotion_trial", "random_reward_trial"]
