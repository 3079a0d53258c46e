"""Which executions are reported: a user's conditions, all of which must hold.

What they leave out is counted as `filtered`, so that the books still balance.
Hooks that can decide themselves (bcc: bpf/finish.c) do so before they write a record; duration and result by the same
rule as here, database and text because the session tells them which texts nobody wants (`Filter.wants`).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sqltrace.errors import UsageError
from sqltrace.events.model import Prepared, Statement
from sqltrace.events.result_codes import DONE, OK, ROW


@dataclass(frozen=True, slots=True)
class Conditions:
    """As given on the command line.  `db` are shell patterns, `sql` a regular expression; seconds for the duration."""

    db: tuple[str, ...] = ()
    sql: str | None = None
    min_duration: float | None = None
    errors_only: bool = False

    @property
    def min_duration_ns(self) -> int:
        """The duration as hooks measure it."""
        return 0 if self.min_duration is None else round(self.min_duration * 1e9)

    @property
    def about_text(self) -> bool:
        """Whether a statement's text and database decide."""
        return bool(self.db or self.sql is not None)

    @property
    def any(self) -> bool:
        """Whether there is any condition at all."""
        return bool(self.db or self.sql is not None or self.min_duration is not None or self.errors_only)


class Filter:
    """Keeps the executions that meet the conditions, counts the others.  Raises UsageError for a bad expression."""

    def __init__(self, conditions: Conditions) -> None:
        self.dropped = 0
        about_text = list(_tests_of_prepared(conditions))
        self._tests_of_prepared = about_text
        self._tests = [*_tests(conditions), *((lambda s, t=t: t(s.prepared)) for t in about_text)]

    def wants(self, prepared: Prepared) -> bool:
        """Say whether any execution of this statement can meet the conditions."""
        return all(test(prepared) for test in self._tests_of_prepared)

    def keep(self, statements: Iterable[Statement]) -> Iterator[Statement]:
        """Yield those that meet all conditions."""
        tests = self._tests
        for statement in statements:
            if all(test(statement) for test in tests):
                yield statement
            else:
                self.dropped += 1


def _tests(conditions: Conditions) -> Iterator[Callable[[Statement], bool]]:
    if conditions.errors_only:
        yield lambda s: s.rc not in (OK, ROW, DONE)
    if conditions.min_duration is not None:
        least = conditions.min_duration_ns
        yield lambda s: s.duration_ns >= least


def _tests_of_prepared(conditions: Conditions) -> Iterator[Callable[[Prepared], bool]]:
    if conditions.db:
        # A pattern without a slash is about the file's name, as with gitignore.
        patterns = [p if "/" in p else f"*/{p}" for p in conditions.db]
        expressions = [re.compile(fnmatch.translate(p).encode("utf-8", "surrogateescape")) for p in patterns]

        def right_database(prepared: Prepared) -> bool:
            path = prepared.db
            if path is None:
                return False
            if b"/" not in path:  # :memory:, or a relative name
                path = b"/" + path
            return any(e.match(path) for e in expressions)

        yield right_database
    if conditions.sql is not None:
        try:
            expression = re.compile(conditions.sql.encode("utf-8", "surrogateescape"), re.IGNORECASE | re.DOTALL)
        except re.error as error:
            raise UsageError(f"--sql {conditions.sql!r} is not a regular expression: {error}.") from error
        yield lambda prepared: prepared.sql is not None and expression.search(prepared.sql) is not None
