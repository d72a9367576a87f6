"""The script that MLflow keeps in a reward artifact and runs to load it ("models from code": nothing is pickled)."""

from mlflow.models import set_model

from tasks.models.reward import RewardModel

set_model(RewardModel())
