"""Exports: a run's weights as a folder that stands alone, with a card that says what is known of them.

from toughen.export import export, push
"""

from toughen.export.folder import FORMATS, Export, export
from toughen.export.hub import push

__all__ = ["FORMATS", "Export", "export", "push"]
