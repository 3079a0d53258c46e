"""`python -m sqltrace`."""

from sqltrace.cli import main

raise SystemExit(main())
