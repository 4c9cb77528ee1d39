"""Why a model could not be read: one exception tree, whose reasons become condition reasons.

ModelError                  ModelFileUnreadable unless a subclass says otherwise
  ├── FileUnreadable        a file is malformed: names file and field
  ├── FileTruncated         a file ends before what its header promises
  ├── ArchitectureUnsupported
  ├── FormatUnsupported     a kind of checkpoint that is not read (pickle, GPTQ, split GGUF)
  ├── ModelNotFound
  ├── AccessDenied
  └── HubUnreachable
"""

from __future__ import annotations

from typing import ClassVar

from plimsoll.model.facts import InspectFailure


class ModelError(ValueError):
    """A model could not be read; the message names file and field and says what was expected."""

    reason: ClassVar[str] = "ModelFileUnreadable"

    def failure(self) -> InspectFailure:
        """As an inspect pod reports it."""
        return InspectFailure(reason=self.reason, message=str(self))


class FileUnreadable(ModelError):
    """A file is not what its name says, or a field in it is impossible."""


class FileTruncated(ModelError):
    """A file ends before what its header promises: an interrupted download, mostly."""

    reason = "ModelFileTruncated"


class ArchitectureUnsupported(ModelError):
    """The model is of a family that is not known, or has tensors its family does not have."""

    reason = "ArchitectureUnsupported"


class FormatUnsupported(ModelError):
    """The checkpoint is of a kind that is not read."""

    reason = "FormatUnsupported"


class ModelNotFound(ModelError):
    """There is no model at the source."""

    reason = "ModelNotFound"


class AccessDenied(ModelError):
    """The source refuses: a gated or private repository, a folder that may not be read."""

    reason = "AccessDenied"


class HubUnreachable(ModelError):
    """The hub did not answer, or not in time. Worth another try later."""

    reason = "HubUnreachable"
