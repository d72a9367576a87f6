"""Measuring: ranking metrics, the reward model on held-out groups, the generator on held-out users and prompts."""

from perfusion.evaluation.ranking import RankingReport, average_precision, group_auc, ranking_report

__all__ = ["RankingReport", "average_precision", "group_auc", "ranking_report"]
