"""Every failure that edgebench reports, as a small tree with stable exit codes.

A message has three parts: what happened, where, and what to do next. The command line prints
them in one place (``edgebench.cli.main``); a traceback appears only with ``--debug``.

Exit codes (also in docs/exit-codes.md):

    0    done
    1    the answer is "no": a regression (check), a failure that makes runs invalid (doctor), a
         budget that is broken (overhead)
    2    the command line is wrong, or (check, overhead) the evidence does not decide
    3    bad input: adapter, base model, artifact, recording, profile, or (check) environment
    4    the device: unreachable, not what its profile says, busy, refused
    5    this host's storage: unwritable, full
    6    the measurement: the worker crashed, was killed, or ran out of memory
    7    the export: parity with PyTorch failed, an operation could not be lowered
    130  interrupted
"""

from __future__ import annotations


class EdgebenchError(Exception):
    """A failure with a sentence for people and an exit code for machines.

    Args:
        what: what happened, without a trailing full stop.
        where: the file, device or option concerned (shown in brackets), or "".
        fix: what to do about it, a full sentence, or "".
    """

    exit_code = 70

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f" ({self.where})"
        if not text.endswith((".", "!", "?")):
            text += "."
        if self.fix:
            text += f" {self.fix}"
        return text


class UsageError(EdgebenchError):
    """The command line or an API argument is wrong."""

    exit_code = 2


class InputError(EdgebenchError):
    """Something the user gave can't be used as it is."""

    exit_code = 3


class CheckpointError(InputError):
    """An adapter or base-model checkpoint is missing, broken, or does not fit."""


class ArtifactError(InputError):
    """An artifact directory is missing, broken, or not what its digest says."""


class RecordingError(InputError):
    """A recording is missing, broken, or of another schema version."""


class ProfileError(InputError):
    """A device profile is missing, or says something that can't be."""


class DeviceError(EdgebenchError):
    """The device can't be reached, is not the one expected, or refuses."""

    exit_code = 4


class LinkError(DeviceError):
    """The device can't be reached just now: trying again later may help."""


class DeviceBusyError(DeviceError):
    """Another measurement holds the device."""


class StorageError(EdgebenchError):
    """This host's disk is full, or a directory can't be written."""

    exit_code = 5


class MeasurementError(EdgebenchError):
    """The measurement itself failed: a worker crashed, or was killed."""

    exit_code = 6


class ExportError(EdgebenchError):
    """The model could not be exported, or the result is not what PyTorch computes."""

    exit_code = 7


class Interrupted(EdgebenchError):
    """The user pressed Ctrl-C."""

    exit_code = 130
