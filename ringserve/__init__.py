"""ringserve: a model server for TensorFlow SavedModels that speaks TensorFlow Serving's APIs."""

__version__ = "0.1.0"
