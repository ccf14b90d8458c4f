"""MLflow: runs, the model registry, and what waits while MLflow is away. The only room that knows mlflow."""
