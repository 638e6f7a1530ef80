from .exporter import ExportConfig, export_dataset
from .importer import ImportConfig, ImportReport, import_dataset

__all__ = [
    "ExportConfig",
    "ImportConfig",
    "ImportReport",
    "export_dataset",
    "import_dataset",
]
