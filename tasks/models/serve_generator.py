"""The script that MLflow keeps in a generator artifact and runs to load it ("models from code": nothing is pickled)."""

from mlflow.models import set_model

from tasks.models.generator import GeneratorModel

set_model(GeneratorModel())
