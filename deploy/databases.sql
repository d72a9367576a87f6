-- One database each: MLflow and Prefect both keep a table "alembic_version" and would migrate each other's away.
CREATE DATABASE mlflow;
CREATE DATABASE prefect;
CREATE DATABASE perfusion;  -- the promotion log
