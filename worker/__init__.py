"""A RunPod serverless worker for the Dia dialogue speech model."""

__version__ = "0.1.0"
