"""The script that MLflow keeps in a generator artifact and runs to load it ("models from code": nothing is pickled)."""

from mlflow.models import set_model

from tasks.models.generator import GeneratorModel
from tasks.models.strict import refuse_what_would_be_dropped

refuse_what_would_be_dropped()
set_model(GeneratorModel())
