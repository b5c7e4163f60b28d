"""Run folders sent to MLflow."""
