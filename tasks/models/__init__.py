"""The served models: MLflow pyfunc "models from code" around safetensors, with their users' features inside.

An artifact holds the model folder, the known users' features and the code (`perfusion`, `tasks`) it was made with, so
that `mlflow.pyfunc.load_model("models:/perfusion-reward@champion")` works in a clean process from anywhere.
"""
