"""Models to answers: export, loading, and prediction of any number of files."""

from darkarc.models.flags import FlagError, Reference, Verdict, limits, unlikeness
from darkarc.serving.export import ExportError, export_onnx
from darkarc.serving.loading import LoadError, load
from darkarc.serving.onnx_file import OnnxError
from darkarc.serving.onnx_regressor import OnnxRegressor
from darkarc.serving.predict import PredictError, PredictSummary, predict_files
from darkarc.serving.table import COLUMNS, TableError

__all__ = [
    "COLUMNS",
    "ExportError",
    "FlagError",
    "LoadError",
    "OnnxError",
    "OnnxRegressor",
    "PredictError",
    "PredictSummary",
    "Reference",
    "TableError",
    "Verdict",
    "export_onnx",
    "limits",
    "load",
    "predict_files",
    "unlikeness",
]
