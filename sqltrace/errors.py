"""Every failure that sqltrace can explain.

Each error is one sentence for the user with the cause and, where there is one, the remedy;
the command line prints it without a traceback and exits with `exit_code`.
"""


class SqltraceError(Exception):
    """Something that the user can understand and perhaps mend went wrong."""

    exit_code = 125


class NotAnImageError(SqltraceError):
    """The file is not an ELF file that can be read, or it is damaged."""


class NoSQLiteError(SqltraceError):
    """The file, or the process, holds no SQLite."""


class ResolutionError(SqltraceError):
    """SQLite is there, but a function or a struct field without which nothing works was not found."""


class AmbiguousResolutionError(ResolutionError):
    """Two pieces of evidence disagree; the message lists both sides."""


class BackendUnavailableError(SqltraceError):
    """The chosen backend does not work on this machine or for this user."""


class BackendError(SqltraceError):
    """A backend that was available failed while it worked."""


class TargetError(SqltraceError):
    """The process cannot be observed: gone, somebody else's, or of a kind that the backend must not touch."""


class OutputError(SqltraceError):
    """The log file cannot be written."""


class CommandNotExecutableError(SqltraceError):
    """The command was found but cannot be executed."""

    exit_code = 126


class CommandNotFoundError(SqltraceError):
    """There is no such command."""

    exit_code = 127


class UsageError(SqltraceError):
    """The options contradict each other or make no sense."""

    exit_code = 2
