"""sqltrace's command line."""
